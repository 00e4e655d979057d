"""Recipes as text: what is written is what is read."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metricid.advice import advise, describe
from metricid.advice.recipe import complete, flow, render
from metricid.config import read_recipe

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
    st.sampled_from(
        ["on", "null", "True", "1e5", "1e-3", "0x1", "1_000", "~", "a: b", "# x", "12:30", "", "-"]
    ),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


def reread(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        return read_recipe(file)


@given(VALUES)
def test_a_value_is_read_back_as_it_is(value):
    assert reread(f"name: x\nvalue: {flow(value)}\n")["value"] == value


@settings(max_examples=30, deadline=None)
@given(root=TEXTS.filter(bool), heading=TEXTS)
def test_a_recipe_is_read_back_whatever_its_names(root, heading):
    plan = advise(describe(np.repeat([f"p{i}" for i in range(20)], 4)), kind="faces")
    values = complete(plan, {"train": "folder", "root": root}, "mine")
    assert reread(render(values, plan.lines, (f"Of {heading}\nevil: true",))) == values


def test_each_reason_stands_above_its_choice():
    plan = advise(describe(np.repeat([f"p{i}" for i in range(20)], 4)), kind="faces")
    values = complete(plan, {"train": "folder", "root": "photos"}, "mine")
    lines = render(values, plan.lines, ()).splitlines()
    assert max(map(len, [line for line in lines if line.lstrip().startswith("#")])) <= 110
    for line in plan.lines:
        at = next(i for i, text in enumerate(lines) if text.lstrip().startswith(f"# {line.topic}: "))
        below = next(text.strip() for text in lines[at:] if not text.lstrip().startswith("#"))
        assert below.startswith(line.section.split(".")[-1] + ":")
