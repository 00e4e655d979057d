"""Scores of all N(N-1)/2 pairs, streamed in tiles: memory does not grow with the number of pairs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricid.evaluation.arrays import FloatArray, IntArray, normalise, slices, unique_rows
from metricid.evaluation.scores import Floats, ScoreTable

_TILE = 2048
_BINS = 2**20
_SUB_BINS = 2**16


@dataclass(frozen=True)
class Tile:
    """Some pairs.

    Attributes:
        scores: [n] cosine similarity of each pair.
        genuine: [n] whether both are of one identity.
        first: identity code of the first of each pair: n in the order of `scores`, shaped [n] or as a [rows,
            columns] view, which takes no memory.
        second: identity code of the second, of the same shape.
    """

    scores: Floats
    genuine: NDArray[np.bool_]
    first: IntArray
    second: IntArray


class AllPairs:
    """Every unordered pair of N embeddings, once.

    The product of two distinct embeddings is computed once, in float64, and serves all pairs of their copies,
    so that equal pairs score equal; two copies of one embedding score exactly 1.
    """

    def __init__(self, embeddings: FloatArray, codes: IntArray) -> None:
        unit = normalise(embeddings, dtype=np.float64)
        distinct = unique_rows(unit)
        self.unit, which = (unit, np.arange(len(unit))) if distinct is None else distinct
        order = np.argsort(which, kind="stable")
        self.which, self.codes = which[order], codes[order]
        self.pairs = len(codes) * (len(codes) - 1) // 2

    def tiles(self) -> Iterator[Tile]:
        """All pairs; the same tiles in the same order at every call."""
        for rows in slices(len(self.unit), _TILE):
            for columns in slices(len(self.unit), _TILE):
                if columns.start < rows.start:
                    continue
                product = np.clip(self.unit[rows] @ self.unit[columns].T, -1.0, 1.0)
                if rows == columns:
                    np.fill_diagonal(product, 1.0)
                for some in self._samples(rows):
                    for others in self._samples(columns):
                        if others.start >= some.start:
                            yield self._tile(product, rows, columns, some, others)

    def _samples(self, distinct: slice) -> Iterable[slice]:
        """Samples whose embedding is one of these distinct ones, at most a tile's side at a time."""
        begin, end = np.searchsorted(self.which, [distinct.start, distinct.stop]).tolist()
        return (slice(begin + part.start, begin + part.stop) for part in slices(end - begin, _TILE))

    def _tile(self, product: Floats, rows: slice, columns: slice, some: slice, others: slice) -> Tile:
        block = product
        if len(self.which) > len(self.unit):
            block = product[self.which[some] - rows.start][:, self.which[others] - columns.start]
        first = np.broadcast_to(self.codes[some, None], block.shape)
        second = np.broadcast_to(self.codes[None, others], block.shape)
        if some == others:
            upper = np.triu_indices(len(block), 1)
            block, first, second = block[upper], first[upper], second[upper]
        genuine = first == second
        return Tile(block.ravel(), genuine.ravel(), first, second)


def score_table(pairs: AllPairs, far_targets: tuple[float, ...], exact_pairs: int) -> ScoreTable:
    """Counts per score of all pairs.

    Up to `exact_pairs` pairs every score is kept. Beyond that: one pass for the range, one for a histogram of
    2^20 bins, and one that splits the bins that hold an operating point or the EER into 2^16 parts. TAR@FAR
    and EER are exact but for scores closer than range / 2^36; the error of the AUC has a stated bound.
    """
    if pairs.pairs <= exact_pairs:
        scores = np.empty(pairs.pairs)
        genuine_scores, filled = [], 0
        for tile in pairs.tiles():
            scores[filled : filled + len(tile.scores)] = tile.scores
            filled += len(tile.scores)
            genuine_scores.append(tile.scores[tile.genuine])
        return ScoreTable.from_scores(scores, np.concatenate(genuine_scores))

    low, high = np.inf, -np.inf
    for tile in pairs.tiles():
        if len(tile.scores):
            low, high = min(low, tile.scores.min()), max(high, tile.scores.max())
    scale = _BINS / (high - low) if high > low else 0.0

    everything, genuine = np.zeros(_BINS, dtype=np.int64), np.zeros(_BINS, dtype=np.int64)
    for tile in pairs.tiles():
        bins = _bins(tile.scores, low, scale)[0]
        everything += np.bincount(bins, minlength=_BINS)
        genuine += np.bincount(bins[tile.genuine], minlength=_BINS)
    filled_bins = np.flatnonzero(everything)
    levels = low + filled_bins / scale if scale else np.array([low])
    coarse = ScoreTable(
        levels, genuine[filled_bins], (everything - genuine)[filled_bins], exact=len(filled_bins) == 1
    )
    if coarse.exact:
        return coarse
    points = [coarse.conservative_index(target) + 1 for target in far_targets] + [coarse.eer_index()]
    crossed = sorted({len(levels) - point for point in points if point <= len(levels)})
    return _split(pairs, coarse, np.array(crossed), filled_bins, low, scale)


def _bins(scores: Floats, low: float, scale: float) -> tuple[IntArray, Floats]:
    """Bin of each score, and its position counted in bins."""
    position = (scores - low) * scale
    return np.minimum(position.astype(np.int64), _BINS - 1), position


def _split(
    pairs: AllPairs, coarse: ScoreTable, crossed: IntArray, filled_bins: IntArray, low: float, scale: float
) -> ScoreTable:
    """The table with the levels `crossed` split into sub-bins."""
    slot = np.full(_BINS, -1, dtype=np.int16)
    slot[filled_bins[crossed]] = np.arange(len(crossed))
    everything, genuine = (np.zeros(len(crossed) * _SUB_BINS, dtype=np.int64) for _ in range(2))
    for tile in pairs.tiles():
        bins, position = _bins(tile.scores, low, scale)
        inside = np.flatnonzero(slot[bins] >= 0)
        bins = bins[inside]
        part = np.minimum(((position[inside] - bins) * _SUB_BINS).astype(np.int64), _SUB_BINS - 1)
        part += slot[bins].astype(np.int64) * _SUB_BINS
        everything += np.bincount(part, minlength=len(everything))
        genuine += np.bincount(part[tile.genuine[inside]], minlength=len(genuine))
    used = np.flatnonzero(everything)
    edge = filled_bins[crossed][used // _SUB_BINS] + (used % _SUB_BINS) / _SUB_BINS
    levels = np.concatenate([np.delete(coarse.levels, crossed), low + edge / scale])
    order = np.argsort(levels, kind="stable")
    return ScoreTable(
        levels[order],
        np.concatenate([np.delete(coarse.genuine, crossed), genuine[used]])[order],
        np.concatenate([np.delete(coarse.impostor, crossed), (everything - genuine)[used]])[order],
        exact=False,
    )
