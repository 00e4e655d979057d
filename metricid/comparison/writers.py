"""A leaderboard as Markdown, CSV, JSON, and a table for the terminal."""

import csv
import io
import json
import math
from typing import Any

from metricid.comparison.leaderboard import Leaderboard, Row, notes
from metricid.comparison.statistics import Difference, Mean
from metricid.files import atomic_write
from metricid.report.text import shown


def write_all(board: Leaderboard, page: str) -> None:
    """Writes leaderboard.md, .csv, .json and compare.html into the folder of the comparison.

    Raises:
        InputError: a file cannot be written.
    """
    texts = {
        "leaderboard.md": markdown(board),
        "leaderboard.csv": table_csv(board),
        "leaderboard.json": json.dumps(values(board), indent=2) + "\n",
        "compare.html": page,
    }
    for name, text in texts.items():
        with atomic_write(board.plan.folder / name, "w") as file:
            file.write(text)


def header(board: Leaderboard) -> list[str]:
    """The head of the table."""
    memory = "GPU MiB" if board.on_gpu else "process MiB"
    return ["objective", *board.columns, f"{board.by} against the best", "img/s", memory, "seconds", "runs"]


def cells(board: Leaderboard, row: Row) -> list[str]:
    """The cells of a row, as people read them."""
    measures = [measure_cell(row, column) for column in board.columns]
    runs = f"{row.finished} of {len(board.plan.seeds)}"
    tail = [_plain(row.speed), _plain(row.memory), _plain(row.seconds), runs]
    return [row.name, *measures, difference_cell(row.difference), *tail]


def measure_cell(row: Row, column: str) -> str:
    """`83.11 ± 0.52` in percent; `*` where the data cannot support it."""
    mean = row.measures.get(column)
    if mean is None:
        return "-"
    text = f"{100 * mean.value:.2f}" + ("*" if column in row.starred else "")
    return text if mean.half is None else f"{text} ± {100 * mean.half:.2f}"


def difference_cell(difference: Difference | None) -> str:
    """What can be said of a row against the best, with the paired difference in percentage points."""
    if difference is None:
        return "-"
    if difference.verdict == "best":
        return "best"
    if difference.mean is None:
        return "noise unknown (no common seed)"
    gap = f"{100 * difference.mean:+.2f}"
    if difference.half is None:
        return f"{gap}, noise unknown (one seed)"
    gap += f" ± {100 * difference.half:.2f}"
    words = {
        "noise": "not distinguishable",
        "worse": "worse",
        "unknown": "noise unknown (the seeds differ equally)",
    }
    return f"{gap}, {words[difference.verdict]}"


def failure_lines(board: Leaderboard) -> list[str]:
    """One line for each failed run."""
    return [f"{row.name}, {shown(failure, 300)}" for row in board.rows for failure in row.failures]


def markdown(board: Leaderboard) -> str:
    """The leaderboard as a page of Markdown."""
    head = header(board)
    lines = [f"# {board.plan.folder.name}", "", "Rates in percent.", ""]
    lines += ["| " + " | ".join(map(_escaped, head)) + " |"]
    lines += ["|---" + "|--:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(map(_escaped, cells(board, row))) + " |" for row in board.rows]
    lines += ["", *(f"- {_escaped(note)}" for note in notes(board))]
    failures = failure_lines(board)
    if failures:
        lines += ["", "## Failed runs", "", *(f"- {_escaped(line)}" for line in failures)]
    return "\n".join(lines) + "\n"


def text_table(board: Leaderboard) -> str:
    """The leaderboard for a terminal."""
    table = [header(board), *(cells(board, row) for row in board.rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    lines += ["", *(f"note: {note}" for note in notes(board))]
    lines += [f"failed: {line}" for line in failure_lines(board)]
    return "\n".join(lines)


def table_csv(board: Leaderboard) -> str:
    """One line for each objective; rates as fractions, empty where there is no number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["rank", "objective"]
    for column in board.columns:
        head += [column, f"{column} half interval", f"{column} by seed"]
    head += ["difference to the best", "difference half interval", "verdict"]
    head += ["images per second", "memory MiB", "seconds", "finished", "planned", "failures"]
    writer.writerow(head)
    for place, row in enumerate(board.rows, start=1):
        line: list[Any] = [place if board.by in row.measures else "", row.name]
        for column in board.columns:
            mean = row.measures.get(column)
            by_seed = " ".join("" if v is None else f"{v:.6f}" for v in row.values.get(column, []))
            line += [_number(mean.value if mean else None), _number(mean.half if mean else None), by_seed]
        found = row.difference
        line += ["", "", ""] if found is None else [_number(found.mean), _number(found.half), found.verdict]
        line += [_number(m.value if m else None) for m in (row.speed, row.memory, row.seconds)]
        line += [row.finished, len(board.plan.seeds), "; ".join(row.failures)]
        writer.writerow(line)
    return out.getvalue()


def values(board: Leaderboard) -> dict[str, Any]:
    """The leaderboard for programs; rates as fractions."""
    plan = board.plan
    return {
        "folder": str(plan.folder),
        "by": board.by,
        "images": plan.images,
        "budget_seconds": plan.budget,
        "trial_images_per_second": plan.trial,
        "trial_failures": plan.left_out,
        "seeds": list(plan.seeds),
        "finished": board.finished,
        "runs": board.total,
        "protocols": list(board.protocols),
        "memory_of": "gpu" if board.on_gpu else "process",
        "notes": notes(board),
        "rows": [_row_values(board, place, row) for place, row in enumerate(board.rows, start=1)],
    }


def _row_values(board: Leaderboard, place: int, row: Row) -> dict[str, Any]:
    found = row.difference
    return {
        "rank": place if board.by in row.measures else None,
        "objective": row.name,
        "terms": next(entry.objective for entry in board.plan.entries if entry.name == row.name),
        "measures": {
            name: {
                "mean": mean.value,
                "half_interval": mean.half,
                "by_seed": row.values[name],
                "supported": name not in row.starred,
            }
            for name, mean in row.measures.items()
        },
        "against_best": None
        if found is None
        else {
            "verdict": found.verdict,
            "mean": found.mean,
            "half_interval": found.half,
            "seeds": found.count,
        },
        "images_per_second": row.speed and row.speed.value,
        "seconds": row.seconds and row.seconds.value,
        "memory_mib": row.memory and row.memory.value,
        "finished": row.finished,
        "waiting": row.waiting,
        "failures": list(row.failures),
    }


def _plain(mean: Mean | None) -> str:
    if mean is None:
        return "-"
    return f"{mean.value:,.1f}" if mean.value < 100 else f"{mean.value:,.0f}"


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _escaped(text: str) -> str:
    return shown(text, 600).replace("|", "\\|").replace("<", "&lt;")
