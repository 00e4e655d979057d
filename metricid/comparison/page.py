"""The page of a comparison: one HTML file that loads nothing from elsewhere."""

from datetime import datetime

import yaml

from metricid._version import __version__
from metricid.comparison.charts import interval_charts, loss_charts, training_logs, validation_charts
from metricid.comparison.leaderboard import Leaderboard, notes
from metricid.comparison.writers import cells, failure_lines, header
from metricid.report.templating import fill


def render(board: Leaderboard) -> str:
    """The page as far as the comparison has come."""
    logs = training_logs(board)
    return fill(
        "compare.html",
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
