"""What a photo is searched among: the test images of a run, or an index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metricid.data.decode import ImageError
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource
from metricid.errors import InputError
from metricid.evaluation.arrays import normalise
from metricid.search.store import IDENTITY, Store


@dataclass(frozen=True)
class Hit:
    """A found image: its key, the identity it shows ("" if nobody knows) and the cosine to the query."""

    path: str
    identity: str
    score: float


class Gallery(Protocol):
    """Images that can be searched.

    Attributes:
        name: for people.
        images: how many there are.
    """

    name: str
    images: int

    def nearest(self, vector: np.ndarray, k: int) -> list[Hit]:
        """The `k` nearest images to a unit vector [D], best first; fewer where there are fewer."""
        ...

    def picture(self, path: str) -> np.ndarray | None:
        """The image at a path, [H, W, 3] uint8 RGB, or None where it cannot be had."""
        ...


class RunImages:
    """Embeddings in memory, searched exactly.

    Args:
        embeddings: [N, D]; need not be normalised.
        table: their rows.
        source: where the images are.
    """

    def __init__(self, embeddings: np.ndarray, table: Manifest, source: ImageSource):
        self.name, self.images = f"{len(table):,} test images", len(table)
        self._unit = normalise(embeddings)
        self._paths: Sequence[str] = table.paths
        self._identities = table.identities
        self._source = source

    def nearest(self, vector: np.ndarray, k: int) -> list[Hit]:
        """As `Gallery.nearest`; of equal scores the earlier row comes first."""
        scores = np.clip(self._unit @ vector.astype(np.float32), -1, 1)
        order = np.argsort(-scores, kind="stable")[:k]
        return [Hit(self._paths[row], str(self._identities[row]), float(scores[row])) for row in order]

    def path_at(self, row: int) -> str:
        """The path of a row of the table."""
        return self._paths[row]

    def picture(self, path: str) -> np.ndarray | None:
        """As `Gallery.picture`."""
        return read_picture(self._source, path)


class StoredImages:
    """An index or another store of vectors.

    Args:
        store: what is searched; its vectors are of the model that embeds the photos.
        name: for people.
        source: where the images of its rows are, or None for a page without their pictures.
    """

    def __init__(self, store: Store, name: str, source: ImageSource | None):
        rows = store.stats()["rows"]
        self.name, self.images = f"{rows:,} images of {name}", int(rows)
        self._store, self._source = store, source

    def nearest(self, vector: np.ndarray, k: int) -> list[Hit]:
        """As `Gallery.nearest`."""
        hits = self._store.query(vector[None].astype(np.float32), min(k, self.images)).of(0)
        return [Hit(hit["path"], str(hit.get(IDENTITY) or ""), float(hit["score"])) for hit in hits]

    def picture(self, path: str) -> np.ndarray | None:
        """As `Gallery.picture`."""
        return None if self._source is None else read_picture(self._source, path)


def read_picture(source: ImageSource, path: str) -> np.ndarray | None:
    """An image, or None where it is missing or damaged."""
    try:
        return source.read(path)
    except (ImageError, InputError):
        return None
