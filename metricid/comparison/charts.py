"""The charts of a comparison: means with intervals, and the curves of the trainings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from metricid.comparison.leaderboard import Leaderboard
from metricid.report.run_files import TrainingLog, read_log
from metricid.report.svg import WIDTH, Axis, Chart, LegendEntry, span
from metricid.report.text import shown

_STYLES = 6  # lines that can be told apart in one chart
_POINTS = 150
_NAME, _RIGHT, _TOP, _LINE, _BOTTOM = 185, 18, 8, 24, 38  # of an interval chart, in its own units
Floats = NDArray[np.float64]
Series = tuple[Floats, Floats]


@dataclass
class IntervalChart:
    """One line for each objective: its runs as dots, the mean as a diamond, the interval as a bar.

    Attributes:
        title: heading above the chart.
        rows: (name, mean, half interval or None, values), from top to bottom, as fractions.
        note: sentence under the chart.
    """

    title: str
    rows: Sequence[tuple[str, float, float | None, Sequence[float]]]
    note: str = ""
    legend: list[LegendEntry] = field(default_factory=list)

    def svg(self) -> Markup:
        """The chart as an SVG element."""
        ends = [
            v
            for _, mean, half, values in self.rows
            for v in (*values, mean - (half or 0), mean + (half or 0))
        ]
        low, high = span(ends)
        axis = Axis(self.title, max(low, 0.0), max(min(high, 1.0), low + 1e-6), percent=True)
        bottom = _TOP + _LINE * len(self.rows)
        told = "; ".join(
            f"{name} {mean:.1%}" + ("" if half is None else f" plus or minus {half:.1%}")
            for name, mean, half, _ in self.rows
        )
        parts = [
            Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">').format(
                WIDTH, bottom + _BOTTOM, f"{self.title}. {told}."
            )
        ]
        for value, text in axis.ticks():
            x = self._x(axis, value)
            parts.append(
                Markup(
                    '<line class="grid" x1="{x}" y1="{}" x2="{x}" y2="{}"/>'
                    '<text class="tick" x="{x}" y="{}" text-anchor="middle">{}</text>'
                ).format(_TOP, bottom, bottom + 15, text, x=x)
            )
        for place, (name, mean, half, values) in enumerate(self.rows):
            parts.append(self._line(axis, _TOP + _LINE * (place + 0.5), name, mean, half, values))
        parts.append(
            Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(_NAME, _TOP, bottom, WIDTH - _RIGHT)
        )
        parts.append(Markup("</svg>"))
        return Markup("").join(parts)

    def _line(
        self, axis: Axis, y: float, name: str, mean: float, half: float | None, values: Sequence[float]
    ) -> Markup:
        x = self._x(axis, mean)
        out = Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}<title>{}</title></text>').format(
            _NAME - 8, y + 4, shown(name, 26), shown(name)
        )
        if half is not None:
            out += Markup('<line class="line s0" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                self._x(axis, mean - half), self._x(axis, mean + half), y=y
            )
        for value in values:
            out += Markup('<circle class="dot s1" cx="{}" cy="{}" r="2.5"/>').format(self._x(axis, value), y)
        return out + Markup(
            '<path class="point s0" transform="translate({} {})" d="M0 -5L5 0L0 5L-5 0Z"/>'
        ).format(x, y)

    @staticmethod
    def _x(axis: Axis, value: float) -> str:
        return f"{_NAME + (WIDTH - _NAME - _RIGHT) * float(axis.place(value)):.1f}"


def interval_charts(board: Leaderboard) -> list[IntervalChart]:
    """A chart of means for each measure of the leaderboard, each ranked by itself."""
    charts = []
    for column in board.columns:
        rows = [row for row in board.rows if column in row.measures]
        if not rows:
            continue
        rows.sort(key=lambda row: -row.measures[column].value)
        lines = [
            (
                row.name,
                row.measures[column].value,
                row.measures[column].half,
                [value for value in row.values[column] if value is not None],
            )
            for row in rows
        ]
        note = "Diamond: mean; dots: single seeds; bar: 95 % interval of the mean."
        charts.append(
            IntervalChart(column, lines, note if len(board.plan.seeds) > 1 else "One seed: no interval.")
        )
    return charts


def training_logs(board: Leaderboard) -> dict[str, list[TrainingLog]]:
    """The logs of each objective's runs, as far as they have come; the best objective first."""
    entries = {entry.name: entry for entry in board.plan.entries}
    found = {}
    for row in board.rows:
        folders = (board.plan.run(entries[row.name], seed).folder for seed in board.plan.seeds)
        logs = [log for log in map(_log, folders) if log is not None and log.windows]
        if logs:
            found[row.name] = logs
    return found


