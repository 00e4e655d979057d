"""An index in a folder: a FAISS file, a Parquet file of rows, and a card."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.search import folder as files
from metricid.search import recall
from metricid.search.build import CheckedSource, Progress, StoredSource, VectorSource, write_generation
from metricid.search.kinds import VectorIndex, check_kind, pick_kind
from metricid.search.store import (
    IDENTITY,
    KEY,
    Filter,
    Hits,
    MissingRowError,
    Vectors,
    check_k,
    check_rows,
    check_vectors,
)

MEASURED_AGAIN = 0.1  # share of rows that changed since the recall was measured, from which it is again


class SearchIndex:
    """A `Store` in a folder.

    Each change writes new files beside the old ones and puts them in force by replacing `card.json`; then the
    old files are deleted. A process killed at any moment leaves the old index or the new one. Readers keep
    the generation that they opened; one writer at a time holds the lock.

    Example:
        >>> import tempfile
        >>> from metricid.search import ArraySource
        >>> rows = pa.table({"path": ["a.jpg", "b.jpg"], "identity": ["Ann", "Eve"]})
        >>> place = Path(tempfile.mkdtemp()) / "people.index"
        >>> index = SearchIndex.build(place, ArraySource(np.eye(2, 4, dtype=np.float32), rows))
        >>> hits = index.query(np.array([[3.0, 0.0, 4.0, 0.0]], np.float32), k=2)
        >>> hits.keys.tolist(), hits.scores.round(2).tolist()
        ([['a.jpg', 'b.jpg']], [[0.6000000238418579, 0.0]])
    """

    def __init__(self, folder: str | Path, *, mapped: bool = True, verify: bool = False):
        """Opens an index for reading; `add` and `remove` may follow.

        Args:
            folder: of the index.
            mapped: leave the vectors on the disk until they are needed; False reads them into memory.
            verify: compare the checksum of the vectors even if they take more than 1 GiB.

        Raises:
            InputError: no index, or a damaged one.
        """
        self.folder = Path(folder)
        self._mapped = mapped
        self._open(verify)

    def _open(self, verify: bool) -> None:
        self.card, self._index, self._rows = files.load(self.folder, self._mapped, verify)
        # Texts as Python has them, made when they are needed: looked up five times as fast as in the table.
        self._keys: Callable[[], np.ndarray] = cache(self._rows[KEY].to_numpy)
        self._places: dict[str, int] | None = None

    @classmethod
    def build(
        cls,
        folder: str | Path,
        source: VectorSource,
        *,
        kind: str = "auto",
        about: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        target: float = recall.TARGET,
        name: str = "vectors",
        progress: Progress | None = None,
    ) -> "SearchIndex":
        """Makes an index.

        Args:
            folder: where; missing parents are made.
            source: vectors and rows, gone through twice.
            kind: `flat`, `hnsw`, `ivf_sq8`, `rabitq`, or `auto` by the number of rows.
            about: for the card: `model`, `flip` and what else should be known of the vectors.
            overwrite: replace the index that is there.
            target: recall@10 that the effort of a search is chosen for.
            name: how messages call the source.
            progress: called with (what, rows done, rows in all).

        Raises:
            InputError: anything that the checks of the door refuse, or the folder holds something else.
        """
        if kind != "auto":
            check_kind(kind)
        recall.check_target(target)
        if len(source) == 0:
            raise InputError(f"{name}: has no rows; an index needs at least one")
        place = Path(folder)
        with _claimed(place, overwrite) as generation:
            card = {
                **(about or {}),
                "kind": pick_kind(kind, len(source)),
                "wanted": kind,
                "metric": "cosine",
                "target": target,
                "created": _now(),
                "changed": _now(),
                "generation": generation,
            }
            card = write_generation(
                place, CheckedSource(source, name), card, target=target, progress=progress
            )
            files.commit(place, card)
        return cls(place)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self._index.dimension

    @property
    def rows(self) -> pa.Table:
        """The table of rows, in the order of their numbers."""
        return self._rows

    def has(self, key: str) -> bool:
        """Whether there is a row of this key."""
        return pc.index(self._rows[KEY], key).as_py() >= 0

    def query(self, vectors: Vectors, k: int, where: Filter | None = None) -> Hits:
        """As `Store.query`; with a filter the answer is exact, by comparing with each row that passes it."""
        queries = check_vectors(vectors, self._index.dimension, "queries", copy=False)
        check_k(k, len(self._rows))
        if where is None:
            scores, ids = self._index.search(queries, k, self.card["effort"])
        else:
            chosen = where.mask(self._rows)
            count = int(chosen.sum())
            if count == 0:
                raise InputError(f"--where: no row has {where}")
            scores, ids = self._index.exact(queries, min(k, count), chosen)
        table, keys = self._rows, self._keys  # hits outlive a change of the index
        return Hits(scores, lambda: keys()[ids], lambda: table.take(pa.array(ids.ravel())))

    def get(self, keys: Sequence[str]) -> tuple[Vectors, pa.Table]:
        """As `Store.get`; kinds of 8 bits give what they decode."""
        places = self._numbers(keys)
        return check_vectors(self._index.vectors(places)), self._rows.take(pa.array(places))

    def _numbers(self, keys: Sequence[str]) -> np.ndarray:
        if self._places is None:
            self._places = {key: row for row, key in enumerate(self._rows[KEY].to_pylist())}
        missing = [key for key in keys if key not in self._places]
        if missing:
            raise MissingRowError(missing)
        return np.array([self._places[key] for key in keys], np.int64)

    def add(self, keys: Sequence[str], vectors: Vectors, rows: pa.Table, *, replace: bool = False) -> int:
        """As `Store.add`. Flat and inverted kinds are appended to, and a graph grows.

        An index of kind `auto` that outgrows its kind is built anew as the next one, as is any index of which
        rows are replaced.
        """
        unit = check_vectors(vectors, self.dimension)
        new = check_rows(keys, len(unit), rows)
        if len(unit) == 0:
            return 0
        with self._changing():
            known = pc.is_in(self._rows[KEY], value_set=new[KEY].combine_chunks()).to_numpy()
            if known.any() and not replace:
                first = self._rows[KEY][int(known.argmax())].as_py()
                raise InputError(
                    f"{int(known.sum())} of {len(unit)} rows are in the index already, such as {first!r}; "
                    "remove them first, or replace them"
                )
            total = len(self) - int(known.sum()) + len(unit)
            kind = pick_kind(self.card["wanted"], total, self.card["kind"])
            old, new = _same_columns(self._rows, new)
            if known.any() or kind != self.card["kind"]:
                self._rebuild(kind, old, ~known, unit, new)
            else:
                self._append(unit, pa.concat_tables([old, new]))
        return len(unit)

    def remove(self, keys: Sequence[str] | None = None, identity: str | None = None) -> int:
        """As `Store.remove`: the index is written again without the rows, and the old files are deleted.

        Everything learned from the vectors (a graph, the centres of lists) is learned again from those left.
        """
        if (keys is None) == (identity is None):
            raise InputError("remove: give either keys or an identity")
        with self._changing():
            if identity is not None:
                keep = ~Filter.parse([f"{IDENTITY}={identity}"]).mask(self._rows)
                if keep.all():
                    raise InputError(f"--identity: no row of the index has identity {identity!r}")
            else:
                keep = np.ones(len(self), bool)
                keep[self._numbers(keys or ())] = False
            gone = len(self) - int(keep.sum())
            if gone:
                none = np.empty((0, self.dimension), np.float32)
                kind = pick_kind(self.card["kind"], len(self) - gone)
                self._rebuild(kind, self._rows, keep, none, self._rows.slice(0, 0))
        return gone

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Locks out other writers, starts from what is in force now, and leaves no loose files."""
        with files.write_lock(self.folder):
            self._open(verify=True)
            # What a killed writer left behind may hold what was to be forgotten.
            files.sweep(self.folder, _in_force(self.card))
            try:
                yield
            except BaseException:
                files.sweep(self.folder, _in_force(files.read_card(self.folder)))
                raise

    def _rebuild(
        self, kind: str, rows: pa.Table, keep: np.ndarray, vectors: Vectors, new_rows: pa.Table
    ) -> None:
        source = StoredSource(self._index, rows, keep, vectors, new_rows)
        self._write(
            write_generation(
                self.folder,
                source,
                self._next(kind),
                ranges=self._index.code_ranges(),
                target=self.card["target"],
                decoded=self._index.code_ranges() is not None,
            )
        )

    def _append(self, vectors: Vectors, rows: pa.Table) -> None:
        card = self._next(self.card["kind"])
        vectors_name, rows_name = files.names(card["generation"])
        file = self.folder / self.card["files"]["vectors"]["name"]
        index = VectorIndex.load(card["kind"], file, mapped=False)
        index.add(vectors)
        with atomic_write(self.folder / vectors_name) as out:
            files.write_vectors(index, out)
        with atomic_write(self.folder / rows_name) as out:
            pyarrow.parquet.write_table(rows, out, compression="zstd")
        card["rows"] = len(rows)
        if card["kind"] == "flat" or len(rows) > (1 + MEASURED_AGAIN) * card["recall"]["rows"]:
            card |= recall.measure_stored(index, card["target"])
        self._write(card)

    def _next(self, kind: str) -> dict[str, Any]:
        generation = self.card["generation"] + 1
        return {**self.card, "kind": kind, "generation": generation, "changed": _now()}

    def _write(self, card: dict[str, Any]) -> None:
        files.commit(self.folder, card)
        self._open(verify=False)

    def stats(self) -> dict[str, Any]:
        """As `Store.stats`; `memory_bytes` is what this process holds of the vector file right now."""
        told = self.card["files"]
        return {
            "kind": self.card["kind"],
            "rows": len(self),
            "dimension": self.dimension,
            "model": self.card.get("model"),
            "flip": self.card.get("flip"),
            "aligned": self.card.get("aligned"),
            "disk_bytes": files.disk_bytes(self.folder),
            "vector_bytes": told["vectors"]["bytes"],
            "memory_bytes": self._rows.nbytes + (0 if self._mapped else told["vectors"]["bytes"]),
            "mapped": self._mapped,
            "recall": self.card["recall"],
            "effort": self.card["effort"],
            "identities": pc.count_distinct(self._rows[IDENTITY]).as_py()
            if IDENTITY in self._rows.column_names
            else None,
            "generation": self.card["generation"],
            "changed": self.card["changed"],
        }

    def close(self) -> None:
        """Lets go of the files; the index cannot be used afterwards."""
        del self._index, self._rows


