"""What the runs of a comparison measured, read from their folders."""

import json
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from metricid.comparison.plan import Plan, PlannedRun
from metricid.comparison.queue import failure_of, is_finished
from metricid.comparison.worker import USAGE
from metricid.errors import InputError
from metricid.evaluation import PROTOCOLS
from metricid.report.run_files import read_results

_MEASURES = ("rank-1", "Recall@1", "mAP", "MAP@R")
_MOST_RATES = 2  # TAR at so many of the false accept rates that the data supports, the lowest
_FAR = re.compile(r"TAR@FAR=([\d.e-]+)$")


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        entry: its objective.
        seed: its seed.
        folder: name of its folder inside that of the comparison.
        state: `finished`, `failed` or `waiting` (not begun, or cut short).
        reason: why it failed.
        measures: rates as fractions, by name.
        unsupported: measures that the number of impostor pairs cannot support.
        protocols: what was measured, one line for each protocol.
        images_per_second: of the training, without validation and evaluation.
        seconds: of the training, likewise.
        memory: peak bytes: of the GPU where it trained on one, else of the process.
        on_gpu: whether `memory` is that of a GPU.
    """

    entry: str
    seed: int
    folder: str
    state: str
    reason: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    unsupported: frozenset[str] = frozenset()
    protocols: tuple[str, ...] = ()
    images_per_second: float | None = None
    seconds: float | None = None
    memory: int | None = None
    on_gpu: bool = False


def read_outcomes(plan: Plan) -> list[Outcome]:
    """The state of every run of a plan, in its order."""
    return [_outcome(run) for run in plan.runs()]


def known_measures(protocols: Sequence[str]) -> list[str]:
    """Measures of which more is better, that runs with these protocols have."""
    table = {"identity": ["a", "a", "b", "b"], "camera": list("1212"), "split": ["query", "gallery"] * 2}
    names: dict[str, None] = {}
    for protocol in protocols:
        measures = PROTOCOLS[protocol](np.eye(4, dtype=np.float32), table).metrics
        names |= dict.fromkeys(_named(protocol, name, names) for name in measures)
    return [name for name in names if not re.search(r"threshold|EER|nearest", name)]


def shown_measures(outcomes: Sequence[Outcome], by: str) -> list[str]:
    """The columns of a leaderboard: what runs are ranked by, the usual ones, and TAR at low rates."""
    done = [outcome for outcome in outcomes if outcome.state == "finished"]
    names = dict.fromkeys(name for outcome in done for name in outcome.measures)
    rates = [name for name in names if _FAR.search(name)]
    supported = [name for name in rates if not any(name in outcome.unsupported for outcome in done)]
    rates = sorted(supported or rates, key=_far, reverse=True)
    rates = rates[-_MOST_RATES:] if supported else rates[:1]
    usual = [name for name in _MEASURES if name in names]
    return list(dict.fromkeys([*usual, *rates, *([by] if by in names else [])]))


def _far(name: str) -> float:
    found = _FAR.search(name)
    return float(found[1]) if found else 0.0


def _outcome(run: PlannedRun) -> Outcome:
    if not is_finished(run):
        reason = failure_of(run)
        return Outcome(
            run.entry,
            run.seed,
            run.folder.name,
            state="waiting" if reason is None else "failed",
            reason=reason or "",
        )
    try:
        values, results = read_results(run.folder)
    except InputError as error:
        return Outcome(run.entry, run.seed, run.folder.name, state="failed", reason=str(error))
    measures: dict[str, float] = {}
    unsupported = set()
    protocols = []
    for result in results[: len(run.recipe["evaluation"]["protocols"])]:
        counts = ", ".join(f"{count:,} {name}" for name, count in result.counts.items())
        protocols.append(f"{result.protocol} ({result.variant}; {counts})")
        for name, value in result.metrics.items():
            key = _named(result.protocol, name, measures)
            measures[key] = value
            if name in result.unsupported:
                unsupported.add(key)
    usage = {"process_bytes": 0, "gpu_bytes": 0}
    with suppress(OSError, ValueError, TypeError):
        usage |= json.loads((run.folder / USAGE).read_text(encoding="utf-8"))
    return Outcome(
        run.entry,
        run.seed,
        run.folder.name,
        state="finished",
        measures=measures,
        unsupported=frozenset(unsupported),
        protocols=tuple(protocols),
        images_per_second=values.get("images_per_second"),
        seconds=values.get("train_seconds"),
        memory=usage["gpu_bytes"] or usage["process_bytes"] or None,
        on_gpu=bool(usage["gpu_bytes"]),
    )


def _named(protocol: str, name: str, taken: Collection[str]) -> str:
    """A measure's name; with its protocol where an earlier protocol has one of that name."""
    return f"{protocol} {name}" if name in taken else name
