"""How much of the exact answer an approximate index finds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricid.errors import InputError
from metricid.search.kinds import VectorIndex, faiss
from metricid.search.store import Vectors

QUERIES = 500
AT = 10
TARGET = 0.98
LEAST_ROWS = 3
SEED = 0
LEAST_GAIN = 0.002  # of a doubled effort, below which more of it is a waste


def check_target(target: float) -> None:
    """`target` is a recall.

    Raises:
        InputError: it is not.
    """
    if not 0 < target <= 1:
        raise InputError(f"--target: must be a recall above 0 and up to 1, got {target:g}")


class ExactNeighbours:
    """The exact neighbours of some rows, gathered while all rows pass by in chunks.

    Args:
        rows: [Q] numbers of the rows that are the queries, rising.
        total: how many rows there are.
    """

    def __init__(self, rows: NDArray[np.int64], total: int):
        self.rows = rows
        self.k = max(0, min(AT, total - 1))
        self._queries: Vectors | None = None
        self._scores = np.empty((len(rows), 0), np.float32)
        self._ids = np.empty((len(rows), 0), np.int64)

    def set_queries(self, queries: Vectors) -> None:
        """[Q, D] the vectors of the rows."""
        self._queries = np.ascontiguousarray(queries)

    def see(self, first: int, vectors: Vectors) -> None:
        """Compares the queries with the next chunk; its first row has number `first`."""
        assert self._queries is not None
        k = min(self.k + 1, len(vectors))
        scores, ids = faiss.knn(self._queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([self._scores, scores], axis=1)
        ids = np.concatenate([self._ids, ids + first], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.k + 1]
        self._scores = np.take_along_axis(scores, best, axis=1)
        self._ids = np.take_along_axis(ids, best, axis=1)

    def recall(self, index: VectorIndex, effort: int) -> float:
        """The share of the k exact neighbours, the row itself left out, that the index finds."""
        assert self._queries is not None
        _, found = index.search(self._queries, self.k + 1, effort)
        own = self.rows[:, None]
        right = 0
        for truth, answer in zip(
            np.where(self._ids == own, -1, self._ids), np.where(found == own, -2, found), strict=True
        ):
            right += len(np.intersect1d(truth[truth >= 0][: self.k], answer[answer >= 0][: self.k]))
        return right / (len(self.rows) * self.k)

    def find_in(self, index: VectorIndex) -> None:
        """Takes the exact neighbours from an index itself, as exactly as it keeps its vectors."""
        self.set_queries(index.vectors(self.rows))
        assert self._queries is not None
        self._scores, self._ids = index.exact(self._queries, self.k + 1)


def pick_queries(total: int) -> NDArray[np.int64]:
    """[Q] row numbers to measure with, rising; always the same for one size."""
    random = np.random.default_rng(SEED)
    return np.sort(random.choice(total, min(QUERIES, total), replace=False)).astype(np.int64)


def measure(index: VectorIndex, exact: ExactNeighbours | None, target: float, against: str) -> dict[str, Any]:
    """The least effort that reaches the target, or after which more of it hardly helps, and its recall.

    Args:
        index: filled.
        exact: what the right answers are; None for an exact kind, or too few rows.
        target: recall@k to reach.
        against: what the right answers come from.

    Returns:
        `effort` and `recall` for the card: value, k (`at`), queries, rows, and against what.
    """
    rows, efforts = len(index), index.efforts()
    if exact is None:
        why = "itself: this kind is exact" if index.kind == "flat" else "nothing: too few rows"
        value = 1.0 if index.kind == "flat" else None
        told: dict[str, Any] = {"value": value, "at": AT, "queries": 0, "rows": rows, "against": why}
        return {"effort": efforts[0], "recall": told}
    effort, value = efforts[0], exact.recall(index, efforts[0])
    for more in efforts[1:]:
        if value >= target:
            break
        recall = exact.recall(index, more)
        if recall - value < LEAST_GAIN and value > 0.5:
            break
        effort, value = more, recall
    told = {
        "value": round(value, 4),
        "at": exact.k,
        "queries": len(exact.rows),
        "rows": rows,
        "against": against,
    }
    return {"effort": effort, "recall": told}


def measure_stored(index: VectorIndex, target: float) -> dict[str, Any]:
    """As `measure`, against an exact search of what the index holds."""
    exact = None
    if index.kind != "flat" and len(index) >= LEAST_ROWS:
        exact = ExactNeighbours(pick_queries(len(index)), len(index))
        exact.find_in(index)
    return measure(index, exact, target, "the vectors as stored")
