"""What every store of vectors can do, and the checks at its door."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metricid.errors import InputError
from metricid.registry import unknown

KEY = "path"
IDENTITY = "identity"
_SQUARES = (1e-12, 1e12)  # squared norms that float32 gives exactly enough
_ROWS = 4096  # rows that are scaled in float64 at a time; a copy of everything would be wasteful
_SHOWN = 3
_NOTHING = (None, "unknown")
REMEMBERED = ("model_path", "onnx", "calibration")  # of a card: what its user may name anew

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Condition:
    """One condition on a row: the text in `column` equals `value`, or differs from it."""

    column: str
    value: str
    equal: bool = True

    def __str__(self) -> str:
        return f"{self.column}{'=' if self.equal else '!='}{self.value}"


@dataclass(frozen=True)
class Filter:
    """Conditions that all must hold. A row without a value counts as the empty text.

    Example:
        >>> where = Filter.parse(["camera=2", "split!=query"])
        >>> where.mask(pa.table({"camera": ["2", "2", "3"], "split": ["test", "query", "test"]})).tolist()
        [True, False, False]
    """

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Filter":
        """Reads `column=value` and `column!=value`; all of them must hold.

        Raises:
            InputError: a text of another form.
        """
        conditions = []
        for text in texts:
            name, sign, value = text.partition("=")
            if not sign or not name.rstrip("!").strip():
                raise InputError(f"--where: {text!r} must be COLUMN=VALUE or COLUMN!=VALUE, such as camera=2")
            conditions.append(Condition(name.removesuffix("!").strip(), value, not name.endswith("!")))
        return cls(tuple(conditions))

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    def check(self, schema: pa.Schema) -> None:
        """Checks that the columns exist and hold text.

        Raises:
            InputError: names what can be filtered by.
        """
        text = [field.name for field in schema if pa.types.is_string(field.type)]
        for condition in self.conditions:
            if condition.column not in text:
                raise InputError(f"--where: {unknown('column', condition.column, text)}")

    def mask(self, rows: pa.Table) -> NDArray[np.bool_]:
        """[N] which rows fulfil all conditions.

        Raises:
            InputError: as `check`.
        """
        self.check(rows.schema)
        chosen = np.ones(len(rows), bool)
        for condition in self.conditions:
            same = pc.equal(pc.fill_null(rows[condition.column], ""), condition.value)
            chosen &= same.to_numpy() == condition.equal
        return chosen


@dataclass
class Hits:
    """The best rows for each of Q queries, best first.

    Attributes:
        scores: [Q, K] float32 cosine; -inf where a query has fewer than K hits.
        name: gives `keys`.
        look_up: gives `rows`.
    """

    scores: Vectors
    name: Callable[[], NDArray[np.object_]]
    look_up: Callable[[], pa.Table]

    @cached_property
    def keys(self) -> NDArray[np.object_]:
        """[Q, K] object, the key of each hit, looked up when asked for first; None where there is no hit."""
        return self.name()

    @cached_property
    def rows(self) -> pa.Table:
        """Q * K rows of the stored table, query after query; nulls where there is no hit.

        They are taken from the table when they are asked for first: that costs more than their keys.
        """
        return self.look_up()

    def of(self, query: int) -> list[dict[str, Any]]:
        """The hits of one query as dictionaries `{score, column: value, ...}`."""
        width = self.keys.shape[1]
        rows = self.rows.slice(query * width, width).to_pylist()
        found = zip(self.scores[query].tolist(), self.keys[query], rows, strict=True)
        return [{"score": score, **row} for score, key, row in found if key is not None]


class Store(Protocol):
    """Vectors by key, with a row of a table each; scores are cosine.

    The key of a row is its `path`. Vectors are scaled to length 1 at the door.

    Attributes:
        card: what the store holds: `dimension`, `model`, `flip` and what else the store wants to tell.
    """

    card: dict[str, Any]

    def query(self, vectors: Vectors, k: int, where: Filter | None = None) -> Hits:
        """The `k` best rows for each query, among those that `where` lets through.

        Args:
            vectors: [Q, D] float32, of any length but zero.
            k: how many; fewer come back (K < k) where fewer rows pass the filter.
            where: None lets all rows through.

        Raises:
            InputError: vectors or filter cannot be used, no row passes the filter, or k exceeds the rows.
        """
        ...

    def get(self, keys: Sequence[str]) -> tuple[Vectors, pa.Table]:
        """The stored unit vectors [N, D] (as exact as the store keeps them) and rows of some keys, in order.

        Raises:
            InputError: a key is not there.
        """
        ...

    def add(self, keys: Sequence[str], vectors: Vectors, rows: pa.Table, *, replace: bool = False) -> int:
        """Stores N vectors and their rows, all or none.

        Args:
            keys: N texts.
            vectors: [N, D] float32.
            rows: N rows; their column `path`, where they have one, repeats the keys.
            replace: rows whose key is there already replace the old ones; otherwise they are an error.

        Returns:
            How many rows were stored.

        Raises:
            InputError: anything that the checks below refuse, or a key that is there already.
        """
        ...

    def remove(self, keys: Sequence[str] | None = None, identity: str | None = None) -> int:
        """Removes the rows of these keys, or all rows of an identity.

        Returns:
            How many rows were removed.

        Raises:
            InputError: a key or the identity is not there.
        """
        ...

    def stats(self) -> dict[str, Any]:
        """`kind`, `rows`, `dimension`, `model`, `disk_bytes`, `memory_bytes`, `recall`, and more if known.

        None stands for what the store cannot tell.
        """
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


def check_vectors(
    vectors: Any, dimension: int | None = None, name: str = "vectors", first: int = 0, *, copy: bool = True
) -> Vectors:
    """Vectors scaled to length 1, or one line about what is wrong with them.

    Args:
        vectors: [N, D] float32.
        dimension: the width they must have; any if None.
        name: how messages call them; rows are counted from 0.
        first: number of the first row, if these are a part.
        copy: False gives the array itself back where all rows have length 1 to rounding already.

    Returns:
        [N, D] float32, C-contiguous; a copy unless told otherwise.

    Raises:
        InputError: another shape or type, another width, a row that is not finite or zero.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype != np.float32 or array.shape[1] < 1:
        raise InputError(f"{name}: must be float32 [N, D], got {array.dtype} {list(array.shape)}")
    if dimension is not None and array.shape[1] != dimension:
        raise InputError(
            f"{name}: are {array.shape[1]} wide, the index holds vectors of {dimension}; "
            "use the model that the index was built with"
        )
    # The fewest and shortest calls: before a search that takes the caches, each costs 10 us and more.
    squares = np.einsum("nd,nd->n", array, array)
    low, high = (np.minimum.reduce(squares), np.maximum.reduce(squares)) if len(array) else (0.0, 0.0)
    if not copy and low > 1 - 1e-6 and high < 1 + 1e-6 and array.flags.c_contiguous:
        return array
    if _SQUARES[0] < low and high < _SQUARES[1]:  # NaN is neither
        return np.ascontiguousarray(array * (1 / np.sqrt(squares))[:, None])
    unit = np.empty(array.shape, np.float32)
    for start in range(0, len(array), _ROWS):
        # float64: squares of large float32 values overflow, those of small ones vanish.
        wide = array[start : start + _ROWS].astype(np.float64)
        norm = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        wrong = np.flatnonzero(~np.isfinite(norm) | (norm == 0))
        if len(wrong):
            what = "is the zero vector" if norm[wrong[0]] == 0 else "holds NaN or infinity"
            raise InputError(
                f"{name}: row {first + start + wrong[0]} (counted from 0) {what}; "
                "the model diverged or the file is damaged: embed again"
            )
        unit[start : start + _ROWS] = wide / norm[:, None]
    return unit


