"""A recipe as YAML text, with the reason for each choice above it."""

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metricid.advice.plan import Line, Plan

WIDTH = 110
_PLAIN = re.compile(
    r"[A-Za-z][A-Za-z0-9_]*"
)  # a text that YAML takes for nothing else, apart from these words
_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf")


def complete(plan: Plan, place: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A whole recipe.

    Args:
        plan: one with a recipe.
        place: what `data` says of where the images are (`train`, `root`, `manifest`, `options`).
        name: of the run.
    """
    assert plan.recipe is not None
    rest = {key: part for key, part in plan.recipe.items() if key != "data"}
    return {"name": name, "data": {**place, **plan.recipe["data"]}, **rest}


def render(values: Mapping[str, Any], lines: Iterable[Line], header: Sequence[str]) -> str:
    """A recipe as YAML.

    Args:
        values: as `complete` makes them.
        lines: their reasons.
        header: paragraphs for its head.
    """
    reasons: dict[str, list[Line]] = {}
    for line in lines:
        reasons.setdefault(line.section, []).append(line)
    out = [text for paragraph in header for text in _comment(paragraph)]
    for key, part in values.items():
        out += _reasons(reasons.get(key, ()))
        if key == "data":
            out.append("data:")
            for inner, value in part.items():
                out += _reasons(reasons.get(f"data.{inner}", ()), "  ")
                out.append(f"  {inner}: {flow(value)}")
        elif isinstance(part, list):
            out += [f"{key}:", *(f"  - {flow(entry)}" for entry in part)]
        else:
            out.append(f"{key}: {flow(part)}")
    return "\n".join(out) + "\n"


def flow(value: Any) -> str:
    """A value as YAML on one line, which the recipe reader gives back as it is.

    Args:
        value: mappings with text keys, lists, texts, finite numbers, truth values, None.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(key)}: {flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return '"' + "".join(map(_character, value)) + '"' if isinstance(value, str) else json.dumps(value)


def _character(character: str) -> str:
    """One character within double quotes, escaped where YAML would not read it back."""
    if character in '"\\' or not character.isprintable():
        return f"\\U{ord(character):08x}" if ord(character) > 0xFFFF else f"\\u{ord(character):04x}"
    return character


def _reasons(lines: Iterable[Line], indent: str = "") -> list[str]:
    return [
        text
        for line in lines
        for text in _comment(
            f"{line.topic}: {line.choice}. Figures: {line.basis}. Why: {line.why} ({line.source})", indent
        )
    ]


def _comment(text: str, indent: str = "") -> list[str]:
    plain = " ".join("".join(c if c.isprintable() else "\ufffd" for c in text).split(" "))
    return textwrap.wrap(
        plain,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )
