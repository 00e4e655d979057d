"""Means over seeds, ranked, each with what can be said of it against the best."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metricid.comparison.outcomes import Outcome, shown_measures
from metricid.comparison.plan import Plan
from metricid.comparison.statistics import Difference, Mean, against_best, mean_of


@dataclass(frozen=True)
class Row:
    """One objective.

    Attributes:
        name: of the objective.
        measures: those of the leaderboard's columns that its runs have.
        values: for each of them one value for each seed of the plan, None where the run is missing.
        starred: measures that the number of impostor pairs cannot support.
        difference: against the best; None while no run of it has finished.
        speed: images per second.
        seconds: of training.
        memory: MiB.
        finished: runs with results.
        waiting: runs still to be done.
        failures: `seed 1: reason`.
    """

    name: str
    measures: dict[str, Mean] = field(default_factory=dict)
    values: dict[str, list[float | None]] = field(default_factory=dict)
    starred: frozenset[str] = frozenset()
    difference: Difference | None = None
    speed: Mean | None = None
    seconds: Mean | None = None
    memory: Mean | None = None
    finished: int = 0
    waiting: int = 0
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leaderboard:
    """A comparison as far as it has come.

    Attributes:
        plan: what was asked for.
        by: the measure that it is ranked by.
        columns: the measures shown.
        rows: the best first; objectives without a result last.
        protocols: what the measures are, one line for each protocol.
        on_gpu: whether memory is that of the GPU.
    """

    plan: Plan
    by: str
    columns: list[str]
    rows: list[Row]
    protocols: tuple[str, ...]
    on_gpu: bool

    @property
    def finished(self) -> int:
        """Runs with results."""
        return sum(row.finished for row in self.rows)

    @property
    def total(self) -> int:
        """Runs of the plan."""
        return len(self.plan.entries) * len(self.plan.seeds)


def rank(plan: Plan, outcomes: Sequence[Outcome], by: str) -> Leaderboard:
    """Ranks the objectives of a comparison by the mean of a measure.

    Args:
        plan: the comparison.
        outcomes: of its runs, in its order.
        by: a measure of which more is better.
    """
    columns = shown_measures(outcomes, by)
    runs = {
        entry.name: [outcome for outcome in outcomes if outcome.entry == entry.name] for entry in plan.entries
    }
    rows = [_row(name, own, columns) for name, own in runs.items()]
    rows.sort(key=lambda row: -row.measures[by].value if by in row.measures else float("inf"))
    if rows and by in rows[0].measures:
        best = rows[0].values[by]
        compared = [against_best(row.values[by], best) if by in row.measures else None for row in rows[1:]]
        differences = [Difference("best"), *compared]
        rows = [
            Row(**(vars(row) | {"difference": found})) for row, found in zip(rows, differences, strict=True)
        ]
    done = [outcome for outcome in outcomes if outcome.state == "finished"]
    return Leaderboard(
        plan, by, columns, rows, done[0].protocols if done else (), any(outcome.on_gpu for outcome in done)
    )


def notes(board: Leaderboard) -> list[str]:
    """What a reader must know; whole sentences, the conclusion first."""
    plan, rows = board.plan, board.rows
    said = []
    ranked = [row for row in rows if board.by in row.measures]
    if board.finished < board.total:
        said.append(f"Not complete: {board.finished} of {board.total} runs have results.")
    if ranked:
        said.append(_conclusion(board.by, ranked))
    if len(ranked) > 2 and len(plan.seeds) > 1:
        said.append(
            f"{len(ranked) - 1} objectives are compared with the best, each at 95 %, without a correction "
            "for their number: by chance, about one in twenty that are no worse is called worse."
        )
    told = "all objectives see the same number of images, so a slow one takes longer"
    if plan.budget is not None and plan.trial:
        slowest = min(plan.trial, key=lambda name: plan.trial[name])
        told = (
            f"chosen so that the training of the slowest objective in a short trial ({slowest}, "
            f"{plan.trial[slowest]:.0f} img/s) takes about {plan.budget:.0f} s; the others take less"
        )
    said.append(f"Every run saw {plan.images:,} images: {told}.")
    said += [
        f"The trial of {name} failed ({reason}), so it had no say in the number of images."
        for name, reason in plan.left_out.items()
    ]
    if len(plan.seeds) > 1:
        said.append(
            "A seed sets the initial weights, the batches and the augmentation; the split of the data is the "
            "same for all. ± is half a 95 % t-interval over seeds."
        )
    if any(row.starred for row in rows):
        said.append("* too few impostor pairs to rely on this rate: do not quote it.")
    if board.columns:
        where = "of the GPU" if board.on_gpu else "resident, of the process"
        said.append(
            f"Speed and seconds are those of the training alone; memory is the peak ({where}) of the whole "
            "run, evaluation included."
        )
    said += [f"Measured: {line}." for line in board.protocols]
    return said


def _conclusion(by: str, ranked: Sequence[Row]) -> str:
    best, others = ranked[0], ranked[1:]
    if not others:
        return f"Only {best.name} has results so far; there is nothing to compare it with."
    text = f"{best.name} has the highest {by}. "
    close = [row.name for row in others if row.difference and row.difference.verdict == "noise"]
    worse = [row.name for row in others if row.difference and row.difference.verdict == "worse"]
    unknown = len(others) - len(close) - len(worse)
    if close:
        text += f"Inside the noise of it: {', '.join(close)}: not distinguishable at 95 %, paired by seed. "
    if worse:
        text += f"Worse than it at 95 %: {', '.join(worse)}. "
    if unknown:
        text += (
            f"For {unknown} of {len(others)} others the noise is unknown: it takes two seeds or more, and no "
            "difference is established before. "
        )
    return text.strip()


def _row(name: str, runs: Sequence[Outcome], columns: Sequence[str]) -> Row:
    done = [run for run in runs if run.state == "finished"]
    values = {
        column: [run.measures.get(column) for run in runs]
        for column in columns
        if any(column in run.measures for run in done)
    }
    return Row(
        name,
        measures={c: mean_of([v for v in row if v is not None]) for c, row in values.items()},
        values=values,
        starred=frozenset(column for column in values if any(column in run.unsupported for run in done)),
        speed=_mean([run.images_per_second for run in done]),
        seconds=_mean([run.seconds for run in done]),
        memory=_mean([None if run.memory is None else run.memory / 2**20 for run in done]),
        finished=len(done),
        waiting=sum(run.state == "waiting" for run in runs),
        failures=tuple(f"seed {run.seed}: {run.reason}" for run in runs if run.state == "failed"),
    )


def _mean(values: Sequence[Any]) -> Mean | None:
    known = [float(value) for value in values if value is not None]
    return mean_of(known) if known else None