def check_keys(keys: Sequence[str], name: str = "rows", first: int = 0) -> list[str]:
    """The keys as a list of distinct, non-empty texts.

    Raises:
        InputError: one is empty, no text, or occurs twice.
    """
    found = list(keys)
    seen: dict[str, int] = {}
    for row, key in enumerate(found, first):
        if not isinstance(key, str) or not key.strip():
            raise InputError(
                f"{name}: row {row} (counted from 0) has no {KEY}; each row needs one as its key"
            )
        before = seen.setdefault(key, row)
        if before != row:
            raise InputError(f"{name}: rows {before} and {row} (counted from 0) have the same {KEY} {key!r}")
    return found


def check_rows(
    keys: Sequence[str], count: int, rows: pa.Table, name: str = "rows", first: int = 0
) -> pa.Table:
    """The rows with their keys as the first column, one chunk per column.

    Args:
        keys: one per row.
        count: how many vectors there are.
        rows: text columns and float columns.
        name: how messages call the rows.
        first: number of the first row, if these are a part.

    Returns:
        N rows, column `path` first; text without nulls.

    Raises:
        InputError: counts differ, keys repeat, `path` differs from the keys, or a column is of another type.
    """
    keys = check_keys(keys, name, first)
    if not len(keys) == count == len(rows):
        raise InputError(f"{name}: {len(keys)} keys, {count} vectors and {len(rows)} rows must be as many")
    if KEY in rows.column_names and rows[KEY].to_pylist() != keys:
        raise InputError(f"{name}: the column {KEY} differs from the keys")
    columns: dict[str, pa.Array] = {KEY: pa.array(keys, pa.string())}
    for field in rows.schema:
        if field.name == KEY:
            continue
        column = rows[field.name].combine_chunks()
        if pa.types.is_floating(field.type):
            columns[field.name] = column.cast(pa.float32())
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            columns[field.name] = pc.fill_null(column.cast(pa.string()), "")
        else:
            raise InputError(
                f"{name}: column {field.name!r} must hold text or numbers, but holds {field.type}"
            )
    return pa.table(columns)


