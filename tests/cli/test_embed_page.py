"""docs/embed.md against the command and the files that it writes."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest

from metricid.cli import embed as command

PAGE = (Path(__file__).parents[2] / "docs" / "embed.md").read_text(encoding="utf-8")


def rows(heading, header):
    text = PAGE.split(f"## {heading}\n")[1].split(f"| {header} |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()[2:]]


def test_the_page_has_every_option_with_its_default():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    stated = {}
    for names, default, _ in rows("Options", "option"):
        stated |= dict.fromkeys(re.findall(r"`(-[^`]+)`", names), default)
    expected = {flag for action in parser._actions for flag in action.option_strings}
    assert set(stated) == expected - {"-h", "--help"}
    for name, default in stated.items():
        action = parser._option_string_actions[name]
        if default.startswith("`"):
            assert default == f"`{action.default}`"
        else:
            assert action.required == (default == "required") and not action.default


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_page_has_every_key_of_a_card(dtype, tmp_path):
    from metricid.data.embedding_parts import PartFolder
    from metricid.data.embedding_set import EmbeddingSet
    from metricid.data.manifest import Manifest
    from metricid.data.sources import open_source

    class Model:
        output_dim = 3

        def describe(self):
            return {}

    parts = PartFolder(tmp_path / "e.parquet", 2, 2)
    options = argparse.Namespace(
        output=parts.target,
        normalise=False,
        flip=False,
        aligned=False,
        dtype=dtype,
        license=None,
        on_corrupt="error",
    )
    with parts.locked():
        parts.write(0, np.arange(2), np.ones((2, 3), np.float32), "")
        command._join(
            options, Model(), open_source(tmp_path), Manifest.from_columns(["a", "b"], ["a", "b"]), parts
        )
    named = {key for cells in rows("The file", "key") for key in re.findall(r"`([^`]+)`", cells[0])}
    card = EmbeddingSet.read(parts.target).card
    assert named == set(card) - {"how", "format"}
    assert (card["float16_error"] is None) == (dtype == "float32")
