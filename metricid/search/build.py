"""Writes a generation of an index from vectors that pass by in chunks and need not fit in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.search import folder as files
from metricid.search import recall
from metricid.search.kinds import VectorIndex, sample_size
from metricid.search.store import KEY, Vectors, check_rows, check_vectors

CHUNK = 16_384
SEED = 0

Batch = tuple[Vectors, pa.Table]
Progress = Callable[[str, int, int], None]


class VectorSource(Protocol):
    """N vectors with their rows, which can be gone through more than once."""

    @property
    def dimension(self) -> int:
        """D."""
        ...

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[Batch]:
        """Chunks of [n, D] float32 and n rows with a column `path`; the same each time."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Vectors [N, D] float32 and their rows, in memory."""

    vectors: Vectors
    rows: pa.Table

    @property
    def dimension(self) -> int:
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def batches(self) -> Iterator[Batch]:
        if len(self.vectors) != len(self.rows):
            raise InputError(f"{len(self.vectors)} vectors for {len(self.rows)} rows")
        for start in range(0, len(self.vectors), CHUNK):
            yield self.vectors[start : start + CHUNK], self.rows.slice(start, CHUNK)


class CheckedSource:
    """A source whose chunks have passed the checks of the door, scaled to length 1.

    Args:
        source: any.
        name: how messages call it.
    """

    def __init__(self, source: VectorSource, name: str):
        self._source, self.name = source, name

    @property
    def dimension(self) -> int:
        return self._source.dimension

    def __len__(self) -> int:
        return len(self._source)

    def batches(self) -> Iterator[Batch]:
        first = 0
        for vectors, rows in self._source.batches():
            if KEY not in rows.column_names:
                raise InputError(f"{self.name}: has no column {KEY!r}, which is the key of a row")
            unit = check_vectors(vectors, self.dimension, self.name, first)
            yield unit, check_rows(rows[KEY].to_pylist(), len(unit), rows, self.name, first)
            first += len(unit)
        if first != len(self):
            raise InputError(f"{self.name}: has {first} rows where {len(self)} were announced; read it again")


@dataclass(frozen=True)
class StoredSource:
    """What is left of an index, followed by new rows.

    Attributes:
        index, rows: the stored vectors and rows.
        keep: [N] bool, which of them stay.
        vectors: [M, D] new unit vectors.
        new_rows: their M rows, of the same columns.
    """

    index: VectorIndex
    rows: pa.Table
    keep: np.ndarray
    vectors: Vectors
    new_rows: pa.Table

    @property
    def dimension(self) -> int:
        return self.index.dimension

    def __len__(self) -> int:
        return int(self.keep.sum()) + len(self.vectors)

    def batches(self) -> Iterator[Batch]:
        kept = np.flatnonzero(self.keep)
        for start in range(0, len(kept), CHUNK):
            chosen = kept[start : start + CHUNK]
            yield self.index.vectors(chosen), self.rows.take(pa.array(chosen))
        if len(self.vectors):
            yield self.vectors, self.new_rows


def write_generation(
    folder: Path,
    source: VectorSource,
    card: dict[str, Any],
    *,
    ranges: Vectors | None = None,
    target: float = recall.TARGET,
    decoded: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Builds an index from scratch and writes its two files; `commit` puts them in force.

    The source is gone through once to sample it and once to fill the index. Memory holds the index, the
    sample and a chunk.

    Args:
        folder: of the index; the caller holds its lock.
        source: checked, unit vectors.
        card: with `kind` and `generation`.
        ranges: of the 8-bit codes, if the vectors were decoded from such.
        target: recall@10 that the effort of a search is chosen for.
        decoded: the vectors were decoded from 8-bit codes.
        progress: called with (what, rows done, rows in all).

    Returns:
        The card with `rows`, `dimension`, `effort` and `recall`.

    Raises:
        InputError: two rows have the same key, or a file cannot be written.
    """
    total, kind, tell = len(source), card["kind"], progress or (lambda *_: None)
    exact, sample = _sample(source, kind, tell)
    vectors_name, rows_name = files.names(card["generation"])
    index = VectorIndex.new(kind, source.dimension, total, sample, ranges)
    del sample
    keys: list[pa.ChunkedArray] = []
    writer = None
    with atomic_write(folder / rows_name) as file:
        for vectors, rows in source.batches():
            keys.append(rows[KEY])
            writer = writer or pyarrow.parquet.ParquetWriter(file, rows.schema, compression="zstd")
            writer.write_table(_same_columns(rows, writer.schema))
            if exact is not None:
                exact.see(len(index), vectors)
            index.add(vectors)
            tell("index", len(index), total)
        if writer is None:
            pyarrow.parquet.write_table(pa.table({KEY: pa.array([], pa.string())}), file)
        else:
            writer.close()
        _check_distinct(keys)
    with atomic_write(folder / vectors_name) as file:
        files.write_vectors(index, file)
    measured = recall.measure(index, exact, target, "the vectors as stored" if decoded else "exact search")
    return {**card, "rows": total, "dimension": source.dimension, **measured}


def _same_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    if rows.schema.equals(schema):
        return rows
    raise InputError(f"columns change within the data: {rows.column_names}, before {schema.names}")


def _check_distinct(columns: list[pa.ChunkedArray]) -> None:
    if not columns:
        return
    keys = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    shown = ", ".join(repr(entry["values"].as_py()) for entry in repeated[:3])
    raise InputError(
        f"{len(repeated)} values of {KEY} occur more than once ({shown}); each row needs its own"
    )


def _sample(source: VectorSource, kind: str, tell: Progress) -> tuple[recall.ExactNeighbours | None, Vectors]:
    """The rows to measure the recall with, and those to train with; none for a kind that needs none."""
    total = len(source)
    train = np.empty((0, source.dimension), np.float32)
    if kind == "flat" or total < recall.LEAST_ROWS:
        return None, train if kind in ("flat", "hnsw") else next(source.batches())[0]
    asked = recall.pick_queries(total)
    trained = np.sort(np.random.default_rng(SEED).choice(total, sample_size(kind, total), replace=False))
    exact = recall.ExactNeighbours(asked, total)
    queries, samples, first = [], [], 0
    for vectors, _ in source.batches():
        queries.append(_within(vectors, asked, first))
        samples.append(_within(vectors, trained, first))
        first += len(vectors)
        tell("sample", first, total)
    exact.set_queries(np.concatenate(queries))
    return exact, np.concatenate(samples)


def _within(vectors: Vectors, rows: np.ndarray, first: int) -> Vectors:
    begin, end = np.searchsorted(rows, [first, first + len(vectors)])
    return vectors[rows[begin:end] - first]
