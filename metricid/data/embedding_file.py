"""Embedding files block by block: what writes and reads them without holding all vectors in memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from metricid.data.manifest import Manifest
from metricid.errors import InputError
from metricid.files import atomic_write

COLUMN = "embedding"
SUFFIXES = (".parquet", ".npy")
Dtype = Literal["float32", "float16"]
_CARD_KEY = b"metricid"
_ARROW = {"float32": pa.float32(), "float16": pa.float16()}
_BLOCK = 8192
_ROW_GROUP = 16_384


def file_suffix(path: Path) -> str:
    """`.parquet` or `.npy`.

    Raises:
        InputError: another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: the name of an embedding file must end in .parquet or .npy")
    return path.suffix.lower()


def sidecars(path: Path) -> tuple[Path, Path]:
    """The `.csv` (rows) and the `.json` (card) of a `.npy` file."""
    return path.with_suffix(".csv"), path.with_suffix(".json")


def write_embeddings(
    path: str | Path,
    table: Manifest,
    blocks: Iterable[np.ndarray],
    card: dict[str, Any],
    *,
    dimension: int,
    dtype: Dtype = "float32",
) -> None:
    """Writes a `.parquet` file, or a `.npy` file with a `.csv` (rows) and a `.json` (card) of the same name.

    Each file is whole or absent, and the `.json` holds checksums of the two others: files of two writes, as
    an interruption leaves them, are not read as one set.

    Args:
        path: the file; an old one is replaced.
        table: N rows.
        blocks: float32 [b, D] each, N rows in all, in the order of the table; they are taken one by one.
        card: what `json` can write.
        dimension: D.
        dtype: how the vectors are stored.

    Raises:
        InputError: another suffix, a card that is not JSON, values that are not finite or too large for
            float16, another number of rows than the table has, a place that cannot be written, or a `.csv`
            without a `.json` that would be replaced.
    """
    path = Path(path)
    suffix = file_suffix(path)
    try:
        text = _dump(card)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the card cannot be written as JSON ({error})") from None
    stored = _stored(blocks, table, dimension, dtype)
    if suffix == ".parquet":
        _write_parquet(path, table.table, stored, text, dimension, dtype)
    else:
        _write_numpy(path, table, stored, card, dimension, dtype)


def check_target(path: Path) -> None:
    """Checks that writing would not replace a table that belongs to no embedding set.

    Raises:
        InputError: another suffix, or such a table.
    """
    if file_suffix(path) != ".npy":
        return
    rows, description = sidecars(path)
    if rows.exists() and not description.exists():
        raise InputError(
            f"{rows}: exists and is of no embedding set ({description.name} is missing); "
            f"choose another name than {path.name}, or remove it"
        )


class EmbeddingReader:
    """An embedding file read block by block; memory holds one block of vectors, and the table of the rows.

    Args:
        path: `.parquet`, or `.npy` beside its `.csv` and `.json`.

    Attributes:
        path: the file.
        card: what its writer says of it.
        dimension: width D of a vector.
        dtype: how vectors are stored; they are given as float32.
        table: N rows.

    Raises:
        InputError: a file is missing, cut off, of another form or of another set.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        suffix = file_suffix(self.path)
        if not self.path.is_file():
            raise InputError(f"{self.path}: does not exist; give a .parquet or .npy file of embeddings")
        self._file: pyarrow.parquet.ParquetFile | None = None
        self._array: np.ndarray | None = None
        self.card: dict[str, Any]
        self.dimension: int
        self.dtype: str
        self.table: Manifest
        if suffix == ".parquet":
            self._open_parquet()
        else:
            self._open_numpy()

    def __len__(self) -> int:
        return len(self.table)

    def blocks(self, rows: int = _BLOCK) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Vectors with the rows that they belong to, in order.

        Args:
            rows: at most so many at once.

        Yields:
            [b, D] float32 and finite, and b rows of the table.

        Raises:
            InputError: a damaged file, or values that are missing or not finite.
        """
        start = 0
        for vectors in self._vectors(rows):
            check_finite(vectors, str(self.path), start)
            yield vectors, self.table.table.slice(start, len(vectors))
            start += len(vectors)

    def _vectors(self, rows: int) -> Iterator[np.ndarray]:
        if self._array is not None:
            for start in range(0, len(self._array), rows):
                yield np.array(self._array[start : start + rows], np.float32)
            return
        assert self._file is not None
        try:
            for batch in self._file.iter_batches(rows, columns=[COLUMN]):
                column = batch.column(0)
                if column.null_count:
                    raise InputError(f"{self.path}: {column.null_count} rows have no embedding")
                values = column.flatten().to_numpy(zero_copy_only=False)
                yield np.array(values.reshape(len(batch), self.dimension), np.float32)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None

    def _open_parquet(self) -> None:
        try:
            # Buffering ahead, the default, holds the whole file in memory before the first block.
            self._file = file = pyarrow.parquet.ParquetFile(self.path, pre_buffer=False)
            schema = file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        kind = schema.field(COLUMN).type if schema.names.count(COLUMN) == 1 else None
        if kind is None or not pa.types.is_fixed_size_list(kind) or kind.value_type not in _ARROW.values():
            raise InputError(
                f"{self.path}: has no column '{COLUMN}' of float32 or float16 lists of one length; "
                "is it an embedding file?"
            )
        self.dimension = kind.list_size
        self.dtype = "float16" if kind.value_type == pa.float16() else "float32"
        others = pa.schema([field for field in schema if field.name != COLUMN])
        Manifest(others.empty_table(), str(self.path))  # a column of no manifest may hold megabytes per cell
        try:
            table = file.read(others.names)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        self.table = Manifest(table, str(self.path))
        self.card = _card((schema.metadata or {}).get(_CARD_KEY, b""), self.path)

    def _open_numpy(self) -> None:
        rows, description = sidecars(self.path)
        for file in (rows, description):
            if not file.is_file():
                raise InputError(
                    f"{self.path}: {file.name} is missing; keep the .npy, .csv and .json of a set together"
                )
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{self.path}: not a whole .npy file ({' '.join(str(error).split())})") from None
        if not isinstance(array, np.ndarray):
            raise InputError(f"{self.path}: holds several arrays; give a .npy file with one")
        self.table = Manifest.read(rows)
        check_array(array, len(self.table), str(self.path), tuple(_ARROW))
        self._array, self.dimension, self.dtype = array, array.shape[1], array.dtype.name
        stored = _card(description.read_bytes(), description)
        card = stored.pop("card", None)
        content = hashlib.sha256()
        for start in range(0, len(array), _BLOCK):
            content.update(np.ascontiguousarray(array[start : start + _BLOCK]).data)
        if not isinstance(card, dict) or stored != _checksums(content.hexdigest(), self.table):
            raise InputError(
                f"{self.path}: the .npy, .csv and .json do not belong together by their checksums (an "
                "interrupted or edited set); write the set again"
            )
        self.card = card

    def _unreadable(self, error: Exception) -> InputError:
        if isinstance(error, PermissionError):
            return InputError(f"{self.path}: cannot be read (Permission denied); check its rights")
        why = " ".join(str(error).split())
        return InputError(f"{self.path}: not a readable Parquet file ({why}); copy it again, or embed again")


