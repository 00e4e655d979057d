"""What a wrong list of terms is told, in the words of the recipe."""

import re
from typing import Any

import pytest

from metricid.losses import LOSSES, Objective
from metricid.losses.distillation import DISTILLATION
from metricid.losses.recipe import loss_options, partner, term_names
from metricid.losses.recipe_checks import IN_OWN_LOOPS, list_problems
from metricid.losses.weights import REGULARISERS

ID = {"loss": "softmax"}
TEACHER = {"loss": "embedding_distillation", "teacher": "runs/big"}


def told(*terms: Any) -> str:
    return "\n".join(f"{path}: {text}" for path, text in list_problems(list(terms)))


GOOD: list[list[dict]] = [
    [ID, {"loss": "regularface"}],
    [ID, {"loss": "l2", "of": "network", "weight": 1e-4}],
    [{"loss": "center", "on": "features"}, ID, {"loss": "separation", "of": "center", "form": "energy"}],
    [ID, TEACHER],
    [ID, TEACHER | {"on": "features", "form": "cosine", "weight": {"plateau": 1, "factor": 2}}],
    [TEACHER],
    [ID, {"loss": "logit_distillation", "teacher": "runs/big", "temperature": 2.0}],
    [ID, {"loss": "virtual_adversarial", "epsilon": 4.0, "start": 0.5}],
    [{"loss": "arcface", "name": "id"}, {"loss": "trades", "of": "id", "steps": 3}],
    [ID, {"loss": "domain_adversarial"}],
    [ID, {"loss": "domain_adversarial", "column": "room", "hidden": [8], "form": "hinge"}],
    [ID, {"loss": "zero_mean", "of": "vector"}],
    [ID, {"loss": "triplet", "weight": 0}],
    [ID | {"weight": {"linear": [0, 1]}}],
    [
        ID | {"weight": {"linear": [1, 0], "to": 0.5}},
        {"loss": "arcface", "weight": {"steps": {0: 0, 0.5: 1}}},
    ],
    [ID | {"weight": {"plateau": 0.1, "factor": 2}}],
]


@pytest.mark.parametrize("terms", GOOD, ids=lambda terms: terms[-1]["loss"])
def test_good_lists_have_no_problems(terms: list[dict]) -> None:
    assert told(*terms) == ""


@pytest.mark.parametrize("terms", [None, [], {}, "softmax", 3])
def test_no_list(terms: Any) -> None:
    assert list_problems(terms) == [("", "needs a list of at least one term, such as [{loss: softmax}]")]


