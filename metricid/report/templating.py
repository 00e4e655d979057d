"""Templates of pages that are one file, run no script but their own and load nothing."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from metricid.report.svg import SHAPES
from metricid.report.text import broken, shown, tail

_TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, **values: Any) -> str:
    """A page: `base.html` with the blocks of a template, style and script inside.

    Args:
        template: its file name.
        **values: what it shows; text is escaped.
    """
    style, script = (_text(name) for name in ("report.css", "report.js"))
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            style_hash=_hash(style),
            script=Markup(script),
            script_hash=_hash(script),
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"shown": shown, "tail": tail, "broken": broken}
    environment.globals["shapes"] = SHAPES
    return environment


def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy allows: this text and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
