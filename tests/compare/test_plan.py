"""Plans: their runs, their file, and what may change when a comparison goes on."""

from dataclasses import replace

import pytest

from metricid.comparison.entries import Entry
from metricid.comparison.plan import join_plans, look_at_batches, parse_budget, partner_problems, read_plan
from metricid.errors import InputError
from metricid.training.build import check_recipe


def test_runs_differ_in_objective_and_seed_alone(plan):
    runs = plan.runs()
    assert [(run.entry, run.seed) for run in runs[:4]] == [
        ("softmax", 0),
        ("supcon", 0),
        ("arcface", 0),
        ("softmax", 1),
    ]
    assert len({run.folder for run in runs}) == len(runs) == 9
    for run in runs:
        config = check_recipe(run.recipe, "run")
        assert (config.folder, config.seed, config.train.images) == (run.folder, run.seed, 96)
        same = run.recipe | {
            key: plan.recipe[key] for key in ("name", "seed", "runs", "objective", "balance")
        }
        assert same == plan.recipe


def test_an_objective_with_a_sampler_of_its_own(plan):
    own = {"name": "hard_identity", "identities": 4, "images": 2}
    plan = replace(plan, entries=(*plan.entries, Entry("mined", [{"loss": "triplet"}], sampler=own)))
    samplers = [run.recipe["data"]["sampler"] for run in plan.runs()[:4]]
    assert samplers == [plan.recipe["data"]["sampler"]] * 3 + [own]
    plan.write()
    assert read_plan(plan.folder) == plan
    other = replace(plan.entries[-1], sampler=own | {"share": 0.25})
    with pytest.raises(InputError, match="mined: sampler: .*'images': 2} -> .*'share': 0.25}"):
        join_plans(plan, replace(plan, entries=(*plan.entries[:-1], other)))


def test_a_plan_is_read_as_it_was_written(plan):
    timed = replace(plan, budget=60.0, trial={"softmax": 81.5}, left_out={"supcon": "too large"})
    timed.write()
    assert read_plan(plan.folder) == timed
    (plan.folder / "plan.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_plan(plan.folder)
    (plan.folder / "plan.json").rename(plan.folder / "other.json")
    with pytest.raises(InputError, match="holds other files"):
        read_plan(plan.folder)
    assert read_plan(plan.folder / "none") is None


def test_objectives_and_seeds_can_be_added(plan):
    more = replace(plan, entries=(*plan.entries, Entry("cosface", [{"loss": "cosface"}])), seeds=(0, 1, 2, 3))
    joined = join_plans(replace(plan, budget=5.0), more)
    assert (len(joined.entries), len(joined.seeds), joined.budget) == (4, 4, 5.0)
    assert join_plans(replace(plan, left_out={"a": "b"}), more).left_out == {"a": "b"}
    moved = dict(plan.recipe, data=dict(plan.recipe["data"], root="/elsewhere"))
    assert join_plans(plan, replace(plan, recipe=moved)).recipe == moved  # where images are may change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"images": 48}, "images: 96 -> 48"),
        ({"seeds": (0,)}, "seeds: 0, 1, 2 -> 0"),
        ({"seeds": (5, 6, 7)}, "seeds: 0, 1, 2 -> 5, 6, 7"),
        ({"entries": (Entry("softmax", [{"loss": "softmax"}]),)}, "supcon, arcface would be left out"),
    ],
)
def test_another_comparison_is_refused(plan, change, told):
    with pytest.raises(InputError, match=told):
        join_plans(plan, replace(plan, **change))


def test_other_terms_and_another_recipe_are_refused(plan):
    entries = (Entry("softmax", [{"loss": "softmax", "label_smoothing": 0.2}]), *plan.entries[1:])
    with pytest.raises(InputError, match="softmax: .*label_smoothing"):
        join_plans(plan, replace(plan, entries=entries))
    other = dict(plan.recipe, optim=dict(plan.recipe["optim"], lr=0.5))
    with pytest.raises(InputError, match=r"optim.lr: 0.001 -> 0.5"):
        join_plans(plan, replace(plan, recipe=other))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), ("2h5m1s", 7501)]
)
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "0m", "-5m", "10 m", "10d", "10m?"])
def test_bad_budgets(text):
    with pytest.raises(InputError, match="--budget"):
        parse_budget(text)


def test_lengths_in_images(recipe):
    assert look_at_batches(check_recipe(recipe, "r")).recipe_images == 96
    recipe["train"] = {"epochs": 2, "accumulate": 2}  # 9 identities of 6: 27 pairs, 7 batches of 8
    batches = look_at_batches(check_recipe(recipe, "r"))
    assert (batches.step_images, batches.recipe_images, batches.partners) == (16, 2 * 7 // 2 * 16, 1.0)


def test_batches_without_partners_are_refused_for_the_losses_that_need_them(recipe):
    recipe["data"]["sampler"] = {"name": "pk", "identities": 8, "images": 1}
    batches = look_at_batches(check_recipe(recipe, "r"))
    assert batches.partners == 0
    entries = [
        Entry("a", [{"loss": "arcface"}]),
        Entry("t", [{"loss": "softmax"}, {"loss": "triplet"}]),
        Entry("k", [{"loss": "softmax"}, {"loss": "koleo"}]),
        Entry("w", [{"loss": "softmax"}, {"loss": "l2", "of": "network"}]),
        Entry("d", [{"loss": "softmax"}, {"loss": "rkd_angle", "teacher": "runs/big"}]),
        Entry("c", [{"task": "category", "column": "color"}, {"loss": "virtual_adversarial"}]),
    ]
    (problem,) = partner_problems(entries, recipe["data"]["sampler"], batches.partners)
    assert problem.startswith("t: triplet compares images of one identity") and "name: pk" in problem
    assert partner_problems(entries, recipe["data"]["sampler"], 0.5) == []
