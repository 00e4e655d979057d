"""Names and options are checked against signatures."""

from typing import Literal

import pytest

from metricid.registry import Registry, matches


@pytest.fixture
def registry():
    made = Registry("shape", key="kind")

    @made.register("box")
    class Box:
        def __init__(
            self, width: int, side: float = 1.0, mode: Literal["a", "b"] = "a", note: str | None = None
        ):
            self.width, self.side, self.mode, self.note = width, side, mode, note

    return made


def test_builds_with_options_and_the_callers_arguments(registry):
    box = registry.build({"kind": "box", "side": 2, "mode": "b"}, width=3, unused=9)
    assert (box.width, box.side, box.mode) == (3, 2, "b")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "needs the key 'kind'"),
        ({"kind": "bax"}, "did you mean 'box'"),
        ({"kind": "box"}, "width: is required"),
        ({"kind": "box", "width": True}, "width: expected an integer, got True"),
        ({"kind": "box", "width": 1, "side": "x"}, "side: expected a number"),
        ({"kind": "box", "width": 1, "mode": "c"}, "mode: expected 'a' or 'b'"),
        ({"kind": "box", "width": 1, "note": 3}, "note: expected a text or null"),
        ({"kind": "box", "width": 1, "sid": 3}, "did you mean 'side'"),
    ],
)
def test_each_mistake_has_its_line(registry, options, expected):
    assert any(expected in line for line in registry.problems(options)), registry.problems(options)
    with pytest.raises(ValueError, match="shape"):
        registry.build(options)


def test_all_mistakes_come_at_once(registry):
    assert len(registry.problems({"kind": "box", "side": "x", "mode": "c", "zzz": 1})) == 4


def test_a_name_is_registered_once(registry):
    with pytest.raises(ValueError, match="twice"):
        registry.register("box")(int)


def test_types_of_lists_and_tuples():
    assert matches([1, 2], tuple[int, int])
    assert not matches([1], tuple[int, int])
    assert matches([1.0, 2], list[float])
    assert not matches("ab", list[str])
