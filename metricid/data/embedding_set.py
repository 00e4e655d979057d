"""Embeddings beside the table rows that they belong to, and a card that says where they come from."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from metricid.data.manifest import Manifest
from metricid.errors import InputError
from metricid.files import atomic_write

COLUMN = "embedding"
_CARD_KEY = b"metricid"


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
        _check(self.embeddings, len(self.table), self.table.name)

    def __len__(self) -> int:
        return len(self.table)

    def write(self, path: str | Path) -> None:
        """Writes one `.parquet` file, or a `.npy` file with a `.csv` (rows) and a `.json` (card) of the same
        name.

        Each file is whole or absent, and the `.json` holds checksums of the two others: files of two writes,
        as an interruption leaves them, are not read as one set.

        Raises:
            InputError: another suffix, a card that is not JSON, a place that cannot be written, or a `.csv`
                without a `.json` that would be replaced.
        """
        path = Path(path)
        try:
            card = _dump(self.card)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: the card cannot be written as JSON ({error})") from None
        if _suffix(path) == ".parquet":
            table = self.table.table.append_column(COLUMN, _to_column(self.embeddings))
            with atomic_write(path) as file:
                pyarrow.parquet.write_table(table.replace_schema_metadata({_CARD_KEY: card}), file)
            return
        rows, description = path.with_suffix(".csv"), path.with_suffix(".json")
        if rows.exists() and not description.exists():
            raise InputError(
                f"{rows}: exists and is of no embedding set ({description.name} is missing); "
                f"choose another name than {path.name}, or remove it"
            )
        with atomic_write(description, "w") as file:
            file.write(_dump({"card": self.card, **_checksums(self.embeddings, self.table)}) + "\n")
        self.table.write(rows)
        with atomic_write(path) as file:
            np.save(file, self.embeddings, allow_pickle=False)

    @classmethod
    def read(cls, path: str | Path) -> "EmbeddingSet":
        """Reads what `write` wrote; the suffix says which form.

        Raises:
            InputError: a file is missing, cut off, of another form or of another set, the row counts differ,
                or a value is not finite.
        """
        path = Path(path)
        suffix = _suffix(path)
        if not path.is_file():
            raise InputError(f"{path}: does not exist; give a .parquet or .npy file of embeddings")
        return _read_parquet(path) if suffix == ".parquet" else _read_numpy(path)


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in (".parquet", ".npy"):
        raise InputError(f"{path}: the name of an embedding file must end in .parquet or .npy")
    return path.suffix.lower()


def _check(embeddings: np.ndarray, rows: int, name: str) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] < 1 or embeddings.dtype != np.float32:
        raise InputError(
            f"{name}: embeddings must be float32 [N, D], got {embeddings.dtype} {list(embeddings.shape)}"
        )
    if len(embeddings) != rows:
        raise InputError(f"{name}: {len(embeddings)} embeddings for {rows} rows; both must come from one run")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise InputError(
            f"{name}: {len(bad)} embeddings hold values that are not finite, the first for row {bad[0] + 2}"
        )


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False)


def _checksums(embeddings: np.ndarray, table: Manifest) -> dict[str, str]:
    content = hashlib.sha256(np.ascontiguousarray(embeddings).data)
    return {"rows": table.fingerprint(), "embeddings": content.hexdigest()}


def _to_column(embeddings: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])


def _read_parquet(path: Path) -> EmbeddingSet:
    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None
    kind = table.schema.field(COLUMN).type if COLUMN in table.column_names else None
    if kind is None or not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise InputError(
            f"{path}: has no column '{COLUMN}' of float32 lists of one length; is it an embedding file?"
        )
    vectors = table[COLUMN].combine_chunks()
    if vectors.null_count:
        raise InputError(f"{path}: {vectors.null_count} rows have no embedding")
    embeddings = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), kind.list_size)
    card = _card((table.schema.metadata or {}).get(_CARD_KEY, b""), path)
    manifest = Manifest(table.drop_columns([COLUMN]), str(path))
    return EmbeddingSet(np.array(embeddings, np.float32), manifest, card)


def _read_numpy(path: Path) -> EmbeddingSet:
    sidecars = {suffix: path.with_suffix(suffix) for suffix in (".csv", ".json")}
    for file in sidecars.values():
        if not file.is_file():
            raise InputError(
                f"{path}: {file.name} is missing; keep the .npy, .csv and .json of a set together"
            )
    try:
        embeddings = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a whole .npy file ({' '.join(str(error).split())})") from None
    if not isinstance(embeddings, np.ndarray):
        raise InputError(f"{path}: holds several arrays; give a .npy file with one")
    _check(embeddings, len(table := Manifest.read(sidecars[".csv"])), str(path))
    stored = _card(sidecars[".json"].read_bytes(), sidecars[".json"])
    card = stored.pop("card", None)
    if not isinstance(card, dict) or stored != _checksums(embeddings, table):
        raise InputError(
            f"{path}: the .npy, .csv and .json do not belong together by their checksums (an interrupted or "
            "edited set); write the set again"
        )
    return EmbeddingSet(embeddings, table, card)


def _card(text: bytes, path: Path) -> dict[str, Any]:
    try:
        card = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: the card is no readable JSON ({error})") from None
    if not isinstance(card, dict):
        raise InputError(f"{path}: the card must be a JSON object")
    return card