def check_k(k: int, rows: int) -> None:
    """`k` results can be given.

    Raises:
        InputError: the store is empty, or k is not within 1..rows.
    """
    if rows == 0:
        raise InputError("the index has no rows; add some first")
    if not 1 <= k <= rows:
        raise InputError(f"-k: must be between 1 and the {rows} rows of the index, got {k}")


def check_same_model(card: Mapping[str, Any], other: Mapping[str, Any], name: str, other_name: str) -> None:
    """Refuses vectors of another model than the one a store was built with.

    Compared are the model's fingerprint, its width, its preprocessing, whether the mirrored image was added,
    and whether faces were aligned, where both cards say it. A card without `model` (vectors of another
    program) goes only with its like.

    Args:
        card: of the store, with `flip`, `aligned` and `model`: as `InferenceModel.describe()` gives it, a
            text, or None.
        other: of the vectors or the model to be used with it; the same keys.
        name, other_name: how messages call the two.

    Raises:
        InputError: names both and what differs.
    """
    ours, theirs = _facts(card), _facts(other)
    for fact in ours | theirs:
        here, there = ours.get(fact, _NOTHING), theirs.get(fact, _NOTHING)
        if fact == "aligned" and None in (here[0], there[0]):
            continue  # a card of before faces could be aligned says nothing
        if here[0] != there[0]:
            told, known = there[1], here[1]
            if isinstance(here[0], Mapping) and isinstance(there[0], Mapping):
                told, known = _differing(there[0], here[0]), _differing(here[0], there[0])
            remedy = "use the model of the index, or build a new index"
            if fact == "flip":
                index, other_way = ("with", "without") if here[0] else ("without", "with")
                remedy = (
                    f"the model is the same: run metricid embed again {index} --flip, or build a new index "
                    f"from embeddings made {other_way} --flip"
                )
            if fact == "aligned":
                remedy = "faces are aligned on both sides or on neither: embed again " + (
                    "with --align, or --aligned where they are" if here[0] else "without --align or --aligned"
                )
            raise InputError(
                f"{other_name} does not fit {name}: {fact} is {told} there, {known} in the index; {remedy}"
            )


def renewed(stored: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored card with what a later one names anew (`REMEMBERED`); None where that changes nothing."""
    named = {part: card[part] for part in REMEMBERED if card.get(part) is not None}
    if named.get("model_path") not in (None, stored.get("model_path")):
        named.setdefault("onnx", None)  # it was about another file
    changed = any(stored.get(part) != value for part, value in named.items())
    return {**stored, **named} if changed else None


def _differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The entries that the others have not in the same way, in one order on both sides."""
    names = sorted(name for name in values.keys() | others.keys() if values.get(name) != others.get(name))
    return ", ".join(f"{name} {values.get(name, 'unknown')}" for name in names)


def _facts(card: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """What must agree, the plainest reason first, each with the text for a message."""
    model = card.get("model")
    if not isinstance(model, Mapping):
        return {"dimension": _fact(card.get("dimension")), "model": _fact(model)}
    fingerprint = model.get("fingerprint")
    return {
        "dimension": _fact(model.get("dimension")),
        "preprocessing": _fact(model.get("preprocessing")),
        "model": (fingerprint, f"{model.get('name')} (fingerprint {str(fingerprint)[:12]})"),
        "flip": _fact(bool(card.get("flip"))),
        "aligned": _fact(card.get("aligned")),
    }


def _fact(value: Any) -> tuple[Any, str]:
    if isinstance(value, Mapping):
        return value, ", ".join(f"{name} {item}" for name, item in value.items())
    return value, "unknown" if value is None else str(value)


class MissingRowError(InputError):
    """Rows were asked for that a store does not have.

    Args:
        keys: of these rows.
    """

    def __init__(self, keys: Sequence[str]):
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        super().__init__(f"not in the index: {', '.join(map(repr, keys[:_SHOWN]))}{more}")
        self.keys = list(keys)
