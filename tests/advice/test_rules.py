"""From figures to an advice: what must hold for any table, and what an expert would say of known ones."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metricid.advice import advise, describe
from metricid.advice.figures import KINDS
from metricid.advice.noise import NoiseEstimate
from metricid.advice.recipe import complete
from metricid.advice.rules import adacos_scale, scale_bound
from metricid.config import find_recipe, read_recipe
from metricid.losses import AdaCos, Objective
from metricid.training.build import check_recipe

ROOT = Path(__file__).parent.parent.parent


def table(counts, **columns):
    """Figures of a table with so many images of each identity."""
    return describe(np.repeat([f"p{i}" for i in range(len(counts))], counts), **columns)


def wrong(share):
    """An estimate of the label noise."""
    return NoiseEstimate(1000, 0.9, 100, 0.9, share, share, share, share, ())


def terms(plan):
    return [term["loss"] for term in plan.recipe["objective"]]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=80),
    repeat=st.sampled_from([1, 1, 1, 200]),
    cameras=st.integers(0, 4),
    kind=st.sampled_from(KINDS),
    share=st.sampled_from([None, 0.0, 0.1]),
    side=st.sampled_from([None, (20, 700), (128, 64), (112, 112)]),
)
def test_every_advice_is_a_recipe_that_fits_its_table(counts, repeat, cameras, kind, share, side):
    counts = np.array(counts * repeat)
    names = np.array([str(i % cameras) for i in range(counts.sum())], object) if cameras else None
    figures = table(counts, cameras=names, sides=None if side is None else np.array([side]))
    plan = advise(figures, None if share is None else wrong(share), kind=kind)
    values = complete(plan, {"train": "folder", "root": "photos"}, "mine")
    config = check_recipe(values, "advice")
    split, sampler = config.data.split, config.data.sampler
    usable = counts[counts >= split.min_images] if split else counts
    train = split.train_identities - split.validation_identities if split else len(usable)
    assert train >= 2 and (split is None or split.train_identities < len(usable))
    sizes = usable[:train].tolist()
    built = Objective.from_config(config.objective, train, 8, 8, sizes)
    labels = torch.arange(8) // 2 % train
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(built(x, x, labels, progress=0.5).total)
    if sampler["name"] == "pk":
        assert 2 <= sampler["identities"] <= train
        assert sampler["images"] == 2 or (usable >= sampler["images"]).mean() >= 0.75
    for line in plan.lines:
        assert all((line.topic, line.choice, line.basis, line.why, line.source)), line
        assert re.search(r"\d|no |cameras|shape|other", line.basis), line


def test_bound_of_the_scale_is_where_the_best_spread_centers_reach_the_confidence():
    """C unit vectors spread as far as can be have cosines -1 / (C - 1): the softmax there is just 90%."""
    for classes in (3, 50, 1000):
        s = scale_bound(classes, 0.9)
        own, others = math.exp(s), (classes - 1) * math.exp(-s / (classes - 1))
        assert own / (own + others) == pytest.approx(0.9)


@pytest.mark.parametrize("classes", [10, 751, 100_000])
def test_adacos_scale_is_that_of_the_loss(classes):
    loss = AdaCos(num_classes=classes, embedding_dim=2, mode="fixed")
    assert float(loss.margin.scale) == pytest.approx(adacos_scale(classes), rel=1e-6)


def test_few_identities_get_softmax_and_supcon_and_balanced_batches():
    plan = advise(table(np.full(300, 12)), kind="people")
    assert terms(plan) == ["softmax", "supcon"]
    assert plan.recipe["data"]["sampler"] == {"name": "pk", "identities": 8, "images": 4}


def test_a_long_tail_is_left_to_one_correction():
    counts = np.array([2] * 300 + [400] * 10)
    plan = advise(table(counts), kind="faces")
    assert plan.recipe["data"]["sampler"]["epoch"] == "identities"
    assert terms(plan) == ["softmax", "supcon"], "balanced batches and balanced softmax would correct twice"
    many = advise(table(np.array([6] * 14_000 + [500] * 1000)), kind="faces")
    assert terms(many) == ["dynamic_arcface"]
    assert many.recipe["data"]["sampler"]["name"] == "shuffle"


def test_many_identities_get_a_margin_whose_scale_is_above_the_bound():
    plan = advise(table(np.full(15_000, 8)), kind="faces")
    (term,) = plan.recipe["objective"]
    assert term["loss"] == "cosface" and term["margin"] == 0.35
    assert term["scale"] > max(scale_bound(12_000), adacos_scale(12_000))
    assert advise(table(np.full(70_000, 6)), kind="faces").recipe["objective"][0]["scale"] == 64.0
    assert terms(advise(table(np.full(15_000, 8)), kind="people")) == ["softmax", "supcon"]


def test_wrong_labels_get_sub_centers_a_smaller_margin_and_a_warning():
    plan = advise(table(np.full(15_000, 8)), wrong(0.1), kind="faces")
    assert plan.recipe["objective"] == [{"loss": "cosface", "margin": 0.2, "scale": 30.0, "sub_centers": 3}]
    assert any("about 10% of the labels" in text for text in plan.warnings)
    assert not any("labels" in text for text in advise(table(np.full(99, 8)), wrong(0.01)).warnings)


def test_singletons_are_left_out_or_seen_in_two_views():
    plan = advise(table(np.array([1] * 500 + [4] * 100)), kind="faces")
    assert plan.recipe["data"]["split"]["min_images"] == 2
    assert any("500 of 600 identities" in text for text in plan.warnings)
    alone = advise(table(np.ones(50, np.int64)), kind="faces")
    assert terms(alone) == ["ntxent"]
    assert alone.recipe["data"]["sampler"]["images"] == 2 and alone.recipe["data"]["split"] is None
    assert any("supervised metric learning needs two images" in text for text in alone.warnings)


def test_one_identity_has_no_recipe():
    plan = advise(table(np.array([30])))
    assert plan.recipe is None and plan.problem
    assert any("one identity only" in text for text in plan.warnings)


def test_identities_on_one_camera_are_named_and_decide_the_protocol():
    names = np.array(["1", "2"] * 5 + ["1"] * 10, object)
    figures = describe(np.repeat(list("abcdefghij"), 2), cameras=names)
    plan = advise(figures, kind="people")
    assert plan.recipe["evaluation"]["protocols"] == ["reid"]
    assert any("5 of 10 identities were seen by one camera only" in text for text in plan.warnings)
    names[:4] = "1"
    plan = advise(describe(np.repeat(list("abcdefghij"), 2), cameras=names), kind="people")
    assert plan.recipe["evaluation"]["protocols"] == ["identification"]


def test_fewer_identities_than_a_batch_holds():
    plan = advise(table(np.full(5, 10)), kind="faces")
    assert plan.recipe["data"]["sampler"]["identities"] == 5
    assert any("5 training identities are fewer" in text for text in plan.warnings)


@pytest.mark.parametrize("several", [0, 3, 4, 9])
def test_a_split_column_that_says_nothing_of_training_leaves_two_to_test(several):
    counts = np.array([2] * several + [1] * 4)
    column = np.array(["x", "y"] * counts.sum(), object)[: counts.sum()]
    plan = advise(table(counts, splits=column))
    if several < 4:
        assert plan.recipe is None and "too few" in plan.problem
        return
    split = plan.recipe["data"]["split"]
    assert split["train_identities"] == several - 2 and split["min_images"] == 2


def test_a_test_side_of_singletons_is_named():
    column = np.array(["train"] * 8 + ["test"] * 3, object)
    plan = advise(table(np.array([4, 4, 1, 1, 1]), splits=column))
    assert any("no test identity has two images" in text for text in plan.warnings)


def test_the_split_column_is_followed():
    names = np.repeat([f"p{i}" for i in range(30)], 4)
    official = np.repeat(["train"] * 20 + ["query"] * 10, 4).astype(object)
    official[81::2] = "gallery"
    plan = advise(describe(names, splits=official), kind="people")
    assert plan.recipe["data"]["split"] is None and not any("more than one split" in t for t in plan.warnings)
    own = np.repeat(["a"] * 10 + ["b"] * 20, 4).astype(object)
    plan = advise(describe(names, splits=own), kind="people")
    assert plan.recipe["data"]["split"] == {"train": "b", "test": "a"}
    shared = np.tile(["train", "train", "test", "test"], 30).astype(object)
    plan = advise(describe(names, splits=shared), kind="people")
    assert any("30 identities are in more than one split" in text for text in plan.warnings)


def test_figures_that_are_quoted_stand_in_the_results():
    """An advice may not quote what docs/results.md does not say any more."""
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    market = text[text.index("Market-1501, 600/151 identity split:") :]
    plan = advise(table(np.full(300, 12)), kind="people")
    why = plan.lines[0].why
    for loss, figure in (("softmax + supcon", "55.6"), ("softmax + triplet", "45.0"), ("arcface", "19.8")):
        assert f"| {loss} | {figure} |" in market and f"{figure}%" in why
    length = next(line for line in plan.lines if line.topic == "length")
    assert "71.7% to 84.2%" in length.why
    assert "rank-1 71.7%" in text and "rank-1 84.2%" in text
    objective = (ROOT / "benchmarks/bakeoff.yaml").read_text(encoding="utf-8")
    assert "loss: arcface, scale: 24, margin: 0.3" in objective


@pytest.mark.parametrize(
    ("recipe", "kind", "counts", "columns"),
    [
        ("market_r18_cpu_long", "people", np.full(751, 17), {"cameras": np.array(list("12345"))}),
        ("lfw_r18_cpu", "faces", np.array([2] * 779 + [3] * 291 + [6] * 400 + [100] * 60), {}),
        ("omniglot", "other", np.full(242, 20), {}),
    ],
)
def test_measured_recipes_are_what_is_advised_for_their_data(recipe, kind, counts, columns):
    measured = read_recipe(find_recipe(recipe))
    cameras = np.resize(columns["cameras"], counts.sum()).astype(object) if columns else None
    plan = advise(table(counts, cameras=cameras), kind=kind).recipe
    assert plan["objective"] == measured["objective"]
    assert plan["data"]["sampler"] == measured["data"]["sampler"]
    assert plan["data"]["size"] == measured["data"]["size"]
    assert plan["data"]["augment"] == measured["data"]["augment"]
    assert plan["model"] == measured["model"]
    assert plan["optim"] == measured["optim"]
    assert plan["evaluation"]["protocols"] == measured["evaluation"]["protocols"]
