"""Embeddings beside the table rows that they belong to, and a card that says where they come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricid.data.embedding_file import EmbeddingReader, check_array, check_finite, write_embeddings
from metricid.data.manifest import Manifest


@dataclass(frozen=True)
class EmbeddingSet:
    """N embeddings, their N table rows, and a JSON card (model, protocol, version, ...).

    Attributes:
        embeddings: [N, D] float32, finite.
        table: N rows.
        card: what `json` can write.

    Example:
        >>> people = Manifest.from_columns(path=["a.jpg", "b.jpg"], identity=["Ann", "Eve"])
        >>> EmbeddingSet(np.eye(2, dtype=np.float32), people, {"model": "resnet18"}).embeddings.shape
        (2, 2)
    """

    embeddings: np.ndarray
    table: Manifest
    card: dict[str, Any]

    def __post_init__(self) -> None:
        check_array(self.embeddings, len(self.table), self.table.name)
        check_finite(self.embeddings, self.table.name)

    def __len__(self) -> int:
        return len(self.table)

    def write(self, path: str | Path) -> None:
        """Writes a `.parquet` file, or a `.npy` file with a `.csv` and a `.json`, as `write_embeddings` does.

        Raises:
            InputError: another suffix, a card that is not JSON, a place that cannot be written, or a `.csv`
                without a `.json` that would be replaced.
        """
        write_embeddings(path, self.table, [self.embeddings], self.card, dimension=self.embeddings.shape[1])

    @classmethod
    def read(cls, path: str | Path) -> "EmbeddingSet":
        """Reads a whole embedding file into memory, float16 as float32; `EmbeddingReader` reads in blocks.

        Raises:
            InputError: a file is missing, cut off, of another form or of another set, the row counts differ,
                or a value is not finite.
        """
        reader = EmbeddingReader(path)
        embeddings = np.empty((len(reader), reader.dimension), np.float32)
        start = 0
        for vectors, _ in reader.blocks():
            embeddings[start : start + len(vectors)] = vectors
            start += len(vectors)
        return cls(embeddings, reader.table, reader.card)
