"""Cross-validated pair verification: the threshold comes from the other folds, never from the tested one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricid.evaluation.arrays import IntArray
from metricid.evaluation.scores import Floats


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy of each fold at the threshold of the others.

    Attributes:
        accuracy: [F] share of the fold's pairs judged right.
        thresholds: [F] squared L2 distance; "same" means strictly below.
    """

    accuracy: Floats
    thresholds: Floats

    @property
    def mean(self) -> float:
        """Mean over folds."""
        return float(self.accuracy.mean())

    @property
    def std(self) -> float:
        """Population standard deviation over folds."""
        return float(self.accuracy.std())


@dataclass(frozen=True)
class FoldVal:
    """VAL@FAR: the share of genuine pairs accepted in each fold at the others' threshold for a FAR.

    Attributes:
        target: the false accept rate asked of the other folds.
        val: [F] true accept rate in the fold.
        far: [F] false accept rate reached in the fold.
        thresholds: [F] squared L2 distance.
    """

    target: float
    val: Floats
    far: Floats
    thresholds: Floats


def contiguous_folds(pairs: int, folds: int = 10) -> IntArray:
    """[pairs] fold number of each pair, in order; the first folds take one more where it does not divide."""
    sizes = [pairs // folds + (i < pairs % folds) for i in range(folds)]
    return np.repeat(np.arange(folds), sizes)


def fold_accuracy(distance: Floats, same: NDArray[np.bool_], folds: IntArray, sweep: str) -> FoldAccuracy:
    """Accuracy per fold at the first threshold that is best on the other folds.

    Args:
        distance: [P] squared L2 distance of unit embeddings.
        same: [P] whether the pair is genuine.
        folds: [P] fold of each pair, 0..F-1.
        sweep: thresholds tried: `step` = 0, 0.01, ..., 3.99 (the public protocol); `exact` = every distance
            observed in the other folds, and one above all.
    """
    count = int(folds.max()) + 1
    accuracy, chosen = np.empty(count), np.empty(count)
    for fold in range(count):
        test = folds == fold
        train_distance, train_same = distance[~test], same[~test]
        if sweep == "step":
            thresholds = np.arange(0, 4, 0.01)
        else:
            thresholds = np.append(np.unique(train_distance), np.inf)
        right = _below(train_distance[train_same], thresholds)
        right = right - _below(train_distance[~train_same], thresholds)
        chosen[fold] = thresholds[np.argmax(right)]  # right + a constant = pairs judged right
        accuracy[fold] = np.mean((distance[test] < chosen[fold]) == same[test])
    return FoldAccuracy(accuracy, chosen)


def val_at_far(distance: Floats, same: NDArray[np.bool_], folds: IntArray, target: float) -> FoldVal:
    """VAL at a false accept rate (Schroff et al., CVPR 2015, sec. 4; thresholds 0, 0.001, ..., 3.999).

    The threshold is interpolated over the false accept rates of the other folds; where several share a rate,
    the largest stands for it. If the others never reach the target, the threshold is 0.
    """
    thresholds = np.arange(0, 4, 0.001)
    count = int(folds.max()) + 1
    val, far, chosen = np.empty(count), np.empty(count), np.zeros(count)
    for fold in range(count):
        test = folds == fold
        impostors = distance[~test & ~same]
        rates = _below(impostors, thresholds) / len(impostors)
        last = np.append(rates[1:] != rates[:-1], True)
        if rates[-1] >= target:
            chosen[fold] = np.interp(target, rates[last], thresholds[last])
        accepted = distance[test] < chosen[fold]
        val[fold], far[fold] = accepted[same[test]].mean(), accepted[~same[test]].mean()
    return FoldVal(target, val, far, chosen)


def _below(distance: Floats, thresholds: Floats) -> IntArray:
    """How many distances lie strictly below each threshold."""
    return np.searchsorted(np.sort(distance), thresholds, side="left")