def check_array(embeddings: np.ndarray, rows: int, name: str, dtypes: tuple[str, ...] = ("float32",)) -> None:
    """Checks type, shape and number of embeddings.

    Raises:
        InputError: not [rows, D] of one of the types.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] < 1 or embeddings.dtype.name not in dtypes:
        raise InputError(
            f"{name}: embeddings must be {' or '.join(dtypes)} [N, D], "
            f"got {embeddings.dtype} {list(embeddings.shape)}"
        )
    if len(embeddings) != rows:
        raise InputError(f"{name}: {len(embeddings)} embeddings for {rows} rows; both must come from one run")


def check_finite(embeddings: np.ndarray, name: str, start: int = 0) -> None:
    """Checks values.

    Args:
        embeddings: [b, D].
        name: for the message.
        start: number of the first row.

    Raises:
        InputError: a value is not finite; rows are counted from 0, as those of arrays are.
    """
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise InputError(
            f"{name}: row {start + bad[0]} (counted from 0) holds NaN or infinity; the model diverged or the "
            "file is damaged: embed again"
        )


def _stored(
    blocks: Iterable[np.ndarray], table: Manifest, dimension: int, dtype: Dtype
) -> Iterator[np.ndarray]:
    """Checked blocks as they are stored."""
    start = 0
    for block in blocks:
        if block.shape[1] != dimension:
            raise ValueError(f"a block of width {block.shape[1]} among embeddings of width {dimension}")
        check_finite(block, table.name, start)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(block, np.dtype(dtype))
        large = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(large):
            raise InputError(
                f"{table.path_at(start + int(large[0]))}: its embedding has values of up to "
                f"{np.abs(block[large[0]]).max():.3g}, float16 ends at 65504; store float32 or normalise"
            )
        start += len(block)
        if start <= len(table):
            yield stored
    if start != len(table):
        raise InputError(
            f"{table.name}: {start} embeddings for {len(table)} rows; both must come from one run"
        )


def _write_parquet(
    path: Path, rows: pa.Table, blocks: Iterator[np.ndarray], card: str, dimension: int, dtype: Dtype
) -> None:
    field = pa.field(COLUMN, pa.list_(_ARROW[dtype], dimension))
    schema = rows.schema.append(field).with_metadata({_CARD_KEY: card})
    text = [name for name in rows.schema.names if pa.types.is_string(rows.schema.field(name).type)]
    # Vectors neither repeat nor compress: dictionaries and statistics of them cost time and give nothing.
    options: dict[str, Any] = {"use_dictionary": text, "write_statistics": rows.schema.names}
    start = 0
    with atomic_write(path) as file, pyarrow.parquet.ParquetWriter(file, schema, **options) as writer:
        for block in blocks:
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dimension)
            part = rows.slice(start, len(block)).append_column(field, column)
            writer.write_table(part.replace_schema_metadata(schema.metadata), _ROW_GROUP)
            start += len(block)


def _write_numpy(
    path: Path,
    table: Manifest,
    blocks: Iterator[np.ndarray],
    card: dict[str, Any],
    dimension: int,
    dtype: Dtype,
) -> None:
    check_target(path)
    rows, description = sidecars(path)
    content = hashlib.sha256()
    with atomic_write(path) as file:
        shape = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (len(table), dimension)}
        np.lib.format.write_array_header_1_0(file, shape)
        for block in blocks:
            content.update(block.data)
            file.write(block.data)
        with atomic_write(description, "w") as text:
            text.write(_dump({"card": card, **_checksums(content.hexdigest(), table)}) + "\n")
        table.write(rows)


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False)


def _checksums(content: str, table: Manifest) -> dict[str, str]:
    return {"rows": table.fingerprint(), "embeddings": content}


def _card(text: bytes, path: Path) -> dict[str, Any]:
    if not text.strip():
        raise InputError(
            f"{path}: has no card, which says of what model the vectors are (another program wrote it?); "
            "embed again, or write it with metricid.data.EmbeddingSet"
        )
    try:
        card = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: the card is no readable JSON ({error})") from None
    if not isinstance(card, dict):
        raise InputError(f"{path}: the card must be a JSON object")
    return card
