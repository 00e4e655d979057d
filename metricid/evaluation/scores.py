"""Error rates from counts: how many genuine and impostor pairs lie at each score."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from metricid.evaluation.arrays import IntArray
from metricid.evaluation.curves import Curve

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold and what it does; a pair is accepted if its score is at least the threshold.

    Attributes:
        target: the false accept rate asked for.
        rule: `conservative` (the most pairs accepted while FAR <= target; the figure to quote) or `nearest`
            (the point of the ROC whose FAR is nearest to the target, as most public face code does).
        far: the false accept rate reached.
        tar: the true accept rate there.
        threshold: cosine similarity; infinite where nothing can be accepted.
        supported: whether the impostor pairs suffice by the rule of 30 (30 expected false accepts).
    """

    target: float
    rule: str
    far: float
    tar: float
    threshold: float
    supported: bool


@dataclass(frozen=True)
class ScoreTable:
    """Counts of pairs at ascending, distinct scores. Accepting at level i accepts levels i and above.

    Attributes:
        levels: [L] scores; the lower edge where a level stands for a small bin.
        genuine: [L] genuine pairs at the level.
        impostor: [L] impostor pairs at the level.
        exact: whether each level is one score; else a bin, and order inside a bin is unknown.
    """

    levels: Floats
    genuine: IntArray
    impostor: IntArray
    exact: bool = True

    @classmethod
    def from_scores(cls, everything: Floats, genuine: Floats) -> "ScoreTable":
        """A table from the scores of all pairs ([P], sorted in place) and of the genuine ones among them."""
        everything.sort()
        first = np.flatnonzero(np.concatenate(([True], everything[1:] != everything[:-1])))
        levels = everything[first]
        total = np.diff(first, append=len(everything))
        same = np.bincount(np.searchsorted(levels, genuine), minlength=len(levels))
        return cls(levels, same, total - same)

    @cached_property
    def genuine_pairs(self) -> int:
        """Number of genuine pairs."""
        return int(self.genuine.sum())

    @cached_property
    def impostor_pairs(self) -> int:
        """Number of impostor pairs."""
        return int(self.impostor.sum())

    @cached_property
    def far(self) -> Floats:
        """[L + 1] ascending false accept rates: nothing accepted, then down to level L-1, ..., 0."""
        return np.concatenate(([0], np.cumsum(self.impostor[::-1]))) / self.impostor_pairs

    @cached_property
    def tar(self) -> Floats:
        """[L + 1] true accept rates that go with `far`."""
        return np.concatenate(([0], np.cumsum(self.genuine[::-1]))) / self.genuine_pairs

    def threshold(self, index: int) -> float:
        """The threshold at a point of `far` and `tar`."""
        return float("inf") if index == 0 else float(self.levels[len(self.levels) - index])

    def point(self, target: float, rule: str) -> OperatingPoint:
        """The operating point for a false accept rate; see `OperatingPoint` for the rules."""
        index = self.conservative_index(target)
        if rule == "nearest" and index + 1 < len(self.far):
            below, above = self.far[index], self.far[index + 1]
            if above - target <= target - below:
                index = int(np.searchsorted(self.far, above, side="right")) - 1
        supported = target * self.impostor_pairs >= 30 * (1 - 1e-9)
        far, tar = float(self.far[index]), float(self.tar[index])
        return OperatingPoint(target, rule, far, tar, self.threshold(index), supported)

    def conservative_index(self, target: float) -> int:
        """The last point whose false accept rate is at most the target."""
        return int(np.searchsorted(self.far, target, side="right")) - 1

    def eer_index(self) -> int:
        """The first point at which false accepts are at least as frequent as false rejects."""
        return int(np.argmax(self.far >= 1 - self.tar))

    def eer(self) -> float:
        """Equal error rate: where the ROC, straight between its points, meets FAR = 1 - TAR."""
        i = self.eer_index()
        gap_before = 1 - self.tar[i - 1] - self.far[i - 1]
        gap_after = self.far[i] - (1 - self.tar[i])
        return float(
            self.far[i - 1] + (self.far[i] - self.far[i - 1]) * gap_before / (gap_before + gap_after)
        )

    def auc(self) -> float:
        """Area under the ROC: chance that a genuine pair scores above an impostor pair, ties counted half."""
        middle = (self.tar[1:] + self.tar[:-1]) / 2
        return float(np.dot(self.impostor[::-1] / self.impostor_pairs, middle))

    def auc_error(self) -> float:
        """Bound on the error of `auc`: half the share of genuine-impostor comparisons inside one bin."""
        if self.exact:
            return 0.0
        return float(np.dot(self.genuine / self.genuine_pairs, self.impostor / self.impostor_pairs)) / 2

    def roc(self, points: int = 500) -> Curve:
        """The ROC at points evenly spread in FAR, in log FAR and in TAR; each is a point of the full ROC."""
        rates = np.linspace(0.0, 1.0, points)
        fine = np.logspace(-np.log10(self.impostor_pairs), 0.0, points)
        index = np.concatenate(
            [
                np.searchsorted(self.far, np.concatenate([rates, fine]), side="right") - 1,
                np.minimum(np.searchsorted(self.tar, rates), len(self.tar) - 1),
            ]
        )
        index = np.unique(index)
        return Curve(self.far[index], self.tar[index], "false accept rate", "true accept rate")

    def histogram(self, which: str, bins: int = 100) -> Curve:
        """Share of the `genuine` or `impostor` pairs per bin of score; both on the same bins."""
        low, high = float(self.levels[0]), float(self.levels[-1])
        counts = self.genuine if which == "genuine" else self.impostor
        pad = max(0.0, 1e-6 - (high - low))  # a collapsed model still gets a histogram
        share, edges = np.histogram(self.levels, bins, range=(low - pad, high + pad), weights=counts)
        return Curve((edges[1:] + edges[:-1]) / 2, share / counts.sum(), "score", f"share of {which} pairs")
