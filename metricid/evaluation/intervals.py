"""Bootstrap over identities: images of one person are not independent, people are."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from metricid.evaluation.arrays import IntArray, slices

Interval = tuple[float, float]


def identity_weights(identities: int, replicates: int, seed: int) -> Iterator[IntArray]:
    """For each replicate, how often each identity is drawn: [identities] int64, sum `identities`."""
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        yield np.bincount(generator.integers(identities, size=identities), minlength=identities)


def percentile_interval(values: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The central `level` of the bootstrap values (percentile method; Efron & Tibshirani 1993, ch. 13)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_intervals(
    values: dict[str, NDArray[np.float64]], identities: IntArray, replicates: int, seed: int
) -> dict[str, Interval]:
    """95% intervals of means over samples, by resampling whole identities.

    Args:
        values: name -> [n] one value per sample.
        identities: [n] codes.
        replicates: number of resamples.
        seed: of the resampling.
    """
    _, group = np.unique(identities, return_inverse=True)
    sizes = np.bincount(group)
    sums = np.stack([np.bincount(group, weights=v) for v in values.values()], axis=1)
    draws = identity_weights(len(sizes), replicates, seed)
    means = np.empty((replicates, len(values)))
    for rows in slices(replicates, 64):
        weights = np.stack([next(draws) for _ in range(rows.start, rows.stop)]).astype(np.float64)
        means[rows] = (weights @ sums) / (weights @ sizes)[:, None]
    return {name: percentile_interval(means[:, i]) for i, name in enumerate(values)}
