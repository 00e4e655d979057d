"""Statements on one table of vectors in PostgreSQL: every name is quoted, every value a parameter."""

import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from metricid.errors import InputError
from metricid.search.exchange import DIGEST, VECTOR, Found, Upload, merge_columns, no_identity
from metricid.search.store import IDENTITY, KEY, Filter, MissingRowError, Vectors, check_keys

MAX_DIMENSION = 2000  # of an HNSW index on the type vector
MAX_EF_SEARCH = 1000
_UNFREED = "unfreed"  # in the card, from the deletion of rows until their bytes are gone
_CARD = "metricid_store"
_TYPES = {"text": pa.string(), "real": pa.float32()}
_SQL_TYPES = {pa.string(): "text NOT NULL DEFAULT ''", pa.float32(): "real"}


class Table:
    """One table `path, embedding, metricid_digest, <columns>`, whose comment is the card.

    Every method takes a psycopg connection in autocommit mode, and does no harm when it is called again after
    the connection was lost.
    """

    def __init__(self, schema: str, table: str, name: str):
        import psycopg.sql

        self._sql = psycopg.sql
        self._place = (schema, table)
        self.name = name

    def find(self, connection: Any) -> tuple[int, str | None] | None:
        """The table's number and its comment, if it exists."""
        return connection.execute(
            "SELECT c.oid, obj_description(c.oid, 'pg_class') FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
            self._place,
        ).fetchone()

    def read_card(self, connection: Any) -> dict[str, Any] | None:
        """The card, if the table exists.

        Raises:
            InputError: the table is not ours.
        """
        found = self.find(connection)
        if found is None:
            return None
        try:
            return json.loads(found[1] or "")[_CARD]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.name}: exists, but its comment holds no card of ours; choose another table"
            ) from None

    def write_card(self, connection: Any, card: Mapping[str, Any]) -> None:
        """Makes the card the table's comment."""
        literal = self._sql.Literal(json.dumps({_CARD: card}, allow_nan=False)).as_string(connection)
        text = self._sql.SQL(literal.replace("%", "%%"))
        self._execute(connection, "COMMENT ON TABLE {table} IS {text}", text=text)

    def create(self, connection: Any, card: Mapping[str, Any]) -> None:
        """Creates the table, and the extension, where they are missing.

        Raises:
            InputError: no index takes vectors of this width.
        """
        dimension = card.get("dimension")
        if not isinstance(dimension, int) or not 1 <= dimension <= MAX_DIMENSION:
            raise InputError(
                f"{self.name}: an index of pgvector takes vectors of width 1 to {MAX_DIMENSION}, "
                f"got {dimension}; train a narrower embedding, or use Qdrant"
            )
        with connection.transaction():
            # Of two that create at once, the second waits here and finds the table of the first.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('metricid'))")
            if self.find(connection) is not None:
                return
            if version(connection) is None:
                connection.execute("CREATE EXTENSION vector")
            statement = "CREATE TABLE {table} ({key} text PRIMARY KEY, {vector} vector({width}) NOT NULL, "
            width = self._sql.Literal(dimension)
            self._execute(connection, statement + "{digest} uuid NOT NULL)", width=width)
            self._without_statistics(connection, [KEY, VECTOR, DIGEST])
            self.write_card(connection, card)

    def schema(self, connection: Any) -> pa.Schema:
        """Key and columns, without vector and digest. Columns of types that we do not write are left out."""
        oid, _ = self._must_find(connection)
        rows = connection.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
            "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [oid],
        )
        known = [(name, _TYPES[kind]) for name, kind in rows if kind in _TYPES]
        return pa.schema([pa.field(name, kind) for name, kind in known])

    def fit_columns(self, connection: Any, given: pa.Schema, filtered: Collection[str]) -> None:
        """Gives the table the columns that it lacks; rows that are there get no value in them.

        Args:
            connection: of psycopg.
            given: key and columns of new rows.
            filtered: columns whose values the planner may know of.

        Raises:
            InputError: a column is there with another type.
        """
        with connection.transaction():
            stored = self.schema(connection)
            new = list(merge_columns(stored, given, self.name))[len(stored) :]
            for column in new:
                self._execute(
                    connection,
                    "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {kind}",
                    column=self._names([column.name]),
                    kind=self._sql.SQL(_SQL_TYPES[column.type]),
                )
            names = {column.name for column in new}
            self._without_statistics(connection, names - set(filtered) | names & {IDENTITY})

    def _without_statistics(self, connection: Any, columns: Iterable[str]) -> None:
        """The planner's statistics are samples of values in a table of the system, where nothing removes them
        for good: they must not hold what is somebody's right to have forgotten.
        """
        for name in columns:
            statement = "ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0"
            self._execute(connection, statement, column=self._names([name]))

    def digests(self, connection: Any, keys: Sequence[str]) -> dict[str, str]:
        """Key to digest, of those keys that the table has."""
        statement = "SELECT {key}, {digest} FROM {table} WHERE {key} = ANY(%s)"
        return {key: digest.hex for key, digest in self._execute(connection, statement, [list(keys)])}

    def write(self, connection: Any, batch: Upload) -> None:
        """Inserts or replaces rows, in one transaction."""
        columns = [name for name in batch.rows.column_names if name != KEY]
        absent = [name for name in self.schema(connection).names if name not in batch.rows.column_names]
        names = self._names([KEY, VECTOR, DIGEST, *columns])
        changes = self._sql.SQL(", ").join(
            self._compose("{column} = EXCLUDED.{column}", column=self._names([name]))
            for name in (VECTOR, DIGEST, *columns, *absent)
        )
        types = [self._copy_type(batch.rows.schema.field(name).type) for name in columns]
        with connection.transaction():
            create = (
                "CREATE TEMP TABLE metricid_batch ON COMMIT DROP AS SELECT {names} FROM {table} WITH NO DATA"
            )
            self._execute(connection, create, names=names)
            with connection.cursor().copy("COPY metricid_batch FROM STDIN (FORMAT BINARY)") as stream:
                stream.set_types(["text", "vector", "uuid", *types])
                digests = map(uuid.UUID, batch.digests)
                values = [batch.rows[name].to_pylist() for name in columns]
                for row in zip(batch.keys, batch.vectors, digests, *values, strict=True):
                    stream.write_row(row)
            self._execute(
                connection,
                "INSERT INTO {table} ({names}) SELECT {names} FROM metricid_batch "
                "ON CONFLICT ({key}) DO UPDATE SET {changes}",
                names=names,
                changes=changes,
            )

    def count(self, connection: Any, where: Filter | None = None, limit: int | None = None) -> int:
        """How many rows pass the filter, counted up to the limit."""
        condition, values = self._where(where)
        statement = "SELECT count(*) FROM (SELECT FROM {table} {where} LIMIT %s) AS counted"
        return self._execute(connection, statement, [*values, limit], where=condition).fetchone()[0]

    def search(
        self,
        connection: Any,
        queries: Vectors,
        k: int,
        where: Filter | None,
        columns: Sequence[str],
        *,
        ef_search: int,
        exact: bool = False,
    ) -> Found:
        """The best rows per query, within a transaction; fewer than k where the index ends early."""
        if not exact:
            connection.execute(f"SET LOCAL hnsw.ef_search = {min(max(ef_search, k), MAX_EF_SEARCH)}")
            if (version(connection) or ()) >= (0, 8):
                connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        condition, values = self._where(where)
        # No index is ordered by the sum: this sorts all rows that pass the filter.
        order = "({vector} <#> %s) + 0" if exact else "{vector} <#> %s"
        statement = self._compose(
            "SELECT -({vector} <#> %s), {names} FROM {table} {where} ORDER BY " + order + " LIMIT %s",
            names=self._names(columns),
            where=condition,
        )
        cursor = connection.cursor()
        cursor.executemany(statement, [(q, *values, q, k) for q in queries], returning=True)
        found: Found = []
        while True:
            found.append([(score, dict(zip(columns, row, strict=True))) for score, *row in cursor])
            if not cursor.nextset():
                break
        return found

    def rows(
        self, connection: Any, keys: Sequence[str], columns: Sequence[str]
    ) -> dict[str, tuple[Any, ...]]:
        """Key to (vector, columns...), of those keys that the table has."""
        statement = self._compose(
            "SELECT {key}, {vector}, {names} FROM {table} WHERE {key} = ANY(%s)", names=self._names(columns)
        )
        return _by_key(connection.cursor(binary=True).execute(statement, [list(keys)]))

    def sample(self, connection: Any, size: int) -> dict[str, tuple[Any, ...]]:
        """Key to (vector,) of the rows with the lowest digests: random, but the same again."""
        statement = self._compose("SELECT {key}, {vector} FROM {table} ORDER BY {digest} LIMIT %s")
        return _by_key(connection.cursor(binary=True).execute(statement, [size]))

    def delete(self, connection: Any, keys: Sequence[str] | None, identity: str | None) -> int:
        """Deletes rows by key or by identity, all or none.

        Raises:
            InputError: a key or the identity is not there.
        """
        if keys is None:
            if IDENTITY not in self.schema(connection).names:
                raise InputError(f"{self.name}: has no column {IDENTITY}; remove by {KEY}")
            statement = "DELETE FROM {table} WHERE {column} = %s"
            column = self._names([IDENTITY])
            removed = self._execute(connection, statement, [identity], column=column).rowcount
            if not removed:
                raise no_identity(self.name, identity)
            return removed
        known = self.digests(connection, keys)
        missing = [key for key in check_keys(keys, "keys to remove") if key not in known]
        if missing:
            raise MissingRowError(missing)
        return self._execute(connection, "DELETE FROM {table} WHERE {key} = ANY(%s)", [list(keys)]).rowcount

    def note_removal(self, connection: Any, *, freed: bool) -> None:
        """Keeps in the card that deleted rows still have their bytes in the files, or that no longer.

        Only the table's owner can write the card, and only the owner can free them.
        """
        statement = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = %s"
        if connection.execute(statement, [self._must_find(connection)[0]]).fetchone()[0]:
            card = {
                name: value for name, value in (self.read_card(connection) or {}).items() if name != _UNFREED
            }
            self.write_card(connection, card if freed else {**card, _UNFREED: True})

    def is_unfreed(self, connection: Any) -> bool:
        """Whether a removal was cut off before it freed its rows."""
        return bool((self.read_card(connection) or {}).get(_UNFREED))

    def vacuum(self, connection: Any, *, full: bool) -> None:
        """Frees the place of deleted rows; `full` writes the table and its indexes anew."""
        how = self._sql.SQL("FULL, ANALYZE" if full else "ANALYZE")
        self._execute(connection, "VACUUM ({how}) {table}", how=how)

    def build_indexes(
        self, connection: Any, m: int, ef_construction: int, memory: str | None, columns: Iterable[str]
    ) -> None:
        """Builds the HNSW index, and a B-tree per column, where they are missing; then analyses the table."""
        with connection.transaction():
            self._execute(connection, "LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            if memory is not None:
                connection.execute("SELECT set_config('maintenance_work_mem', %s, true)", [memory])
            if self.hnsw(connection) is None:
                options = {"m": self._sql.Literal(m), "ef": self._sql.Literal(ef_construction)}
                self._execute(
                    connection,
                    "CREATE INDEX ON {table} USING hnsw ({vector} vector_ip_ops) "
                    "WITH (m = {m}, ef_construction = {ef})",
                    **options,
                )
            indexed = self._indexed(connection)
            for name in set(columns) & set(self.schema(connection).names) - indexed:
                self._execute(connection, "CREATE INDEX ON {table} ({column})", column=self._names([name]))
        self._execute(connection, "ANALYZE {table}")

    def hnsw(self, connection: Any) -> tuple[str, int] | None:
        """The definition of the HNSW index on the vectors, and its size in bytes."""
        return connection.execute(
            "SELECT pg_get_indexdef(i.indexrelid), pg_relation_size(i.indexrelid) FROM pg_index i "
            "JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam "
            "WHERE i.indrelid = %s AND a.amname = 'hnsw' AND i.indisvalid",
            [self._must_find(connection)[0]],
        ).fetchone()

    def size(self, connection: Any) -> int:
        """Bytes of the table with its indexes."""
        return connection.execute(
            "SELECT pg_total_relation_size(%s::oid)", [self._must_find(connection)[0]]
        ).fetchone()[0]

    def _must_find(self, connection: Any) -> tuple[int, str | None]:
        found = self.find(connection)
        if found is None:
            raise InputError(f"{self.name}: was dropped by somebody meanwhile; build it again")
        return found

    def _indexed(self, connection: Any) -> set[str]:
        """Columns that are the first of an index."""
        rows = connection.execute(
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a "
            "ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] WHERE i.indrelid = %s",
            [self._must_find(connection)[0]],
        )
        return {name for (name,) in rows}

    def _where(self, where: Filter | None) -> tuple[Any, list[str]]:
        if where is None or not where.conditions:
            return self._sql.SQL(""), []
        parts = [
            self._compose(
                "{column} = %s" if condition.equal else "{column} <> %s",
                column=self._names([condition.column]),
            )
            for condition in where.conditions
        ]
        return self._sql.SQL("WHERE ") + self._sql.SQL(" AND ").join(parts), [
            c.value for c in where.conditions
        ]

    def _names(self, names: Sequence[str]) -> Any:
        """Quoted names; every statement is executed with parameters, so a percent sign is doubled."""
        quoted = (self._sql.Identifier(name).as_string(None).replace("%", "%%") for name in names)
        return self._sql.SQL(", ").join(map(self._sql.SQL, quoted))

    def _compose(self, statement: str, **parts: Any) -> Any:
        place = self._sql.SQL(".").join(self._names([name]) for name in self._place)
        key, vector, digest = (self._names([name]) for name in (KEY, VECTOR, DIGEST))
        return self._sql.SQL(statement).format(table=place, key=key, vector=vector, digest=digest, **parts)

    def _execute(self, connection: Any, statement: str, values: Sequence[Any] = (), **parts: Any) -> Any:
        return connection.execute(self._compose(statement, **parts), values)

    @staticmethod
    def _copy_type(kind: pa.DataType) -> str:
        return "text" if pa.types.is_string(kind) else "float4"


def version(connection: Any) -> tuple[int, ...] | None:
    """The version of the extension pgvector in this database, such as (0, 8, 5)."""
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    return None if row is None else tuple(int(part) for part in row[0].split("."))


def to_vectors(rows: Sequence[tuple[Any, ...]], dimension: int) -> Vectors:
    """[N, D] the vectors of what `rows` or `sample` gave."""
    vectors = np.empty((len(rows), dimension), np.float32)
    for place, row in enumerate(rows):
        vectors[place] = row[0].to_numpy()
    return vectors


def _by_key(rows: Iterable[tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return {key: tuple(values) for key, *values in rows}