def validation_charts(logs: Mapping[str, Sequence[TrainingLog]], by: str) -> list[Chart]:
    """The measure that the leaderboard ranks by, or the first that validations have, over the images seen."""
    measure = next((name for log in _all(logs) if (name := _validated(log, by)) is not None), None)
    if measure is None:
        return []
    series = {name: _mean([_validation(log, measure) for log in own]) for name, own in logs.items()}
    series = {name: line for name, line in series.items() if len(line[0])}
    if not series:
        return []
    low, high = span(np.concatenate([y for _, y in series.values()]))
    y = Axis(measure, max(low, 0.0), max(min(high, 1.0), low + 1e-6), percent=True)
    x = Axis("images seen", 0.0, max(float(line[0][-1]) for line in series.values()))
    charts = []
    names = list(series)
    for first in range(0, len(names), _STYLES):
        some = names[first : first + _STYLES]
        title = "Validation" + (f", rank {first + 1} to {first + len(some)}" if len(names) > _STYLES else "")
        told = "; ".join(f"{name} ends at {series[name][1][-1]:.1%}" for name in some)
        chart = Chart(title, f"{measure} on the validation identities. {told}.", x, y, "Means over seeds.")
        for style, name in enumerate(some):
            chart.line(*series[name], name, style, dots=len(series[name][0]) < 40)
        charts.append(chart)
    return charts


def loss_charts(logs: Mapping[str, Sequence[TrainingLog]]) -> list[Chart]:
    """The terms of each objective over the images seen: mean over seeds, and their range as an area."""
    charts = []
    for name, own in logs.items():
        terms = list(dict.fromkeys(term for log in own for window in log.windows for term in window.terms))
        lines = {term: [_term(log, term) for log in own] for term in terms[:_STYLES]}
        means = {term: _mean(runs) for term, runs in lines.items()}
        values = [y for runs in lines.values() for _, y in runs]
        longest = max((float(line[0][-1]) for line in means.values() if len(line[0])), default=1.0)
        ends = "; ".join(f"{term} ends at {y[-1]:.4g}" for term, (_, y) in means.items() if len(y))
        chart = Chart(
            shown(name),
            f"Loss terms of {name} over the images seen. {ends}.",
            Axis("images seen", 0.0, max(longest, 1.0)),
            Axis("loss", *span(np.concatenate(values) if values else [], zero=True)),
        )
        for style, (term, runs) in enumerate(lines.items()):
            if not len(means[term][0]):
                continue
            x, low, high = _range(runs)
            if len(runs) > 1 and len(x):
                chart.area(x, low, high, term, style, outline=False)
                chart.legend.pop()  # the line of the same style says what it is
            chart.line(*means[term], term, style)
        charts.append(chart)
    return charts


def _log(folder: Path) -> TrainingLog | None:
    return read_log(folder / "log.jsonl")


def _all(logs: Mapping[str, Sequence[TrainingLog]]) -> list[TrainingLog]:
    return [log for own in logs.values() for log in own]


def _validated(log: TrainingLog, by: str) -> str | None:
    """The measure to show, by name; None where the log holds no validation."""
    for validation in log.validations:
        names = [name for metrics in validation.metrics.values() for name in metrics]
        if names:
            return by if by in names else names[0]
    return None


def _validation(log: TrainingLog, measure: str) -> Series:
    last = log.windows[-1]
    points = []
    for validation in log.validations:
        value = next((m[measure] for m in validation.metrics.values() if measure in m), np.nan)
        if np.isfinite(value):
            points.append((validation.step * last.images / last.step, value))
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _term(log: TrainingLog, term: str) -> Series:
    pairs = np.array(
        [(window.images, window.terms.get(term, np.nan)) for window in log.windows], dtype=np.float64
    ).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs[:, 1])]
    if len(pairs) > _POINTS:
        pairs = np.array([part.mean(axis=0) for part in np.array_split(pairs, _POINTS)])
    return pairs[:, 0], pairs[:, 1]


def _common(runs: Sequence[Series]) -> tuple[Floats, Floats]:
    """The x that all runs reach, and their values there, [runs, x]."""
    runs = [run for run in runs if len(run[0])]
    if not runs:
        return np.zeros(0), np.zeros((0, 0))
    x = max((run[0] for run in runs), key=lambda xs: float(xs[-1]))
    x = x[x <= min(float(run[0][-1]) for run in runs)]
    if not len(x):
        return np.zeros(0), np.zeros((0, 0))
    return x, np.stack([np.interp(x, *run) for run in runs])


def _mean(runs: Sequence[Series]) -> Series:
    x, values = _common(runs)
    return (x, values.mean(axis=0)) if len(x) else (x, np.zeros(0))


def _range(runs: Sequence[Series]) -> tuple[Floats, Floats, Floats]:
    x, values = _common(runs)
    return (x, values.min(axis=0), values.max(axis=0)) if len(x) else (x, x, x)
