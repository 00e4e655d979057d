"""The tables of docs/losses.md are those of the code, and say something of every loss."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from metricid.losses import ArcFace, IslandLoss
from metricid.losses.table import FACTS, KINDS, REGISTRIES, argument_docs, fill, options

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
EVERY = [
    pytest.param(registry.get(name), id=f"{registry.kind}:{name}")
    for registry in REGISTRIES.values()
    for name in registry.names()
]


def test_the_page_is_what_the_code_gives() -> None:
    hint = "run: python -m metricid.losses.table < docs/losses.md > page && mv page docs/losses.md"
    assert fill(PAGE) == PAGE, hint


def test_the_command_prints_the_page() -> None:
    """Also from a page whose tables are gone."""
    bare = re.sub(r"(<!-- losses: \w+ -->\n).*?(<!-- end -->)", r"\1\2", PAGE, flags=re.DOTALL)
    assert len(bare) < len(PAGE) / 2
    printed = subprocess.run(
        [sys.executable, "-m", "metricid.losses.table"], input=bare, capture_output=True, text=True, cwd=ROOT
    )
    assert printed.stdout == PAGE, printed.stderr


@pytest.mark.parametrize("loss", EVERY)
def test_every_loss_says_what_it_is_and_what_its_options_mean(loss: type) -> None:
    for fact in FACTS:
        text = getattr(loss, fact)
        assert isinstance(text, str) and text and "\n" not in text and "`" not in text, fact
    assert loss.kind in KINDS  # type: ignore[attr-defined]
    assert set(options(loss)) <= set(argument_docs(loss))


def test_every_loss_has_one_row_and_one_section() -> None:
    names = [name for registry in REGISTRIES.values() for name in registry.names()]
    assert len(set(names)) == len(names)
    table = re.search(r"<!-- losses: table -->.*?<!-- end -->", PAGE, re.DOTALL)
    assert table is not None
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \| ", table.group(), re.MULTILINE)
    assert sorted(rows) == sorted((name, name) for name in names)
    headings = re.findall(r"^#+ (\w+)$", PAGE, re.MULTILINE)
    assert all(headings.count(name) == 1 for name in names)
    for line in table.group().splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        assert not line.startswith("|") or len(cells) == 8, line


def test_options_are_read_from_signature_and_docstring() -> None:
    assert options(IslandLoss) == {"pair_weight": 10.0, "reduction": "sum", "init_std": 0.01}
    assert argument_docs(ArcFace)["margin"].startswith("m in radians")
    assert argument_docs(IslandLoss)["reduction"].endswith("square of the number of classes.")
    assert "[`island`](#island) | center | " in PAGE


def test_the_names_alone() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "metricid.losses.table", "--names"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    lines = dict(line.split(": ") for line in printed.splitlines())
    assert list(lines) == list(KINDS)
    names = [name for names in lines.values() for name in names.split(", ")]
    assert sorted(names) == sorted(name for registry in REGISTRIES.values() for name in registry.names())
    assert "island" in lines["center"].split(", ") and "mae" in lines["regression"].split(", ")


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="losses: table"):
        fill("# Losses\n")
