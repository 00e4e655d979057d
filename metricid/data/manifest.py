"""The table of images that everything else refers to: one row, one image, one identity."""

import difflib
import hashlib
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metricid.data.table_io import has_header, read_table, write_table
from metricid.errors import InputError

TEXT_COLUMNS = ("path", "identity", "camera", "media", "split", "group")
LANDMARK_COLUMNS = tuple(f"{axis}{point}" for point in range(1, 6) for axis in "xy")
COLUMNS = TEXT_COLUMNS + LANDMARK_COLUMNS
REQUIRED = ("path", "identity")
RESERVED = ("embedding", "score")  # what files of embeddings and lists of hits call their own
_NEARLY = 0.75  # likeness of two names from which one is taken for the other, misspelt
SHOWN_PROBLEMS = 10


class _Container(Protocol):
    def __contains__(self, path: str) -> bool: ...


class Manifest:
    """A checked, immutable table of images.

    Columns: `path` and `identity` (text, never empty), optionally `camera`, `media`, `split`, `group` (text,
    may be empty) and the landmarks `x1, y1, ..., x5, y5` (float32 pixels, all ten or none). No path occurs
    twice. Further columns are kept as text, sorted by name: whole numbers and fractions in the shortest form
    that reads back as the same number, `true` and `false`, missing values as ''. A name that is nearly one of
    the above is taken for a mistake.

    Example:
        >>> people = Manifest.from_columns(path=["a.jpg", "b.jpg", "c.jpg"], identity=["Eve", "Ann", "Eve"])
        >>> len(people), people.identity_names(), people.labels().tolist()
        (3, ['Ann', 'Eve'], [1, 0, 1])
    """

    def __init__(self, table: pa.Table, name: str = "manifest", *, header: bool = False):
        """Checks `table` and brings it into the canonical form.

        Args:
            table: the columns above; text as Arrow strings, landmarks as numbers, further columns as either.
            name: what error messages call this table, a file name as a rule.
            header: the rows are lines of a file whose row 1 is a header, and messages count them so; those of
                other tables are counted from 0, as pandas does.

        Raises:
            InputError: one line with all problems, by row.
        """
        self.name, self._header = name, header
        self.table: pa.Table = _checked(table, _Rows(name, header))

    @classmethod
    def from_columns(
        cls, path: Sequence[str], identity: Sequence[str], *, name: str = "manifest", **columns: Any
    ) -> "Manifest":
        """Builds a manifest from sequences of equal length; columns given as None are left out.

        Raises:
            InputError: lengths differ, or a value is of the wrong type, missing or double.
        """
        given = {"path": path, "identity": identity, **columns}
        arrays = {key: _arrow(name, key, values) for key, values in given.items() if values is not None}
        lengths = {key: len(array) for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{name}: columns differ in length ({lengths}); give one value per image")
        return cls(pa.table(arrays), name)

    @classmethod
    def read(cls, file: str | Path) -> "Manifest":
        """Reads `.csv` (UTF-8, with a header) or `.parquet`.

        Raises:
            InputError: the file is missing or unreadable, or its content is not a manifest.
        """
        table = read_table(file, numbers=LANDMARK_COLUMNS)
        return cls(table, str(file), header=has_header(file))

    def write(self, file: str | Path) -> None:
        """Writes `.csv` or `.parquet`, whole or not at all.

        Raises:
            InputError: the suffix is another one, or the place cannot be written.
        """
        write_table(self.table, file)

    @classmethod
    def concat(cls, parts: Iterable["Manifest"]) -> "Manifest":
        """One below the other. A text column that only some parts have is empty in the others.

        Raises:
            InputError: a path occurs in two parts, or only some parts have landmarks.
        """
        tables = [part.table for part in parts]
        if not tables:
            raise InputError("nothing to concatenate; give at least one manifest")
        present = _in_order({column for t in tables for column in t.column_names})
        if any(("x1" in t.column_names) != ("x1" in tables[0].column_names) for t in tables):
            raise InputError(
                "only some of the manifests have landmarks; drop these columns or fill them in all"
            )
        aligned = [
            pa.table(
                {c: t[c] if c in t.column_names else pa.array([""] * len(t), pa.string()) for c in present}
            )
            for t in tables
        ]
        return cls(pa.concat_tables(aligned), "joined manifest")

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"Manifest({self.name!r}, {len(self)} images, columns {', '.join(self.table.column_names)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def paths(self) -> list[str]:
        """The paths in row order."""
        return self.table["path"].to_pylist()

    @cached_property
    def identities(self) -> np.ndarray:
        """[N] the identity of each row (object array of str)."""
        return self.table["identity"].to_numpy(zero_copy_only=False)

    def path_at(self, row: int) -> str:
        """The path of one row, without a list of all (tables are shared by worker processes)."""
        return self.table["path"].chunk(0)[row].as_py()

    def column(self, name: str) -> np.ndarray | None:
        """[N] a column as an array (object array of str, or float32), or None where the table lacks it.

        Raises:
            InputError: no manifest can have a column of that name.
        """
        problem = _name_problem(name)
        if problem:
            raise InputError(problem)
        if name not in self.table.column_names:
            return None
        return self.table[name].to_numpy(zero_copy_only=False)

    def landmarks(self) -> np.ndarray | None:
        """[N, 5, 2] float32 (x, y) in pixels, or None."""
        if "x1" not in self.table.column_names:
            return None
        return np.stack([self.table[c].to_numpy() for c in LANDMARK_COLUMNS], axis=1).reshape(-1, 5, 2)

    def select(self, rows: Any) -> "Manifest":
        """The rows of an index array (in that order) or of a boolean mask [N].

        Raises:
            InputError: the mask has another length, or an index is repeated or out of range.
        """
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise InputError(f"{self.name}: a mask of shape {rows.shape} for {len(self)} rows")
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise InputError(f"{self.name}: row index outside 0..{len(self) - 1}")
        return Manifest(self.table.take(pa.array(rows)), self.name)

    def with_column(self, name: str, values: Any) -> "Manifest":
        """A copy with one column added or replaced; a single text stands for all rows.

        Raises:
            InputError: a name that no manifest can have, wrong length or type.
        """
        problem = _name_problem(name)
        if problem:
            raise InputError(problem)
        array = _arrow(self.name, name, [values] * len(self) if isinstance(values, str) else values)
        if len(array) != len(self):
            raise InputError(f"{self.name}: {len(array)} values of {name} for {len(self)} rows")
        rest = {c: self.table[c] for c in self.table.column_names if c != name}
        return Manifest(pa.table({**rest, name: array}), self.name, header=self._header)

    @cached_property
    def _encoded(self) -> tuple[list[str], np.ndarray]:
        """Sorted identity names, and for each row the place of its name among them."""
        encoded = self.table["identity"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        order = sorted(range(len(names)), key=names.__getitem__)
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(len(names))
        return [names[i] for i in order], rank[encoded.indices.to_numpy()]

    def identity_names(self) -> list[str]:
        """The distinct identities, sorted."""
        return list(self._encoded[0])

    def labels(self, label_map: Mapping[str, int] | None = None) -> np.ndarray:
        """[N] int64 class numbers: the place among the sorted identity names, or what `label_map` says.

        Raises:
            InputError: an identity is not in `label_map`.
        """
        names, place = self._encoded
        if label_map is None:
            return place.copy()
        missing = [name for name in names if name not in label_map]
        if missing:
            shown = ", ".join(map(repr, missing[:3]))
            raise InputError(
                f"{self.name}: {len(missing)} of {len(names)} identities are not in the label map ({shown}"
                f"{', ...' if len(missing) > 3 else ''}); use the manifest that the map was made from"
            )
        return np.array([label_map[name] for name in names], np.int64)[place]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content: same columns, rows and order give the same value, CSV or Parquet."""
        digest = hashlib.sha256(f"manifest {len(self)}".encode())
        for name in self.table.column_names:
            array = self.table[name].combine_chunks()
            digest.update(f"\n{name}\n".encode())
            if name in LANDMARK_COLUMNS:
                digest.update(array.to_numpy().astype("<f4").tobytes())
                continue
            digest.update(pc.binary_length(array).to_numpy(zero_copy_only=False).astype("<i4").tobytes())
            digest.update("".join(array.to_pylist()).encode())
        return digest.hexdigest()


def check_files(manifest: Manifest, source: _Container) -> None:
    """Checks that the source has every image of the manifest.

    Raises:
        InputError: names the first missing files by row.
    """
    missing = [row for row, path in enumerate(manifest.paths) if path not in source]
    if missing:
        rows = _Rows(manifest.name, manifest._header)
        _fail(
            rows.title,
            [f"{rows[row]}: {manifest.path_at(row)!r} does not exist" for row in missing[:SHOWN_PROBLEMS]],
            len(missing),
            f"images missing in {getattr(source, 'name', source)}",
        )


@dataclass(frozen=True)
class _Rows:
    """How messages count the rows of a table."""

    name: str
    header: bool

    @property
    def title(self) -> str:
        return self.name if self.header else f"{self.name} (rows counted from 0)"

    def __getitem__(self, row: int) -> str:
        return f"row {row + 2 if self.header else row}"


def _fail(name: str, problems: Sequence[str], count: int, what: str = "problems") -> None:
    more = f"; and {count - len(problems)} more" if count > len(problems) else ""
    counted = "" if count == 1 else f"{count} {what}: "
    raise InputError(f"{name}: {counted}{'; '.join(problems)}{more}")


def _arrow(name: str, column: str, values: Any) -> pa.Array:
    """Values as an Arrow array of the column's own type, without turning numbers into text."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    try:
        if column in LANDMARK_COLUMNS:
            return pa.array(np.asarray(values, np.float32))
        if column not in COLUMNS:
            return pa.array(values if isinstance(values, np.ndarray) else list(values))
        return pa.array(values.tolist() if isinstance(values, np.ndarray) else list(values), pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        wanted = (
            "numbers" if column in LANDMARK_COLUMNS else "text" if column in COLUMNS else "text or numbers"
        )
        raise InputError(f"{name}: column {column} must hold {wanted} ({error})") from None


def _checked(table: pa.Table, rows: _Rows) -> pa.Table:
    """The canonical table: columns in fixed order, one chunk each, no nulls; else all problems."""
    columns = table.column_names
    problems = [f"column {c!r} occurs twice" for c in sorted({c for c in columns if columns.count(c) > 1})]
    problems += [f"the column {c!r} is missing" for c in REQUIRED if c not in columns]
    for column in columns:
        problem = _name_problem(column)
        if problem:
            problems.append(problem)
    marks = [c for c in LANDMARK_COLUMNS if c in columns]
    if marks and len(marks) < len(LANDMARK_COLUMNS):
        lacking = ", ".join(c for c in LANDMARK_COLUMNS if c not in columns)
        problems.append(f"landmarks need all ten columns; {lacking} missing")
    clean: dict[str, pa.Array] = {}
    for column in _in_order(columns):
        if columns.count(column) > 1:
            continue
        kind, array = table.schema.field(column).type, table[column]
        if column not in COLUMNS:
            text = _as_text(array, kind)
            if text is None:
                problems.append(f"column {column!r} must hold text or numbers, but holds {kind}")
            else:
                clean[column] = text
            continue
        numeric = column in LANDMARK_COLUMNS
        if numeric and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            clean[column] = array.cast(pa.float32(), safe=False)
        elif not numeric and _is_text(kind):
            clean[column] = array.cast(pa.string())
        else:
            wanted = "numbers" if numeric else "text"
            problems.append(f"column {column!r} must hold {wanted}, but holds {kind}")
    if problems:
        _fail(rows.name, problems[:SHOWN_PROBLEMS], len(problems))
    bad: list[tuple[int, str]] = []
    for column, array in clean.items():
        one = array.combine_chunks()
        clean[column] = one.chunk(0) if isinstance(one, pa.ChunkedArray) else one
        bad += _bad_rows(column, clean[column])
        if column not in LANDMARK_COLUMNS:
            clean[column] = pc.fill_null(clean[column], "")
    bad += _duplicates(clean["path"], rows)
    if bad:
        bad.sort(key=lambda entry: entry[0])
        _fail(rows.title, [f"{rows[row]}: {text}" for row, text in bad[:SHOWN_PROBLEMS]], len(bad))
    return pa.table({c: pa.chunked_array([array], array.type) for c, array in clean.items()})


def _in_order(columns: Iterable[str]) -> list[str]:
    """Each name once: known columns as `COLUMNS` has them, then the others by name."""
    names = set(columns)
    return [c for c in COLUMNS if c in names] + sorted(names - set(COLUMNS))


def _name_problem(column: str) -> str | None:
    """Why no manifest has a column of this name, or None."""
    if column in COLUMNS:
        return None
    if not column.strip():
        return "a column has no name; name or remove it"
    if column in RESERVED:
        return f"a column cannot be named {column!r}, as metricid's own are; rename it"
    known = {name.casefold(): name for name in COLUMNS}
    near = difflib.get_close_matches(column.strip().casefold(), known, n=1, cutoff=_NEARLY)
    if not near:
        return None
    return f"unknown column {column!r}; did you mean {known[near[0]]!r}? rename it"


def _as_text(array: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Values of a further column as text, or None where they are no single values."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_floating(value):
        array = array.cast(value)
        array = pc.if_else(pc.is_nan(array), None, array)
    plain = pa.types.is_primitive(value) or pa.types.is_decimal(value) or pa.types.is_null(value)
    return array.cast(pa.string()) if plain or _is_text(kind) else None


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(
        test(value) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _bad_rows(column: str, array: pa.Array) -> list[tuple[int, str]]:
    """Rows whose value is empty where it must not be, or no finite number."""
    if column in LANDMARK_COLUMNS:
        values = array.to_numpy(zero_copy_only=False)
        return [(int(row), f"{column} is not a number") for row in np.flatnonzero(~np.isfinite(values))]
    if column not in REQUIRED:
        return []
    blank = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(array, "")), "")
    return [(int(row), f"{column} is empty") for row in np.flatnonzero(blank.to_numpy(zero_copy_only=False))]


def _duplicates(paths: pa.Array, rows: _Rows) -> list[tuple[int, str]]:
    """Rows whose path is in an earlier one, also in another spelling (`./a.jpg`, `x/../a.jpg`)."""
    detours = pc.any(pc.match_substring_regex(paths, r"(^|/)\.{0,2}(/|$)")).as_py()
    if not detours and pc.count_distinct(paths, mode="all").as_py() == len(paths):
        return []
    seen: dict[str, int] = {}
    bad = []
    for row, path in enumerate(paths.to_pylist()):
        first = seen.setdefault(posixpath.normpath(path), row)
        if first != row and path.strip():
            bad.append((row, f"path {path!r} is already in {rows[first]}"))
    return bad
