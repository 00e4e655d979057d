"""The page of a comparison: one HTML file that loads nothing from elsewhere."""

import base64
import hashlib
from datetime import datetime
from functools import cache
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import metricid.report
from metricid._version import __version__
from metricid.comparison.charts import interval_charts, loss_charts, training_logs, validation_charts
from metricid.comparison.leaderboard import Leaderboard, notes
from metricid.comparison.writers import cells, failure_lines, header
from metricid.report.svg import SHAPES
from metricid.report.text import broken, shown, tail

_TEMPLATES = Path(metricid.report.__file__).parent / "templates"


def render(board: Leaderboard) -> str:
    """The page as far as the comparison has come."""
    style, script = (_text(name) for name in ("report.css", "report.js"))
    logs = training_logs(board)
    return (
        _environment()
        .get_template("compare.html")
        .render(
            title=board.plan.folder.name,
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
            version=__version__,
            board=board,
            header=header(board),
            rows=[
                list(zip(cells(board, row), _sort_keys(board, place), strict=True))
                for place, row in enumerate(board.rows)
            ],
            notes=notes(board),
            failures=failure_lines(board),
            intervals=interval_charts(board),
            validations=validation_charts(logs, board.by),
            losses=loss_charts(logs),
            objectives=[
                (entry.name, yaml.safe_dump(entry.objective, sort_keys=False, default_flow_style=None))
                for entry in board.plan.entries
            ],
            recipe=yaml.safe_dump(board.plan.recipe, sort_keys=False),
            style=Markup(style),
            style_hash=_hash(style),
            script=Markup(script),
            script_hash=_hash(script),
        )
    )


def _sort_keys(board: Leaderboard, place: int) -> list[str]:
    """What the columns are sorted by: plain numbers, empty where there is none."""
    row = board.rows[place]
    keys = [row.name]
    keys += [str(row.measures[c].value) if c in row.measures else "" for c in board.columns]
    found = row.difference
    keys.append("" if found is None else "0" if found.verdict == "best" else str(found.mean or ""))
    keys += ["" if mean is None else str(mean.value) for mean in (row.speed, row.memory, row.seconds)]
    return [*keys, str(row.finished)]


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
