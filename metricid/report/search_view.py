"""What a search does with single images: ranked lists, identities taken for each other or not found."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricid.evaluation import RetrievalResult, retrieval
from metricid.evaluation.arrays import FloatArray, IntArray, check_embeddings, encode, unique_rows
from metricid.evaluation.ranking import prepare

GROUPS = ("best", "worst", "random")
TILE = 64  # queries per matrix product, as in the evaluation, so that ranks here are the ranks there
MOST_QUERIES = TILE // len(GROUPS)


@dataclass(frozen=True)
class Search:
    """Who is searched among whom. Queries and gallery are rows of the embeddings.

    Attributes:
        embeddings: [N, D] float32.
        identities: [N] text.
        cameras: [N] text, or None for no same-camera rule.
        queries: [Q] rows.
        gallery: [G] rows.
        leave_one_out: whether each query is in the gallery itself and not seen there.
        distractors: identities that never match.
        rule: in words.
    """

    embeddings: FloatArray
    identities: NDArray[Any]
    cameras: NDArray[Any] | None
    queries: IntArray
    gallery: IntArray
    leave_one_out: bool
    distractors: tuple[str, ...]
    rule: str


@dataclass(frozen=True)
class Item:
    """A gallery image in a ranked list.

    Attributes:
        row: of the embeddings.
        rank: from 1; None for an image that the same-camera rule leaves out.
        right: whether it shows the query's identity.
        score: cosine similarity.
    """

    row: int
    rank: int | None
    right: bool
    score: float


@dataclass(frozen=True)
class RankedList:
    """A query and what was found.

    Attributes:
        group: one of `GROUPS`.
        row: of the query in the embeddings.
        average_precision: of the query.
        first_rank: rank of the nearest right image.
        positives: right images in the gallery.
        items: the nearest images, those left out by the camera rule included.
        first_right: the nearest right image where it is not among `items`.
    """

    group: str
    row: int
    average_precision: float
    first_rank: int
    positives: int
    items: list[Item]
    first_right: Item | None


@dataclass(frozen=True)
class Confusion:
    """Two identities that are taken for each other.

    Attributes:
        first: an identity.
        second: another.
        times: queries of either whose nearest image shows the other.
        queries: queries of both that count.
        score: the highest cosine of these.
        query_row: the query of that cosine, a row of the embeddings.
        found_row: the image found, likewise.
    """

    first: str
    second: str
    times: int
    queries: int
    score: float
    query_row: int
    found_row: int


@dataclass(frozen=True)
class IdentityRow:
    """How the queries of one identity fare.

    Attributes:
        identity: its name.
        queries: those that count.
        rank1: share of them whose nearest image is right.
        mean_ap: mean of their average precision.
        taken_for: the identity that is found most often in its place, or None.
        times: how often.
    """

    identity: str
    queries: int
    rank1: float
    mean_ap: float
    taken_for: str | None
    times: int


def plan_search(
    embeddings: ArrayLike,
    columns: Mapping[str, ArrayLike | None],
    protocols: Sequence[str],
    distractors: Sequence[str] = (),
) -> Search:
    """The search that belongs to the protocols of an evaluation.

    Args:
        embeddings: [N, D].
        columns: `identity` ([N]), and `camera`, `split` where the table has them.
        protocols: names; `reid` searches queries in the gallery under the same-camera rule, `retrieval`
            queries in the gallery where the split column names both, others each image among all others.
        distractors: identities that never match, under `reid`.
    """
    items = check_embeddings(embeddings)
    identities = np.asarray(columns["identity"], dtype=object)
    split, camera = columns.get("split"), columns.get("camera")
    everything = np.arange(len(items))
    values = np.asarray([] if split is None else split, dtype=object)
    queries, gallery = np.flatnonzero(values == "query"), np.flatnonzero(values == "gallery")
    divided = len(queries) > 0 and len(gallery) > 0
    if "reid" in protocols and divided and camera is not None:
        cameras = np.asarray(camera, dtype=object)
        rule = "queries in the gallery; images of the query's identity and camera are not counted"
        return Search(items, identities, cameras, queries, gallery, False, tuple(distractors), rule)
    if "retrieval" in protocols and divided:
        return Search(items, identities, None, queries, gallery, False, (), "queries in the gallery")
    return Search(
        items, identities, None, everything, everything, True, (), "each image among all other images"
    )


def measure(search: Search) -> RetrievalResult:
    """Rank and average precision of every query.

    Raises:
        ValueError: no query has a positive, or a zero vector.
    """
    query, gallery = _sides(search)
    cameras = search.cameras
    return retrieval(
        query,
        gallery,
        search.identities[search.queries],
        search.identities[search.gallery],
        None if cameras is None else cameras[search.queries],
        None if cameras is None else cameras[search.gallery],
        self_index=search.queries if search.leave_one_out else None,
        distractors=search.distractors,
    )


def ranked_lists(
    search: Search, measured: RetrievalResult, *, count: int, top: int, seed: int
) -> list[RankedList]:
    """Ranked lists of the best, the worst and of random queries.

    Best and worst go by average precision, each identity once where there are enough of them.

    Args:
        search: who is searched among whom.
        measured: from `measure`.
        count: queries of each group, at most `MOST_QUERIES`.
        top: images of each list that count.
        seed: of the random choice.
    """
    if not 1 <= count <= MOST_QUERIES:
        raise ValueError(f"count must be from 1 to {MOST_QUERIES}, not {count}")
    chosen = _choose(search, measured, count, seed)
    nearest = _Nearest(search)
    lists = []
    order = [(group, query) for group in GROUPS for query in chosen[group]]
    distances = nearest.distances(np.array([query for _, query in order]))
    for (group, query), distance in zip(order, distances, strict=True):
        items, first = _list(search, query, distance, top)
        lists.append(
            RankedList(
                group,
                int(search.queries[query]),
                float(measured.average_precision[query]),
                int(measured.first_rank[query]),
                int(measured.positives[query]),
                items,
                first,
            )
        )
    return lists


def confusions(search: Search, measured: RetrievalResult) -> tuple[list[Confusion], dict[str, Counter[str]]]:
    """Pairs of identities of which one was found first for the other, the most frequent first.

    Returns:
        The pairs, and for each identity what was found in its place, and how often.
    """
    wrong = np.flatnonzero(measured.first_rank > 1)
    counted = Counter(search.identities[search.queries[measured.first_rank > 0]].tolist())
    nearest = _Nearest(search)
    query_codes, gallery_codes = encode(
        [
            ("identities", search.identities[search.queries], len(search.queries)),
            ("identities", search.identities[search.gallery], len(search.gallery)),
        ]
    )
    pairs: dict[tuple[str, str], list[tuple[float, int, int]]] = {}
    taken: dict[str, Counter[str]] = {}
    for start in range(0, len(wrong), TILE):
        some = wrong[start : start + TILE]
        distance = nearest.distances(some)
        distance[query_codes[some][:, None] == gallery_codes[None, :]] = np.inf
        for query, found in zip(some, distance.argmin(axis=1), strict=True):
            row, other = int(search.queries[query]), int(search.gallery[found])
            mine, theirs = search.identities[row], search.identities[other]
            key = (mine, theirs) if mine <= theirs else (theirs, mine)
            pairs.setdefault(key, []).append((_cosine(search, row, other), row, other))
            taken.setdefault(mine, Counter())[theirs] += 1
    result = [
        Confusion(one, two, len(found), counted[one] + counted[two], *max(found))
        for (one, two), found in pairs.items()
    ]
    return sorted(result, key=lambda c: (-c.times, -c.score, c.first, c.second)), taken


def by_identity(
    search: Search, measured: RetrievalResult, taken: Mapping[str, Counter[str]]
) -> list[IdentityRow]:
    """A row for each identity with a query that counts, the lowest mean average precision first."""
    counted = measured.first_rank > 0
    (codes,) = encode([("identities", search.identities[search.queries], len(search.queries))])
    number = np.bincount(codes[counted], minlength=codes.max() + 1)
    hits = np.bincount(codes[counted], weights=measured.first_rank[counted] == 1, minlength=len(number))
    precision = np.bincount(
        codes[counted], weights=measured.average_precision[counted], minlength=len(number)
    )
    first = np.zeros(len(number), dtype=np.int64)
    first[codes[::-1]] = search.queries[::-1]
    rows = []
    for code in np.flatnonzero(number):
        name = str(search.identities[first[code]])
        other = taken[name].most_common(1)[0] if name in taken else (None, 0)
        count = int(number[code])
        rows.append(IdentityRow(name, count, hits[code] / count, precision[code] / count, *other))
    return sorted(rows, key=lambda row: (row.mean_ap, row.identity))


class _Nearest:
    """Distances of some queries to the whole gallery, the same numbers as in the evaluation."""

    def __init__(self, search: Search):
        self._query, gallery = prepare(*_sides(search), "cosine")
        distinct = unique_rows(gallery)
        self._gallery: FloatArray = gallery if distinct is None else distinct[0]
        self._which: IntArray | None = None if distinct is None else distinct[1]

    def distances(self, queries: IntArray) -> FloatArray:
        """[n, G] squared Euclidean distances, n being at most `TILE`."""
        tile = np.zeros((TILE, self._query.shape[1]), dtype=np.float32)
        tile[: len(queries)] = self._query[queries]
        distance = faiss.pairwise_distances(tile, self._gallery)[: len(queries)]
        return distance if self._which is None else np.take(distance, self._which, axis=1)


def _sides(search: Search) -> tuple[FloatArray, FloatArray]:
    if search.leave_one_out:
        return search.embeddings, search.embeddings
    return search.embeddings[search.queries], search.embeddings[search.gallery]


def _choose(search: Search, measured: RetrievalResult, count: int, seed: int) -> dict[str, list[int]]:
    counted = np.flatnonzero(measured.first_rank > 0)
    precision = measured.average_precision[counted]
    names = search.identities[search.queries[counted]]
    best = np.lexsort((counted, -measured.positives[counted], -precision))
    worst = np.lexsort((counted, -measured.first_rank[counted], precision))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(counted))[:count])
    return {
        "best": [int(counted[i]) for i in _spread(best, names, count)],
        "worst": [int(counted[i]) for i in _spread(worst, names, count)],
        "random": [int(counted[i]) for i in drawn],
    }


def _spread(order: IntArray, names: NDArray[Any], count: int) -> list[int]:
    """The first of an order, other identities before a second query of the same."""
    seen: set[str] = set()
    fresh: list[int] = []
    again: list[int] = []
    for place in order.tolist():
        if len(fresh) == count:
            break
        if names[place] not in seen:
            seen.add(names[place])
            fresh.append(place)
        elif len(again) < count:
            again.append(place)
    return (fresh + again)[:count]


def _list(search: Search, query: int, distance: FloatArray, top: int) -> tuple[list[Item], Item | None]:
    """The nearest items of one query, and the first right one where it comes later."""
    row = int(search.queries[query])
    same = search.identities[search.gallery] == search.identities[row]
    unseen = np.zeros(len(same), dtype=bool)
    if search.cameras is not None:
        unseen = same & (search.cameras[search.gallery] == search.cameras[row])
    order = np.argsort(distance, kind="stable")
    if search.leave_one_out:
        order = order[search.gallery[order] != row]
    rank = np.cumsum(~unseen[order])
    shown = min(int(np.searchsorted(rank, top)) + 1, 2 * top, len(order))

    def item(place: int) -> Item:
        column = order[place]
        other = int(search.gallery[column])
        counts = None if unseen[column] else int(rank[place])
        return Item(other, counts, bool(same[column]), _cosine(search, row, other))

    first = int(np.argmax(same[order] & ~unseen[order]))
    return [item(place) for place in range(shown)], None if first < shown else item(first)


def _cosine(search: Search, first: int, second: int) -> float:
    a, b = (search.embeddings[row].astype(np.float64) for row in (first, second))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
