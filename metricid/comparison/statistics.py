"""Means over a few seeds, how sure they are, and whether two objectives can be told apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
Verdict = Literal["best", "worse", "noise", "unknown"]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        half: half the width of its 95 % t-interval; None with one value, whose noise is unknown.
        count: values.
    """

    value: float
    half: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """An objective against the best one.

    Attributes:
        verdict: `best`: it is the best itself; `worse`: the interval of the paired differences lies below 0;
            `noise`: it holds 0; `unknown`: fewer than two common seeds, or all differences are equal and not
            0, so that their spread is not known.
        mean: over the seeds that both have, this minus the best; None where there is none.
        half: half the width of its 95 % t-interval.
        count: seeds that both have.
    """

    verdict: Verdict
    mean: float | None = None
    half: float | None = None
    count: int = 0


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and t-interval of independent values.

    Raises:
        ValueError: no value.
    """
    count = len(values)
    if not count:
        raise ValueError("a mean needs a value")
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Mean(mean, t_quantile(count - 1) * math.sqrt(variance / count), count)


def against_best(own: Sequence[float | None], best: Sequence[float | None]) -> Difference:
    """The paired t-test of an objective against the best one, on the seeds that both have.

    The same seed means the same initial weights of the network and the same order of the images, so that
    what both share drops out of the difference.

    Args:
        own: one value for each seed; None where a run is missing.
        best: likewise, for the same seeds.
    """
    pairs = [(a, b) for a, b in zip(own, best, strict=True) if a is not None and b is not None]
    if not pairs:
        return Difference("unknown")
    found = mean_of([a - b for a, b in pairs])
    if found.half is None or (found.half == 0 and found.value != 0):
        return Difference("unknown", found.value, found.half, found.count)
    verdict: Verdict = "worse" if found.value + found.half < 0 else "noise"
    return Difference(verdict, found.value, found.half, found.count)


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """t such that a Student variable lies within [-t, t] with this probability.

    Args:
        freedom: degrees of freedom, at least 1.
        confidence: in (0, 1).
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t) for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = 1.0, 0.0
    if freedom % 2:
        for k in range(1, freedom, 2):
            term = cosine if k == 1 else term * cosine**2 * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + sine * total)
    for k in range(0, freedom, 2):
        term = 1.0 if k == 0 else term * cosine**2 * (k - 1) / k
        total += term
    return sine * total
