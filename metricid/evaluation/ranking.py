"""Exact ranks of the positives of each query, from FAISS distances, a block of queries at a time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from metricid.evaluation.arrays import FloatArray, IntArray, normalise, slices, unique_rows

_TILE = 64  # queries per matrix product: always this shape, so that the memory limit cannot change a rounding
_PAIR_BYTES = 96  # working memory per (query, same-identity gallery item) pair


@dataclass(frozen=True)
class Ranking:
    """A search to be ranked: arrays of one length Q (queries) or G (gallery).

    Attributes:
        query: [Q, D] float32.
        gallery: [G, D] float32.
        query_ids: [Q] codes; a query whose code is negative matches nothing.
        gallery_ids: [G] codes.
        query_cams: [Q] camera codes, or None for no same-camera rule.
        gallery_cams: [G] camera codes, or None.
        self_index: [Q] gallery row of the query itself, or -1; None where no query is in the gallery.
    """

    query: FloatArray
    gallery: FloatArray
    query_ids: IntArray
    gallery_ids: IntArray
    query_cams: IntArray | None
    gallery_cams: IntArray | None
    self_index: IntArray | None


@dataclass(frozen=True)
class PositiveRanks:
    """Ranks of the positives of consecutive queries.

    Attributes:
        queries: slice of the queries this part covers, n of them.
        counts: [n] positives of each.
        ranks: [sum of counts] ranks from 1, ascending within each query.
    """

    queries: slice
    counts: IntArray
    ranks: IntArray


def prepare(query: FloatArray, gallery: FloatArray, metric: str) -> tuple[FloatArray, FloatArray]:
    """Vectors whose squared Euclidean distance orders the gallery as `metric` does.

    Unit vectors for cosine (d = 2 - 2 cos). Both sides are then moved by the gallery mean, which no distance
    notices but float32 does: a collapsed model (all cosines above 0.999) keeps its order. The shift is on a
    power-of-two grid as coarse as the data's spread, so that centred data stay untouched and small integers
    exact. Last, everything is scaled by a power of two, so that no square overflows.
    """
    if metric == "cosine":
        query, gallery = normalise(query, "query"), normalise(gallery, "gallery")
    elif metric != "euclidean":
        raise ValueError(f"metric must be 'cosine' or 'euclidean', not {metric!r}")
    mean = gallery.mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(gallery.var(axis=0, dtype=np.float64).mean()))
    if spread > 0:
        grid = 2.0 ** np.floor(np.log2(spread))
        shift = (np.round(mean / grid) * grid).astype(np.float32)
        if shift.any():
            query, gallery = query - shift, gallery - shift
    largest = max(float(np.abs(query).max()), float(np.abs(gallery).max()))
    if largest > 0:
        scale = np.float32(2.0 ** -np.clip(np.floor(np.log2(largest)), -120, 120))
        query, gallery = query * scale, gallery * scale
    return query, gallery


def rank_positives(ranking: Ranking, memory_mb: float) -> Iterator[PositiveRanks]:
    """Ranks every positive of every query among the gallery items the query may see.

    Rank = 1 + items that are nearer + items at exactly the same distance earlier in the gallery. Items of the
    same identity and camera, and the query itself, are not seen.

    Args:
        ranking: what to rank; the vectors are compared by squared Euclidean distance.
        memory_mb: bound on the working memory beside the inputs; 64 queries (some 512 bytes for each gallery
            item) are taken at a time even where they need more.

    Yields:
        Parts that together cover all queries, in order.
    """
    distinct = unique_rows(ranking.gallery)
    gallery, which = (ranking.gallery, None) if distinct is None else distinct
    by_id = np.argsort(ranking.gallery_ids, kind="stable")
    sorted_ids = ranking.gallery_ids[by_id]
    begin = np.searchsorted(sorted_ids, ranking.query_ids, side="left")
    end = np.searchsorted(sorted_ids, ranking.query_ids, side="right")
    end = np.where(ranking.query_ids < 0, begin, end)

    size = len(ranking.gallery)
    row_bytes = 8 * size + (0 if which is None else 4 * len(gallery)) + _PAIR_BYTES * int((end - begin).max())
    rows = _TILE * max(1, int(memory_mb * 2**20) // (row_bytes * _TILE))
    with ThreadPoolExecutor(max(1, faiss.omp_get_max_threads())) as pool:
        for part in slices(len(ranking.query), rows):
            distance = _distances(ranking.query[part], gallery)
            if which is not None:
                distance = np.take(distance, which, axis=1)
            starts, counts = begin[part], end[part] - begin[part]
            row = np.repeat(np.arange(len(counts)), counts)
            offset = np.repeat(starts - (np.cumsum(counts) - counts), counts)
            column = by_id[np.arange(len(row)) + offset]
            row, column = _hide(ranking, part, distance, row, column)
            ranks = _ranks(distance, row, column, pool)
            counts = np.bincount(row, minlength=len(counts))
            ranks = ranks[np.argsort(row * (size + 1) + ranks, kind="stable")]
            yield PositiveRanks(part, counts, ranks)


def _distances(query: FloatArray, gallery: FloatArray) -> FloatArray:
    """[n, G] squared Euclidean distances, always computed by products of `_TILE` rows."""
    size, dim = gallery.shape
    padded = -(-len(query) // _TILE) * _TILE
    out = np.empty((padded, size), dtype=np.float32)
    full = np.zeros((padded, dim), dtype=np.float32)
    full[: len(query)] = query
    for rows in slices(padded, _TILE):
        faiss.pairwise_L2sqr(
            dim,
            _TILE,
            faiss.swig_ptr(full[rows]),
            size,
            faiss.swig_ptr(gallery),
            faiss.swig_ptr(out[rows]),
        )
    return out[: len(query)]


def _hide(
    ranking: Ranking, part: slice, distance: FloatArray, row: IntArray, column: IntArray
) -> tuple[IntArray, IntArray]:
    """Moves what a query may not see to infinity; returns the same-identity pairs that remain."""
    hidden = np.zeros(len(row), dtype=bool)
    if ranking.query_cams is not None and ranking.gallery_cams is not None:
        hidden |= ranking.query_cams[part][row] == ranking.gallery_cams[column]
    distance[row[hidden], column[hidden]] = np.inf
    if ranking.self_index is not None:
        own = ranking.self_index[part]
        present = np.flatnonzero(own >= 0)
        distance[present, own[present]] = np.inf
        hidden |= own[row] == column
    return row[~hidden], column[~hidden]


def _ranks(distance: FloatArray, row: IntArray, column: IntArray, pool: ThreadPoolExecutor) -> IntArray:
    """Stable rank of each (row, column) entry within its row of `distance`."""
    if len(row) == 0:
        return np.zeros(0, dtype=np.int64)
    ordered = np.empty_like(distance)

    def order(rows: slice) -> None:
        ordered[rows] = distance[rows]
        ordered[rows].sort(axis=1)

    list(pool.map(order, slices(len(ordered), 16)))
    value = distance[row, column]
    nearer = _count_below(ordered, row, value)
    following = np.minimum(nearer + 1, ordered.shape[1] - 1)
    tied = np.flatnonzero((ordered[row, following] == value) & (following > nearer))
    ranks = nearer + 1
    if len(tied):
        ranks[tied] += _earlier_ties(distance, row[tied], column[tied], value[tied])
    return ranks


def _count_below(ordered: FloatArray, row: IntArray, value: FloatArray) -> IntArray:
    """How many entries of the ascending row lie strictly below each value: all binary searches at once."""
    low = np.zeros(len(row), dtype=np.int64)
    high = np.full(len(row), ordered.shape[1], dtype=np.int64)
    for _ in range(int(ordered.shape[1]).bit_length()):
        middle = (low + high) >> 1
        below = (ordered[row, np.minimum(middle, ordered.shape[1] - 1)] < value) & (middle < high)
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, middle)
    return low


def _earlier_ties(distance: FloatArray, row: IntArray, column: IntArray, value: FloatArray) -> IntArray:
    """For each entry, how many columns before it hold exactly its value in the same row.

    The loop runs over the distinct tied values of a row (all rows together), not over rows: a collapsed model
    has one such value, a gallery with duplicate images as many as a query has duplicated positives.
    """
    key = (row << 32) | (value + np.float32(0.0)).view(np.uint32).astype(np.int64)
    groups, member = np.unique(key, return_inverse=True)
    group_row, group_value = groups >> 32, (groups & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
    slot = np.arange(len(groups)) - np.searchsorted(group_row, group_row, side="left")
    earlier = np.zeros(len(row), dtype=np.int64)
    for number in range(int(slot.max()) + 1):
        chosen = np.flatnonzero(slot == number)
        line = np.full(len(groups), -1, dtype=np.int64)
        line[chosen] = np.arange(len(chosen))
        for some in slices(len(chosen), 64):
            equal = distance[group_row[chosen[some]]] == group_value[chosen[some], None]
            count = _running_count(equal)
            entries = np.flatnonzero((line[member] >= some.start) & (line[member] < some.stop))
            earlier[entries] = count[line[member[entries]] - some.start, column[entries]] - 1
    return earlier


def _running_count(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Along each row, how many entries so far are true."""
    return np.cumsum(mask, axis=1, dtype=np.int32)
