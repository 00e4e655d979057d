"""docs/export.md against the command."""

import argparse
import re
from pathlib import Path

from metricid.cli import export as command


def test_the_page_has_every_option_with_its_default():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    table = page.split("## Options")[1].split("\n\n")[1]
    stated = {}
    for line in table.splitlines()[2:]:
        names, default, _ = line.strip("| ").split(" | ")
        stated |= dict.fromkeys(re.findall(r"`(-[^`]+)`", names), default)
    expected = {flag for action in parser._actions for flag in action.option_strings}
    assert set(stated) == expected - {"-h", "--help"}
    for name, default in stated.items():
        action = parser._option_string_actions[name]
        if default.startswith("`"):
            assert default == f"`{command.OF_INT8.get(action.dest, action.default)}`"
        else:
            assert action.required == (default == "required") and not action.default
