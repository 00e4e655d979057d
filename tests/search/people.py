"""Small collections of vectors with rows, like embeddings of people seen by cameras."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from metricid.search import ArraySource

DIMENSION = 32


@dataclass
class People:
    """N unit vectors around the directions of people, and their rows."""

    vectors: np.ndarray
    rows: pa.Table

    @classmethod
    def make(cls, count, seed=0, per_person=5, prefix="person"):
        random = np.random.default_rng(seed)
        centres = random.standard_normal((-(-count // per_person), DIMENSION)).repeat(per_person, 0)[:count]
        vectors = centres + 0.7 * random.standard_normal(centres.shape)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        person = [f"{prefix}-{i // per_person:04}" for i in range(count)]
        rows = pa.table(
            {
                "path": [f"{name}/{i:05}.jpg" for i, name in enumerate(person)],
                "identity": person,
                "camera": [str(i % 3) for i in range(count)],
                "x1": np.arange(count, dtype=np.float32),
            }
        )
        return cls(vectors, rows)

    @property
    def keys(self):
        return self.rows["path"].to_pylist()

    @property
    def source(self):
        return ArraySource(self.vectors, self.rows)

    def take(self, chosen):
        return People(self.vectors[chosen], self.rows.take(np.asarray(chosen)))

    def nearest(self, queries, k, mask=None):
        """Brute force: scores and keys."""
        scores = queries @ self.vectors.T
        if mask is not None:
            scores[:, ~mask] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), np.array(self.keys, object)[order]
