"""Weights that change: values at given moments, plateaus, and what a wrong schedule gets."""

import math

import pytest
import torch
from torch import nn

from metricid.losses.schedules import Plateau, build_weight, weight_problems


def at(option, *moments):
    weight = build_weight(option)
    return [weight(moment) for moment in moments]


def test_ramps_stand_still_outside_their_stretch():
    assert at({"linear": [1, 3], "from": 0.2, "to": 0.6}, 0, 0.2, 0.4, 0.6, 1) == pytest.approx(
        [1, 1, 2, 3, 3]
    )
    expected = [2 + 2 * math.cos(math.pi * x) for x in (0, 0.3, 0.5, 1)]
    assert at({"cosine": [4, 0]}, 0, 0.3, 0.5, 1) == pytest.approx(expected)


def test_steps_hold_until_the_next_in_any_order_and_with_keys_that_became_text():
    for steps in ({0.5: 2, 0: 1, 1: 3}, {"0.5": 2, "0": 1, "1.0": 3}):
        assert at({"steps": steps}, 0, 0.4999, 0.5, 0.99, 1) == [1, 1, 2, 2, 3]


def test_plateau_counts_validations_without_a_better_value():
    weight = build_weight({"plateau": 8, "factor": 0.5, "patience": 2, "threshold": 0.1, "min": 3})
    seen = []
    for value in (0.5, 0.55, 0.7, 0.7, 0.75, 0.6, 0.6, 0.6):
        weight.observe(value)
        seen.append(weight(0.0))
    # 0.55 is no better than 0.5 by the threshold; 0.7 is. Then two without: 4. Two more: 3, the least.
    assert seen == [8, 8, 8, 8, 4, 4, 3, 3]
    raised = Plateau(1.0, factor=10.0, patience=1, highest=50.0)
    for _ in range(4):
        raised.observe(0.2)
    assert raised(0.0) == 50


def test_a_plateau_continues_from_its_state_and_keeps_its_precision():
    first, second = (nn.ModuleDict({"weight": Plateau(1 / 3, patience=3)}) for _ in range(2))
    for value in (0.1, 0.05):
        first["weight"].observe(value)
    second.load_state_dict(first.state_dict())
    second.to(torch.float16)
    for plateau in (first["weight"], second["weight"]):
        for _ in range(2):
            plateau.observe(0.1)
        assert plateau(0.0) == 1 / 6


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (-1, "must be at least 0, got -1"),
        (math.nan, "expected a number or a schedule such as {linear: [0, 1]}, got nan"),
        (True, "expected a number or a schedule such as {linear: [0, 1]}, got True"),
        ("1", "expected a number or a schedule such as {linear: [0, 1]}, got '1'"),
        ({}, "a schedule has exactly one of the keys linear, cosine, steps, plateau, got nothing"),
        (
            {"linear": [0, 1], "cosine": [0, 1]},
            "a schedule has exactly one of the keys linear, cosine, steps, plateau, got linear, cosine",
        ),
        ({"linear": [0]}, "linear: expected two weights of at least 0, such as [0, 1], got [0]"),
        ({"cosine": [0, -1]}, "cosine: expected two weights of at least 0, such as [0, 1], got [0, -1]"),
        ({"linear": [0, 1], "from": 0.5, "to": 0.5}, "needs 0 <= from < to <= 1, got 0.5 to 0.5"),
        ({"linear": [0, 1], "to": 2}, "needs 0 <= from < to <= 1, got 0.0 to 2"),
        ({"steps": {0: 1}, "to": 1}, "unknown key 'to' beside steps (allowed: none)"),
        (
            {"steps": [1, 2]},
            "steps: expected a mapping of progress to weight, such as {0: 1, 0.5: 0.1}, got [1, 2]",
        ),
        ({"steps": {0: 1, 1.5: 2}}, "steps: progress lies in [0, 1] and weights are at least 0, got 1.5: 2"),
        ({"steps": {0.5: 1}}, "steps: needs a weight at progress 0"),
        ({"plateau": "x"}, "plateau: expected a number of at least 0, got 'x'"),
        ({"plateau": 1, "patience": 0}, "patience: expected a whole number of at least 1, got 0"),
        ({"plateau": 1, "max": -1}, "max: expected a number of at least 0, got -1"),
    ],
)
def test_what_a_wrong_schedule_gets(option, expected):
    assert weight_problems(option) == [expected]


@pytest.mark.parametrize("option", [0, 2.5, {"plateau": 1, "max": math.inf}, {"steps": {0: 0}}])
def test_right_ones_get_nothing(option):
    assert weight_problems(option) == []