@contextmanager
def _claimed(folder: Path, overwrite: bool) -> Iterator[int]:
    """Makes the folder, or takes one over, and locks it; gives the number of the generation to write.

    Where the block raises, nothing of it stays behind, nor do folders that were made for it.

    Raises:
        InputError: it holds an index that is not to be replaced, or something else, or cannot be made.
    """
    try:
        made = [one for one in (folder, *folder.parents) if not one.exists()]
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise _no_place(folder, error) from None
    try:
        generation = _claim(folder, overwrite)
        with files.write_lock(folder):
            before = {file.name for file in folder.iterdir()} if overwrite else set()
            try:
                yield generation
            except BaseException:
                files.abandon(folder, before)
                raise
    except BaseException:
        with suppress(OSError):  # somebody else has put something there
            for one in made:
                one.rmdir()
        raise


def _claim(folder: Path, overwrite: bool) -> int:
    """The generation to write into a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [file.name for file in folder.iterdir()]
    except OSError as error:
        raise _no_place(folder, error) from None
    if files.CARD not in present:
        if not files.only_leftovers(folder):
            raise InputError(f"{folder}: holds other files and no index; choose another place")
    elif not overwrite:
        raise InputError(f"{folder}: is an index already; use --overwrite to replace it, or search add")
    return 1 + max([0, *(int(number) for name in present for number in re.findall(r"^\w+-(\d+)\.", name))])


def _no_place(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot be made into an index ({error.strerror}); choose another place")


def _in_force(card: Mapping[str, Any]) -> set[str]:
    return {told["name"] for told in card["files"].values()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _same_columns(old: pa.Table, new: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Both tables with the columns of either; what one lacks is empty text or NaN.

    Raises:
        InputError: a column is text in one and a number in the other.
    """
    kinds = {field.name: field.type for table in (old, new) for field in table.schema}
    for table in (old, new):
        for field in table.schema:
            if field.type != kinds[field.name]:
                raise InputError(
                    f"rows: column {field.name!r} is text in one table and a number in the other"
                )

    def filled(table: pa.Table) -> pa.Table:
        return pa.table(
            {
                name: table[name]
                if name in table.column_names
                else pa.array([float("nan") if pa.types.is_floating(kind) else ""] * len(table), kind)
                for name, kind in kinds.items()
            }
        )

    return filled(old), filled(new)
