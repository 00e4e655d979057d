"""Retrieval and identification: CMC, mAP, mINP, Recall@k, R-precision, MAP@R, from exact ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricid.evaluation.arrays import IntArray, check_embeddings, encode
from metricid.evaluation.curves import Curve
from metricid.evaluation.intervals import Interval, mean_intervals
from metricid.evaluation.ranking import Ranking, prepare, rank_positives

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RetrievalResult:
    """What `retrieval` found. Means run over the queries with a positive; arrays hold one value per query.

    Attributes:
        first_rank: [Q] rank of the nearest positive, from 1; 0 where the query has no positive.
        positives: [Q] number of positives.
        average_precision: [Q] not interpolated; NaN where the query has no positive, as below.
        inverse_negative_penalty: [Q] positives / rank of the last positive (Ye et al. 2021).
        precision_at_r: [Q] hits among the top R, over R, R being the number of positives.
        ap_at_r: [Q] (1/R) sum over k <= R of precision@k where rank k is a hit (Musgrave et al. 2020).
        gallery: number of gallery items.
        max_rank: length of `cmc`.
        topk: the k of `metrics`.
        intervals: name as in `metrics` -> 95% bootstrap interval over query identities, if asked for.
    """

    first_rank: IntArray
    positives: IntArray
    average_precision: Floats
    inverse_negative_penalty: Floats
    precision_at_r: Floats
    ap_at_r: Floats
    gallery: int
    max_rank: int
    topk: tuple[int, ...]
    intervals: dict[str, Interval]

    @property
    def queries(self) -> int:
        """Queries that count: those with a positive."""
        return int(np.count_nonzero(self.first_rank))

    @property
    def queries_without_positive(self) -> int:
        """Queries left out of every mean because the gallery holds no positive they may see."""
        return len(self.first_rank) - self.queries

    @property
    def cmc(self) -> Floats:
        """[max_rank] share of queries whose nearest positive is at rank 1..max_rank or better."""
        first = self.first_rank[self.first_rank > 0]
        hits = np.bincount(first[first <= self.max_rank] - 1, minlength=self.max_rank)
        return np.cumsum(hits) / len(first)

    def recall_at(self, k: int) -> float:
        """Share of queries with a positive among the first k."""
        if k < 1:
            raise ValueError(f"recall_at needs k >= 1, not {k}")
        first = self.first_rank[self.first_rank > 0]
        return float(np.mean(first <= k))

    @property
    def rank1(self) -> float:
        """Share of queries whose nearest neighbour is a positive."""
        return self.recall_at(1)

    @property
    def mAP(self) -> float:
        """Mean of `average_precision`."""
        return float(np.nanmean(self.average_precision))

    @property
    def mINP(self) -> float:
        """Mean of `inverse_negative_penalty`."""
        return float(np.nanmean(self.inverse_negative_penalty))

    @property
    def r_precision(self) -> float:
        """Mean of `precision_at_r`."""
        return float(np.nanmean(self.precision_at_r))

    @property
    def map_at_r(self) -> float:
        """Mean of `ap_at_r`."""
        return float(np.nanmean(self.ap_at_r))

    @property
    def metrics(self) -> dict[str, float]:
        """Every measure by its name."""
        ranks = {f"rank-{k}": self.recall_at(k) for k in self.topk}
        return ranks | {
            "mAP": self.mAP,
            "mINP": self.mINP,
            "R-precision": self.r_precision,
            "MAP@R": self.map_at_r,
        }

    @property
    def curve(self) -> Curve:
        """The CMC curve."""
        return Curve(np.arange(1.0, self.max_rank + 1), self.cmc, "rank", "identification rate")


def retrieval(
    query: ArrayLike,
    gallery: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cams: ArrayLike | None = None,
    gallery_cams: ArrayLike | None = None,
    *,
    metric: str = "cosine",
    self_index: ArrayLike | None = None,
    distractors: Sequence[str | int] = (),
    topk: Sequence[int] = (1, 5, 10),
    max_rank: int = 50,
    bootstrap: int = 0,
    seed: int = 0,
    memory_mb: float = 256.0,
) -> RetrievalResult:
    """Searches every query in the gallery, exactly, and measures where its positives stand.

    With cameras this is the Market-1501 rule (Zheng et al., ICCV 2015): gallery items of the query's identity
    *and* camera are not seen. Items at exactly the same distance keep the order of the gallery, and equal
    embeddings are at exactly the same distance. Distances are float32 from FAISS, in blocks of queries.

    Args:
        query: [Q, D] embeddings; need not be normalised.
        gallery: [G, D] embeddings.
        query_ids: [Q] strings or integers.
        gallery_ids: [G] of the same kind.
        query_cams: [Q] cameras, strings or integers; both or neither.
        gallery_cams: [G] cameras.
        metric: `cosine` or `euclidean`.
        self_index: [Q] gallery row that is the query itself and is not seen, -1 for none.
        distractors: identities that never match anything, such as 0 in Market-1501; they stay in the gallery.
        topk: ranks listed by `RetrievalResult.metrics`.
        max_rank: length of the CMC curve; a shorter gallery repeats the last value.
        bootstrap: resamples of the query identities for 95% intervals; 0 for none.
        seed: of the bootstrap.
        memory_mb: bound on the working memory beside the embeddings; some 512 bytes for each gallery item are
            used even where that is more.

    Returns:
        A `RetrievalResult`.

    Raises:
        ValueError: shapes or kinds disagree, a row is not finite (or is zero, under cosine), no positives.

    Example:
        >>> result = retrieval([[1, 0], [0, 1]], [[1, 0.1], [1, 0.2], [0, 1]], ["a", "b"], ["b", "a", "b"])
        >>> result.rank1, round(result.mAP, 4)
        (0.5, 0.6667)
    """
    queries, items = check_embeddings(query, "query"), check_embeddings(gallery, "gallery")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"query has {queries.shape[1]} dimensions, gallery {items.shape[1]}")
    if min(topk, default=0) < 1 or max_rank < 1 or bootstrap < 0 or memory_mb <= 0:
        raise ValueError("topk, max_rank and memory_mb must be positive, bootstrap not negative")
    names, q_ids, g_ids = encode(
        [
            ("distractors", np.array(list(distractors), dtype=object), len(distractors)),
            ("query_ids", query_ids, len(queries)),
            ("gallery_ids", gallery_ids, len(items)),
        ]
    )
    q_cams, g_cams = None, None
    if (query_cams is None) != (gallery_cams is None):
        raise ValueError("query_cams and gallery_cams are given together or not at all")
    if query_cams is not None and gallery_cams is not None:
        q_cams, g_cams = encode(
            [("query_cams", query_cams, len(queries)), ("gallery_cams", gallery_cams, len(items))]
        )
    own = None if self_index is None else _check_self_index(self_index, len(queries), len(items))
    matching = np.where(np.isin(q_ids, names), -1, q_ids)

    vectors = prepare(queries, items, metric)
    columns = _measure(Ranking(*vectors, matching, g_ids, q_cams, g_cams, own), memory_mb)
    first, counted = columns[0], columns[0] > 0
    if not counted.any():
        raise ValueError(
            "no query has a positive in the gallery: give at least two images per identity, "
            "and the same identities in query and gallery"
        )
    result = RetrievalResult(*columns, len(items), max_rank, tuple(topk), {})
    if bootstrap:
        values: dict[str, Floats] = {f"rank-{k}": (first <= k).astype(np.float64) for k in topk}
        values |= {
            "mAP": result.average_precision,
            "mINP": result.inverse_negative_penalty,
            "R-precision": result.precision_at_r,
            "MAP@R": result.ap_at_r,
        }
        values = {name: value[counted] for name, value in values.items()}
        result.intervals.update(mean_intervals(values, q_ids[counted], bootstrap, seed))
    return result


def leave_one_out(
    embeddings: ArrayLike,
    ids: ArrayLike,
    cams: ArrayLike | None = None,
    *,
    metric: str = "cosine",
    topk: Sequence[int] = (1, 5, 10),
    max_rank: int = 50,
    bootstrap: int = 0,
    seed: int = 0,
    memory_mb: float = 256.0,
) -> RetrievalResult:
    """Every item searched among all others; the item itself is left out by its index, so duplicates remain.

    Args:
        embeddings: [N, D].
        ids: [N] strings or integers.
        cams: [N] cameras for the same-camera rule, or None.
        metric: as in `retrieval`, as are all others.
        topk: ranks listed by `RetrievalResult.metrics`.
        max_rank: length of the CMC curve.
        bootstrap: resamples of the identities.
        seed: of the bootstrap.
        memory_mb: bound on the working memory.

    Returns:
        A `RetrievalResult`.

    Raises:
        ValueError: as `retrieval`.
    """
    items = check_embeddings(embeddings)
    return retrieval(
        items,
        items,
        ids,
        ids,
        cams,
        cams,
        metric=metric,
        self_index=np.arange(len(items)),
        topk=topk,
        max_rank=max_rank,
        bootstrap=bootstrap,
        seed=seed,
        memory_mb=memory_mb,
    )


def _check_self_index(self_index: ArrayLike, queries: int, gallery: int) -> IntArray:
    own = np.asarray(self_index)
    if own.shape != (queries,) or own.dtype.kind not in "iu":
        raise ValueError(f"self_index must be {queries} integers, one gallery row (or -1) per query")
    own = own.astype(np.int64)
    if own.min() < -1 or own.max() >= gallery:
        raise ValueError(f"self_index must lie in [-1, {gallery}), the rows of the gallery")
    return own


def _measure(ranking: Ranking, memory_mb: float) -> tuple[IntArray, IntArray, Floats, Floats, Floats, Floats]:
    """The per-query columns of `RetrievalResult`, in its order."""
    total = len(ranking.query)
    first, positives = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    ap, inp, at_r, ap_at_r = (np.full(total, np.nan) for _ in range(4))
    for part in rank_positives(ranking, memory_mb):
        positives[part.queries] = part.counts
        some = np.flatnonzero(part.counts)
        if not len(some):
            continue
        counts = part.counts[some]
        ends = np.cumsum(counts)
        begins = ends - counts
        nth = np.arange(1, len(part.ranks) + 1) - np.repeat(begins, counts)
        precision = nth / part.ranks
        inside = part.ranks <= np.repeat(counts, counts)
        rows = part.queries.start + some
        first[rows] = part.ranks[begins]
        inp[rows] = counts / part.ranks[ends - 1]
        ap[rows] = np.add.reduceat(precision, begins) / counts
        at_r[rows] = np.add.reduceat(inside, begins, dtype=np.int64) / counts
        ap_at_r[rows] = np.add.reduceat(precision * inside, begins) / counts
    return first, positives, ap, inp, at_r, ap_at_r
