"""How the weight of a term changes in the course of a training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Each kind of schedule, with the keys that may stand beside it.
KINDS: dict[str, tuple[str, ...]] = {
    "linear": ("from", "to"),
    "cosine": ("from", "to"),
    "steps": (),
    "plateau": ("factor", "patience", "threshold", "min", "max"),
}


class Weight(Protocol):
    """The weight of a term at a progress of the training in [0, 1]."""

    def __call__(self, progress: float) -> float: ...


@dataclass(frozen=True)
class Ramp:
    """From one weight to another between two moments; before and after, the weight stands still.

    Attributes:
        first: until `start`.
        last: from `end` on.
        start: progress at which it begins to move.
        end: progress at which it has arrived.
        smooth: along half a cosine instead of a straight line.

    Example:
        >>> Ramp(0.0, 1.0, 0.0, 0.5)(0.25), Ramp(1.0, 0.0, 0.0, 1.0, smooth=True)(0.5)
        (0.5, 0.5)
    """

    first: float
    last: float
    start: float = 0.0
    end: float = 1.0
    smooth: bool = False

    def __call__(self, progress: float) -> float:
        done = min(max((progress - self.start) / (self.end - self.start), 0.0), 1.0)
        if self.smooth:
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return (1 - done) * self.first + done * self.last


@dataclass(frozen=True)
class Steps:
    """A weight that jumps.

    Attributes:
        values: (progress, weight) pairs by progress, the first at 0; each holds until the next.

    Example:
        >>> Steps(((0.0, 1.0), (0.5, 0.1)))(0.49), Steps(((0.0, 1.0), (0.5, 0.1)))(0.5)
        (1.0, 0.1)
    """

    values: tuple[tuple[float, float], ...]

    def __call__(self, progress: float) -> float:
        return next(weight for moment, weight in reversed(self.values) if moment <= progress)


class Plateau(nn.Module):
    """A weight that is multiplied when a validation metric has ceased to rise.

    Its state lies in a buffer, so that a checkpoint of the objective carries it.

    Args:
        start: the weight at first.
        factor: multiplies the weight; below 1 lowers it, above 1 raises it.
        patience: validations without a new best value before the weight changes, and between two changes.
        threshold: by how much a value must exceed the best one to count as better.
        lowest: the weight does not fall below.
        highest: nor rise above.
    """

    state: Tensor

    def __init__(
        self,
        start: float,
        factor: float = 0.5,
        patience: int = 2,
        threshold: float = 0.0,
        lowest: float = 0.0,
        highest: float = math.inf,
    ):
        super().__init__()
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.lowest, self.highest = lowest, highest
        # Weight, best value, validations since.
        self.register_buffer(
            "state", torch.tensor([start, -math.inf, 0.0], dtype=torch.float64, device="cpu")
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "Plateau":
        """Three numbers that the host reads: they stay where they are, in float64."""
        return self

    def forward(self, progress: float) -> float:
        """The weight now; the progress plays no part."""
        return float(self.state[0])

    def observe(self, value: float) -> None:
        """Takes the result of a validation; greater is better."""
        weight, best, waited = self.state.tolist()
        if value > best + self.threshold:
            best, waited = value, 0
        else:
            waited += 1
        if waited >= self.patience:
            weight, waited = min(max(weight * self.factor, self.lowest), self.highest), 0
        self.state.copy_(torch.tensor([weight, best, waited], dtype=torch.float64))


def build_weight(option: float | Mapping[str, Any]) -> float | Weight:
    """The weight of a recipe's term; `weight_problems` has found nothing.

    Args:
        option: a number, or one of
            `{linear: [a, b], from: 0, to: 1}`, `{cosine: [a, b], from: 0, to: 1}`,
            `{steps: {0: a, 0.5: b, ...}}`,
            `{plateau: a, factor: 0.5, patience: 2, threshold: 0, min: 0, max: inf}`.
    """
    if not isinstance(option, Mapping):
        return float(option)
    if "steps" in option:
        return Steps(tuple(sorted((float(at), float(weight)) for at, weight in option["steps"].items())))
    if "plateau" in option:
        names = {"factor": "factor", "threshold": "threshold", "min": "lowest", "max": "highest"}
        given = {names[key]: float(option[key]) for key in names if key in option}
        return Plateau(float(option["plateau"]), patience=option.get("patience", 2), **given)
    first, last = option["cosine" if "cosine" in option else "linear"]
    return Ramp(first, last, option.get("from", 0.0), option.get("to", 1.0), smooth="cosine" in option)


def weight_problems(option: Any) -> list[str]:
    """What is wrong with the weight of a term, one line each; empty if it can be built.

    Example:
        >>> weight_problems({"linear": [0, 1], "until": 0.5})
        ["unknown key 'until' beside linear (allowed: from, to)"]
    """
    if _number(option):
        return [] if 0 <= option < math.inf else [f"must be at least 0, got {option}"]
    if not isinstance(option, Mapping):
        return [f"expected a number or a schedule such as {{linear: [0, 1]}}, got {option!r}"]
    kinds = [kind for kind in KINDS if kind in option]
    if len(kinds) != 1:
        got = ", ".join(map(str, option)) or "nothing"
        return [f"a schedule has exactly one of the keys {', '.join(KINDS)}, got {got}"]
    kind = kinds[0]
    found = [
        f"unknown key {key!r} beside {kind} (allowed: {', '.join(KINDS[kind]) or 'none'})"
        for key in option
        if key != kind and key not in KINDS[kind]
    ]
    check = {"steps": _steps_problems, "plateau": _plateau_problems}.get(kind, _ramp_problems)
    return found + check(option)


def _ramp_problems(option: Mapping[str, Any]) -> list[str]:
    found = []
    kind = "cosine" if "cosine" in option else "linear"
    ends = option[kind]
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(map(_weight, ends)):
        found.append(f"{kind}: expected two weights of at least 0, such as [0, 1], got {ends!r}")
    start, end = option.get("from", 0.0), option.get("to", 1.0)
    if not (_number(start) and _number(end) and 0 <= start < end <= 1):
        found.append(f"needs 0 <= from < to <= 1, got {start!r} to {end!r}")
    return found


def _steps_problems(option: Mapping[str, Any]) -> list[str]:
    steps = option["steps"]
    if not isinstance(steps, Mapping) or not steps:
        return [f"steps: expected a mapping of progress to weight, such as {{0: 1, 0.5: 0.1}}, got {steps!r}"]
    wrong = [f"{at}: {weight}" for at, weight in steps.items() if not (_share(at) and _weight(weight))]
    if wrong:
        return [f"steps: progress lies in [0, 1] and weights are at least 0, got {', '.join(wrong)}"]
    return [] if min(map(float, steps)) == 0 else ["steps: needs a weight at progress 0"]


def _plateau_problems(option: Mapping[str, Any]) -> list[str]:
    found = []
    for key in ("plateau", "factor", "threshold", "min"):
        if not _weight(option.get(key, 1.0)):
            found.append(f"{key}: expected a number of at least 0, got {option[key]!r}")
    highest = option.get("max", math.inf)
    if not _number(highest) or highest < 0:
        found.append(f"max: expected a number of at least 0, got {highest!r}")
    patience = option.get("patience", 2)
    if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
        found.append(f"patience: expected a whole number of at least 1, got {patience!r}")
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _weight(value: Any) -> bool:
    return _number(value) and 0 <= value < math.inf


def _share(value: Any) -> bool:
    """A progress; as the key of a mapping it may have become text on its way through JSON."""
    try:
        return 0 <= float(value) <= 1
    except (TypeError, ValueError):
        return False