BAD: list[tuple[list[Any], str]] = [
    (["softmax"], "0: expected a mapping such as {loss: softmax}, got 'softmax'"),
    (
        [{}],
        "0.loss: needs the key 'loss', the name of one, such as softmax (all: docs/losses.md, or python -m "
        "metricid.losses.table --names)",
    ),
    ([{"loss": ["softmax"]}], "0.loss: "),
    ([{"loss": "sofmax"}], "0.loss: unknown loss 'sofmax'; did you mean 'softmax' or 'mv_softmax' or "),
    ([{"loss": "rkd_distanc"}], "0.loss: unknown loss 'rkd_distanc'; did you mean 'rkd_distance' or "),
    ([{"loss": "smooth_l1"}], "0.loss: 'smooth_l1' is for a number in a manifest column; add task: number"),
    (
        [{"loss": "center_los"}],
        "0.loss: unknown loss 'center_los'; did you mean 'center'? (all: docs/losses.md, or python -m ",
    ),
    (
        [{"loss": "xyz"}],
        "0.loss: unknown loss 'xyz' (all: docs/losses.md, or python -m metricid.losses.table --names; your "
        "own: set METRICID_IMPORT=its_module)",
    ),
    (
        [{"task": "number", "column": "age", "loss": "ms"}],
        "0.loss: unknown task loss 'ms'; did you mean 'mse'? (one of: ",
    ),
    ([ID | {"name": 3}], "0.name: expected a text, got 3"),
    ([ID | {"name": "a b"}], "0.name: 'a b' cannot be a name: take letters, digits"),
    ([ID | {"name": "keys"}], "0.name: 'keys' cannot be a name"),
    ([ID | {"on": "image"}], "0.on: expected 'features' or 'embedding', got 'image'"),
    ([ID | {"weight": -1}], "0.weight: must be at least 0, got -1"),
    ([ID | {"start": 0.5, "end": 0.5}], "0.start: needs 0 <= start < end <= 1, got 0.5 to 0.5"),
    ([ID | {"end": 2}], "0.end: needs 0 <= start < end <= 1"),
    ([ID | {"label_smoothing": 2.0}], "0.label_smoothing: must lie in [0, 1), got 2.0"),
    ([ID | {"margin": 0.5}], "0.margin: unknown option 'margin'"),
    ([ID | {"name": "a"}, ID | {"name": "a"}], "1.name: 'a' is the name of another term"),
    ([ID | {"end": 0.4}, ID | {"start": 0.6}], ": no term is on between 0.4 and 0.6 of the training"),
    ([ID | {"weight": 0}], ": between 0 and 1 of the training every loss has the weight 0 or is off"),
    ([ID | {"weight": 0.0}, {"loss": "triplet", "start": 0.5}], ": between 0 and 0.5 of the training every"),
    ([ID | {"weight": 0}, {"loss": "l2", "of": "network"}], ": between 0 and 1 of the training every loss"),
    ([{"loss": "l2", "of": "network"}], ": between 0 and 1 of the training every loss"),
    ([ID | {"weight": {"linear": [0, 0]}}], ": between 0 and 1 of the training every loss"),
    ([ID | {"weight": {"cosine": [0, 1], "from": 0.25}}], ": between 0 and 0.25 of the training every loss"),
    ([ID | {"weight": {"linear": [1, 0], "to": 0.75}}], ": between 0.75 and 1 of the training every loss"),
    ([ID | {"weight": {"steps": {0: 1, 0.5: 0, 0.75: 2}}}], ": between 0.5 and 0.75 of the training every"),
    ([ID | {"weight": {"plateau": 0, "min": 1}}], ": between 0 and 1 of the training every loss"),
    ([ID | {"teacher": "runs/big"}], "0.teacher: is not for loss softmax"),
    ([ID | {"column": "room"}], "0.column: is not for loss softmax"),
    ([ID, {"loss": "triplet", "of": "softmax"}], "1.of: is not for loss triplet"),
    ([ID, {"loss": "zero_mean", "of": "softmax"}], "1.of: "),
    ([ID, {"loss": "regularface", "teacher": "x"}], "1.teacher: is not for loss regularface"),
    (
        [ID, {"loss": "regularface", "on": "features"}],
        "1.on: is not for loss regularface, which reads weights",
    ),
    (
        [ID, {"loss": "trades", "on": "features"}],
        "1.on: is not for loss trades, which reads what the term with",
    ),
    ([ID, {"loss": "regularface", "of": "network"}], "1.of: regularface takes one matrix"),
    ([ID, {"loss": "regularface", "of": 3}], "1.of: expected a text, got 3"),
    ([ID, {"loss": "rkd_angle"}], "1.teacher: is required: a run folder or checkpoint of metricid"),
    ([ID, {"loss": "rkd_angle", "teacher": 3}], "1.teacher: expected a text, got 3"),
    ([ID, TEACHER | {"of": "softmax"}], "1.of: is not for loss embedding_distillation"),
    ([ID, TEACHER | {"form": "kl"}], "1.form: "),
    ([ID, TEACHER | {"teacher_dim": 8}], "1.teacher_dim: unknown option 'teacher_dim'"),
    ([ID, TEACHER | {"temperature": 2.0}], "1.temperature: unknown option 'temperature'"),
    ([ID, {"loss": "trades", "steps": 0}], "1.steps: must be at least 1, got 0"),
    ([ID, {"loss": "trades", "mean": [0.5]}], "1.mean: unknown option 'mean'"),
    ([ID, {"loss": "trades", "column": "room"}], "1.column: is not for loss trades"),
    ([ID, {"loss": "domain_adversarial", "of": "softmax"}], "1.of: is not for loss domain_adversarial"),
    ([ID, {"loss": "domain_adversarial", "gamma": 0.0}], "1.gamma: must be positive, got 0.0"),
    ([ID, {"loss": "gan_generator"}], "1.loss: gan_generator needs a discriminator with steps of its own"),
    ([{"loss": "regularface"}], "0: regularface needs a term with class vectors beside it, such as softmax"),
    ([{"loss": "triplet"}, {"loss": "trades"}], "1: trades needs a term with class logits beside it"),
    ([{"loss": "center"}, {"loss": "trades"}], "1: trades needs a term with class logits beside it"),
    (
        [{"loss": "center", "update": "alpha"}, {"loss": "regularface"}],
        "1: regularface needs a term with class vectors beside it",
    ),
    (
        [{"loss": "center", "update": "alpha"}, ID, {"loss": "regularface", "of": "center"}],
        "2.of: no term 'center' with class vectors (one of: softmax)",
    ),
    (
        [ID, {"loss": "center"}, {"loss": "logit_distillation", "teacher": "x", "of": "center"}],
        "2.of: no term 'center' with class logits (one of: softmax)",
    ),
    (
        [ID, {"loss": "trades", "of": "network"}],
        "1.of: no term 'network' with class logits (one of: softmax)",
    ),
    (
        [ID, {"loss": "regularface", "name": "me", "of": "me"}],
        "1.of: no term 'me' with class vectors (one of: softmax)",
    ),
    (
        [{"loss": "triplet"}, {"loss": "trades", "of": "softmax"}],
        "1.of: no term 'softmax' with class logits; add one, such as softmax",
    ),
    (
        [ID, TEACHER, {"loss": "regularface", "of": "embedding_distillation"}],
        "2.of: no term 'embedding_distillation' with class vectors",
    ),
]


