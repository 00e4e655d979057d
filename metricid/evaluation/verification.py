"""Verification: are two embeddings of one identity? Explicit pairs (LFW) or all pairs of a set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricid.evaluation.all_pairs import AllPairs, score_table
from metricid.evaluation.arrays import IntArray, check_embeddings, encode, normalise
from metricid.evaluation.curves import Curve
from metricid.evaluation.folds import FoldAccuracy, FoldVal, contiguous_folds, fold_accuracy, val_at_far
from metricid.evaluation.intervals import Interval, identity_weights, percentile_interval
from metricid.evaluation.scores import Floats, OperatingPoint, ScoreTable

FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
RULES = ("conservative", "nearest")
EXACT_PAIRS = 2**24


@dataclass(frozen=True)
class VerificationResult:
    """Error rates of pair verification; scores and thresholds are cosine similarities.

    Attributes:
        genuine_pairs: pairs of one identity.
        impostor_pairs: pairs of two identities.
        points: operating points, for each false accept rate asked for first `conservative`, then `nearest`.
        eer: equal error rate.
        eer_threshold: threshold at which false accepts first are as frequent as false rejects.
        auc: area under the ROC.
        auc_error: bound on the error of `auc`; 0 where every score was kept.
        roc: false against true accept rate.
        genuine_scores: histogram.
        impostor_scores: histogram on the same bins.
        intervals: `TAR@FAR=...` -> 95% bootstrap interval over identities of the conservative rate.
    """

    genuine_pairs: int
    impostor_pairs: int
    points: tuple[OperatingPoint, ...]
    eer: float
    eer_threshold: float
    auc: float
    auc_error: float
    roc: Curve
    genuine_scores: Curve
    impostor_scores: Curve
    intervals: dict[str, Interval]

    @property
    def smallest_far(self) -> float:
        """1 / impostor pairs: one false accept. No smaller rate can be claimed."""
        return 1 / self.impostor_pairs

    @property
    def reliable_far(self) -> float:
        """30 / impostor pairs: the rule of 30 (+-30% at 90% confidence)."""
        return 30 / self.impostor_pairs

    def point(self, far: float, rule: str = "conservative") -> OperatingPoint:
        """The operating point computed for a false accept rate."""
        for point in self.points:
            if point.target == far and point.rule == rule:
                return point
        known = ", ".join(f"{p.target:g}" for p in self.points if p.rule == RULES[0])
        raise ValueError(
            f"no operating point for FAR {far:g} ({rule}); computed were {known} ({', '.join(RULES)})"
        )

    def tar_at(self, far: float, rule: str = "conservative") -> float:
        """True accept rate at a false accept rate."""
        return self.point(far, rule).tar


@dataclass(frozen=True)
class PairVerificationResult(VerificationResult):
    """Error rates of given pairs, with what is cross-validated over their folds.

    Attributes:
        accuracy: with thresholds in steps of 0.01.
        accuracy_exact: with every observed distance a threshold.
        val: VAL@FAR; None where a fold lacks genuine or impostor pairs.
    """

    accuracy: FoldAccuracy
    accuracy_exact: FoldAccuracy
    val: FoldVal | None


def verification_pairs(
    a: ArrayLike,
    b: ArrayLike,
    same: ArrayLike,
    *,
    embeddings: ArrayLike | None = None,
    folds: ArrayLike | None = None,
    far_targets: Sequence[float] = FAR_TARGETS,
    val_far: float = 1e-3,
) -> PairVerificationResult:
    """Verifies given pairs: 10-fold accuracy as on LFW (Huang et al. 2007), VAL@FAR, TAR@FAR, EER, AUC.

    Args:
        a: [P, D] embeddings of the first of each pair (need not be normalised), or [P] rows of `embeddings`.
        b: of the second, in the same form.
        same: [P] whether the pair is genuine (booleans, or 0 and 1).
        embeddings: [N, D], if `a` and `b` are rows.
        folds: [P] fold number of each pair; by default ten contiguous folds.
        far_targets: false accept rates at which to report the true accept rate.
        val_far: false accept rate of VAL@FAR.

    Returns:
        A `PairVerificationResult`.

    Raises:
        ValueError: shapes disagree, a row is not finite or zero, pairs of one kind only, or too few pairs.

    Example:
        >>> a, b = [[1, 0], [0, 1]] * 10, [[1, 0.1], [1, 0]] * 10
        >>> result = verification_pairs(a, b, [True, False] * 10)
        >>> result.accuracy.mean, result.tar_at(0.1), result.eer
        (1.0, 1.0, 0.0)
    """
    targets = _check_targets([*far_targets, val_far])[:-1]
    first, second = _pair_sides(a, b, embeddings)
    genuine = np.asarray(same)
    if genuine.shape != (len(first),):
        raise ValueError(f"same has shape {list(genuine.shape)}, but there are {len(first)} pairs")
    if not np.isin(genuine, [0, 1]).all():
        raise ValueError("same must hold booleans (or 0 and 1), one per pair")
    genuine = genuine.astype(bool)
    if genuine.all() or not genuine.any():
        raise ValueError(f"all {len(genuine)} pairs are of one kind: genuine and impostor pairs are needed")
    fold = _check_folds(folds, len(first))

    distance = np.square(first - second).sum(axis=1)
    scores = 1 - distance / 2
    kinds = np.stack([np.bincount(fold, weights=kind) for kind in (genuine, ~genuine)])
    table = ScoreTable.from_scores(scores.copy(), scores[genuine])
    return PairVerificationResult(
        **_rates(table, targets, {}),
        accuracy=fold_accuracy(distance, genuine, fold, "step"),
        accuracy_exact=fold_accuracy(distance, genuine, fold, "exact"),
        val=val_at_far(distance, genuine, fold, val_far) if kinds.all() else None,
    )


def verification_all_pairs(
    embeddings: ArrayLike,
    ids: ArrayLike,
    *,
    far_targets: Sequence[float] = FAR_TARGETS,
    bootstrap: int = 0,
    seed: int = 0,
    exact_pairs: int = EXACT_PAIRS,
) -> VerificationResult:
    """Verifies every one of the N(N-1)/2 pairs; pairs are never held all at once beyond `exact_pairs`.

    Beyond `exact_pairs`, TAR@FAR and EER stay exact but for score differences below 3e-11, and the error of
    the AUC is bounded by `VerificationResult.auc_error`. Every pair is then scored three times, in float64:
    the time grows with N^2 and D. Beyond some 1e10 pairs (140,000 images) take a list of pairs, or a sample.

    Args:
        embeddings: [N, D]; need not be normalised.
        ids: [N] strings or integers.
        far_targets: false accept rates at which to report the true accept rate.
        bootstrap: resamples of the identities for 95% intervals of TAR@FAR; 0 for none.
        seed: of the bootstrap.
        exact_pairs: number of pairs up to which every score is kept (45 bytes each at the peak).

    Returns:
        A `VerificationResult`.

    Raises:
        ValueError: shapes disagree, a row is not finite or zero, no genuine or no impostor pair, or a
            bootstrap over more than `exact_pairs` pairs.

    Example:
        >>> result = verification_all_pairs([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], ["a", "a", "b", "b"])
        >>> result.genuine_pairs, result.impostor_pairs, result.tar_at(0.1), result.auc
        (2, 4, 1.0, 1.0)
    """
    targets = _check_targets(far_targets)
    items = check_embeddings(embeddings)
    (codes,) = encode([("ids", ids, len(items))])
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        raise ValueError("all embeddings are of one identity: there is no impostor pair to verify against")
    if sizes.max() < 2:
        raise ValueError("every identity occurs once: there is no genuine pair to verify")
    pairs = AllPairs(items, codes)
    if bootstrap and pairs.pairs > exact_pairs:
        raise ValueError(
            f"bootstrap over {pairs.pairs} pairs needs exact_pairs >= {pairs.pairs} (and the memory for it); "
            "lower the number of embeddings or leave the bootstrap out"
        )
    table = score_table(pairs, targets, exact_pairs)
    intervals = _tar_intervals(pairs, sizes, targets, bootstrap, seed) if bootstrap else {}
    return VerificationResult(**_rates(table, targets, intervals))


def _rates(table: ScoreTable, targets: tuple[float, ...], intervals: dict[str, Interval]) -> dict[str, Any]:
    """The fields of `VerificationResult`."""
    return {
        "genuine_pairs": table.genuine_pairs,
        "impostor_pairs": table.impostor_pairs,
        "points": tuple(table.point(target, rule) for target in targets for rule in RULES),
        "eer": table.eer(),
        "eer_threshold": table.threshold(table.eer_index()),
        "auc": table.auc(),
        "auc_error": table.auc_error(),
        "roc": table.roc(),
        "genuine_scores": table.histogram("genuine"),
        "impostor_scores": table.histogram("impostor"),
        "intervals": intervals,
    }


def _tar_intervals(
    pairs: AllPairs, sizes: IntArray, targets: tuple[float, ...], replicates: int, seed: int
) -> dict[str, Interval]:
    """Bootstrap of the conservative TAR: a pair weighs as often as its identities are drawn together.

    An identity drawn twice gives its genuine pairs twice, but no pairs between its two copies.
    """
    tiles = list(pairs.tiles())
    genuine = [
        (tile.scores[tile.genuine], tile.first[tile.genuine.reshape(tile.first.shape)]) for tile in tiles
    ]
    genuine_scores = np.concatenate([scores for scores, _ in genuine])
    genuine_codes = np.concatenate([codes for _, codes in genuine])
    order = np.argsort(-genuine_scores)
    genuine_scores, genuine_codes = genuine_scores[order], genuine_codes[order]
    impostor = np.concatenate([tile.scores[~tile.genuine] for tile in tiles])
    order = np.argsort(-impostor)
    impostor = impostor[order]
    first = np.concatenate([t.first[~t.genuine.reshape(t.first.shape)] for t in tiles]).astype(np.int32)[
        order
    ]
    second = np.concatenate([t.second[~t.genuine.reshape(t.second.shape)] for t in tiles]).astype(np.int32)[
        order
    ]
    del tiles, order

    rates = np.empty((replicates, len(targets)))
    for replicate, weights in enumerate(identity_weights(len(sizes), replicates, seed)):
        accepted = np.cumsum(weights[first] * weights[second])
        kept = np.concatenate(([0], np.cumsum(weights[genuine_codes])))
        if not accepted[-1] or not kept[-1]:
            rates[replicate] = np.nan  # only one identity drawn, or none with two images
            continue
        for column, target in enumerate(targets):
            refused = impostor[np.searchsorted(accepted, target * accepted[-1], side="right")]
            rates[replicate, column] = kept[np.searchsorted(-genuine_scores, -refused)] / kept[-1]
    usable = rates[~np.isnan(rates).any(axis=1)]
    if not len(usable):
        raise ValueError("bootstrap failed: no resample of the identities held genuine and impostor pairs")
    return {f"TAR@FAR={target:g}": percentile_interval(usable[:, i]) for i, target in enumerate(targets)}


def _pair_sides(a: ArrayLike, b: ArrayLike, embeddings: ArrayLike | None) -> tuple[Floats, Floats]:
    """[P, D] unit float64 embeddings of both sides."""
    if embeddings is None:
        first, second = check_embeddings(a, "a"), check_embeddings(b, "b")
        if first.shape != second.shape:
            raise ValueError(f"a {list(first.shape)} and b {list(second.shape)} differ in shape")
        return normalise(first, "a", np.float64), normalise(second, "b", np.float64)
    unit = normalise(check_embeddings(embeddings), dtype=np.float64)
    rows: list[NDArray[np.int64]] = []
    for name, values in (("a", a), ("b", b)):
        index = np.asarray(values)
        if index.ndim != 1 or index.dtype.kind not in "iu" or len(index) == 0:
            raise ValueError(f"{name} must be rows of embeddings: a one-dimensional array of integers")
        if index.min() < 0 or index.max() >= len(unit):
            raise ValueError(f"{name} refers to rows outside the {len(unit)} embeddings")
        rows.append(index.astype(np.int64))
    if len(rows[0]) != len(rows[1]):
        raise ValueError(f"a holds {len(rows[0])} rows, b {len(rows[1])}")
    return unit[rows[0]], unit[rows[1]]


def _check_targets(far_targets: Sequence[float]) -> tuple[float, ...]:
    targets = tuple(float(target) for target in far_targets)
    if not targets or not all(0 < target < 1 for target in targets):
        raise ValueError(f"false accept rates must lie between 0 and 1, not {list(targets)}")
    return targets


def _check_folds(folds: ArrayLike | None, pairs: int) -> IntArray:
    if folds is None:
        if pairs < 10:
            raise ValueError(f"{pairs} pairs are too few for ten folds")
        return contiguous_folds(pairs)
    (codes,) = encode([("folds", folds, pairs)])
    if codes.max() < 1:
        raise ValueError("folds names one fold only: at least two are needed")
    return codes
