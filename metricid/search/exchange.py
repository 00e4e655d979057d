"""Rows on their way into a store and hits on their way out, for all stores on servers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metricid.errors import InputError
from metricid.search.store import KEY, Filter, Hits, Vectors, check_rows

DIGEST = "metricid_digest"
VECTOR = "embedding"
_RECALL_AT = 10
_MEASURED_AGAIN = 0.1  # growth after which recall is measured again

Found = list[list[tuple[float, dict[str, Any]]]]  # per query: scores and rows


@dataclass(frozen=True)
class Upload:
    """Rows on their way into a store, checked.

    Attributes:
        keys: N texts.
        vectors: [N, D] float32 of length 1.
        rows: N rows; text without nulls, float32 with null for what is not a finite number.
        digests: N times 32 hex digits over vector and row, by which a store knows what it has already.
    """

    keys: list[str]
    vectors: Vectors
    rows: pa.Table
    digests: list[str]

    @classmethod
    def of(cls, keys: Sequence[str], unit: Vectors, given: Vectors, rows: pa.Table, name: str) -> "Upload":
        """Checks rows, and digests the vectors as given: scaled ones may differ between machines.

        Raises:
            InputError: as `check_rows`; a column with a name that stores use; a text with a null character.
        """
        table = check_rows(keys, len(unit), rows, name)
        for place, column in enumerate(table.column_names):
            values = table[column].combine_chunks()
            if column in (DIGEST, VECTOR) or not column or '"' in column or "\0" in column:
                raise InputError(f"{name}: a column of a store cannot be named {column!r}; rename it")
            if pa.types.is_string(values.type):
                found = pc.index(pc.match_substring(values, "\0"), True).as_py()
                if found >= 0:
                    raise InputError(
                        f"{name}: row {found} (counted from 0) holds a null character in {column!r}"
                    )
            else:
                finite = pc.if_else(pc.is_finite(values), values, pa.scalar(None, pa.float32()))
                table = table.set_column(place, column, finite)
        digests = []
        names = sorted(table.column_names)
        columns = [table[column].to_pylist() for column in names]
        for vector, row in zip(given, zip(*columns, strict=True), strict=True):
            content = hashlib.blake2b(vector.tobytes(), digest_size=16)
            # Columns without a value do not count: a store has them where other rows brought them.
            told = [
                (column, value) for column, value in zip(names, row, strict=True) if value not in ("", None)
            ]
            content.update(repr(told).encode())
            digests.append(content.hexdigest())
        return cls(table[KEY].to_pylist(), unit, table, digests)

    def __len__(self) -> int:
        return len(self.keys)

    def missing_in(self, known: Mapping[str, str], *, replace: bool, name: str) -> "Upload":
        """The rows that a store does not have yet.

        Args:
            known: key to digest, of the keys that the store has.
            replace: rows with other content are among the missing; otherwise they are an error.

        Raises:
            InputError: a key is there with other content.
        """
        if not replace:
            for key, digest in zip(self.keys, self.digests, strict=True):
                if known.get(key, digest) != digest:
                    raise InputError(
                        f"{name}: {key!r} is there already with another vector or other columns; "
                        "replace it, or remove it first"
                    )
        chosen = [i for i, key in enumerate(self.keys) if known.get(key) != self.digests[i]]
        return self._take(chosen)

    def batches(self, size: int) -> "list[Upload]":
        """Parts of at most `size` rows, in order."""
        return [self._take(range(i, min(i + size, len(self)))) for i in range(0, len(self), size)]

    def _take(self, chosen: Sequence[int]) -> "Upload":
        place = list(chosen)
        return Upload(
            [self.keys[i] for i in place],
            self.vectors[place],
            self.rows.take(pa.array(place, pa.int64())),
            [self.digests[i] for i in place],
        )


def merge_columns(stored: pa.Schema, given: pa.Schema, name: str) -> pa.Schema:
    """The columns of a store and of new rows together.

    Raises:
        InputError: a column holds text in one and numbers in the other.
    """
    for column in given:
        if column.name in stored.names and stored.field(column.name).type != column.type:
            raise InputError(
                f"{name}: column {column.name!r} holds {column.type}, in the store "
                f"{stored.field(column.name).type}; rename it"
            )
    return pa.schema([*stored, *(column for column in given if column.name not in stored.names)])


def to_table(rows: Sequence[Mapping[str, Any] | None], schema: pa.Schema) -> pa.Table:
    """Rows as a table of a store's schema; None gives a row of nulls."""
    return pa.Table.from_pylist([{} if row is None else row for row in rows], schema=schema)


def to_hits(found: Found, schema: pa.Schema) -> Hits:
    """Puts what was found for each of Q queries, as (score, row) pairs in any order, side by side."""
    width = max(map(len, found), default=0)
    scores = np.full((len(found), width), -np.inf, np.float32)
    keys = np.full((len(found), width), None, object)
    rows: list[Mapping[str, Any] | None] = []
    for query, hits in enumerate(found):
        best = sorted(hits, key=lambda hit: (-hit[0], hit[1][KEY]))
        scores[query, : len(best)] = [score for score, _ in best]
        keys[query, : len(best)] = [row[KEY] for _, row in best]
        rows += [row for _, row in best] + [None] * (width - len(best))
    return Hits(scores, lambda: keys, lambda: to_table(rows, schema))


def sampled_recall(
    keys: Sequence[str], search: Callable[[bool, int], Found], rows: int
) -> dict[str, Any] | None:
    """How many of the truly nearest rows the index finds for some of the stored vectors.

    Args:
        keys: Q keys of the vectors searched with; they do not count as their own neighbours.
        search: gives the hits of these Q vectors, exactly or by the index, as many as asked for.
        rows: how many rows there are.

    Returns:
        `value`, `at`, `queries`, `rows` and `against`; None for fewer than two rows.
    """
    at = min(_RECALL_AT, rows - 1)
    if at < 1:
        return None
    right = 0
    for key, true, found in zip(keys, search(True, at + 1), search(False, at + 1), strict=True):
        nearest, given = ([row[KEY] for _, row in hits if row[KEY] != key][:at] for hits in (true, found))
        right += len(set(nearest) & set(given))
    value = round(right / (len(keys) * at), 4)
    return {"value": value, "at": at, "queries": len(keys), "rows": rows, "against": "exact search"}


def recall_is_known(card: Mapping[str, Any], rows: int) -> bool:
    """Whether the card's recall was measured on about as many rows: exact searches of many rows take long."""
    known = card.get("recall")
    return known is not None and rows <= known["rows"] * (1 + _MEASURED_AGAIN)


def completed(found: Found, width: int, exactly: Callable[[list[int]], Found]) -> Found:
    """What an index found, with the queries for which it ended early answered exactly.

    Args:
        found: hits per query.
        width: how many each query must have.
        exactly: the hits of some queries, by their numbers.
    """
    short = [query for query, hits in enumerate(found) if len(hits) < width]
    again = dict(zip(short, exactly(short), strict=True)) if short else {}
    return [again.get(query, hits) for query, hits in enumerate(found)]


def no_rows(where: Filter | None) -> InputError:
    """The error for a filter that nothing passes."""
    return InputError(f"--where: no row has {where}")


def check_removal(keys: Sequence[str] | None, identity: str | None) -> None:
    """One of the two must be given.

    Raises:
        InputError: none or both.
    """
    if (keys is None) == (identity is None):
        raise InputError("remove: give either keys or an identity")


def no_identity(name: str, identity: str | None) -> InputError:
    """The error for an identity that is not there."""
    return InputError(f"--identity: no row of {name} has identity {identity!r}")