@pytest.mark.parametrize(("terms", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_a_mistake_is_named_where_it_stands(terms: list[Any], message: str) -> None:
    found = list_problems(terms)
    assert len(found) == 1, found
    assert f"{found[0][0]}: {found[0][1]}".startswith(message)
    assert "\n" not in found[0][1]


def test_all_mistakes_are_told_at_once_and_by_from_config_too() -> None:
    terms = [
        ID | {"margin": 1},
        {"loss": "rkd_angle", "on": "pixels"},
        {"loss": "trades", "steps": 0, "epsilon": -1.0},
    ]
    found = told(*terms)
    for line in ("0.margin: ", "1.on: ", "1.teacher: ", "2.steps: ", "2.epsilon: "):
        assert re.search(f"^{re.escape(line)}", found, re.MULTILINE), line
    with pytest.raises(ValueError, match=r"objective.0.margin: .*objective.2.epsilon: ") as error:
        Objective.from_config(terms, 3, 4, 4)
    assert "\n" not in str(error.value)


def test_terms_are_called_after_their_loss_and_find_the_first_that_fits() -> None:
    terms = [{"loss": "triplet"}, ID, ID, {"loss": "trades"}, {"loss": "trades", "of": "softmax_2"}]
    assert term_names(terms) == ["triplet", "softmax", "softmax_2", "trades", "trades_2"]
    assert [partner(terms, place) for place in (3, 4)] == [1, 2]
    assert loss_options({"loss": "l1", "of": "network", "weight": 2}) == {"loss": "l1"}


def test_every_loss_but_those_for_own_loops_can_stand_in_a_recipe() -> None:
    for registry, keys in ((LOSSES, {}), (REGULARISERS, {}), (DISTILLATION, {"teacher": "x"})):
        for name in registry.names():
            assert told(ID | {"name": "first"}, {"loss": name, **keys}) == "", name
    for name in IN_OWN_LOOPS:
        assert "domain_adversarial" in told(ID, {"loss": name})
