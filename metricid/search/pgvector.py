"""A store in PostgreSQL with the extension pgvector: one table, one row per image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from metricid.errors import InputError
from metricid.search.exchange import (
    Found,
    Upload,
    check_removal,
    completed,
    no_rows,
    recall_is_known,
    sampled_recall,
    to_hits,
    to_table,
)
from metricid.search.pgtable import MAX_EF_SEARCH, Table, to_vectors, version
from metricid.search.postgres import Session, check_name
from metricid.search.remote import Address, Retry, read_options
from metricid.search.store import (
    IDENTITY,
    KEY,
    Filter,
    Hits,
    MissingRowError,
    Vectors,
    check_k,
    check_same_model,
    check_vectors,
    renewed,
)

_SAMPLE = 50  # queries by which recall is measured
_SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")


@dataclass(frozen=True)
class PgvectorOptions:
    """Options of a `pgvector://` URL.

    Args:
        table: name of the table; any text up to 63 bytes.
        schema: the schema that it lies in.
        m, ef_construction: of the HNSW index when `finish` builds it.
        ef_search: candidates per query, 1 to 1000; raised to k.
        memory: `maintenance_work_mem` while the index is built, such as `2GB`; the server's own if None.
        indexed: columns to filter by that get a B-tree; those that the rows lack are passed over.
        batch: rows per transaction.
        vacuum: `full` rewrites the table after a removal, so that no trace stays in its files; `plain` lets
            others go on working, and leaves the bytes of removed rows until their place is used again.
        sslmode, sslrootcert: as libpq takes them.
        timeout: seconds for a connection to be made.
    """

    table: str = "embeddings"
    schema: str = "public"
    m: int = 16
    ef_construction: int = 64
    ef_search: int = 100
    memory: str | None = None
    indexed: tuple[str, ...] = (IDENTITY, "camera", "split")
    batch: int = 5000
    vacuum: Literal["full", "plain"] = "full"
    sslmode: str | None = None
    sslrootcert: str | None = None
    timeout: int = 10


class PgvectorStore:
    """A table `path, embedding, metricid_digest, <columns>`, whose comment is the card.

    Opened by `open_store`; see there and `RemoteStore`.
    """

    def __init__(self, address: Address, *, card: Mapping[str, Any] | None, retry: Retry):
        options = read_options(address, PgvectorOptions)
        check_name(options.table, f"{address}: the table's name")
        check_name(options.schema, f"{address}: the schema's name")
        if not 2 <= options.m <= 100 or not 2 * options.m <= options.ef_construction <= 1000:
            raise InputError(f"{address}: m must be 2 to 100, and ef_construction 2 m to 1000")
        if options.ef_search > MAX_EF_SEARCH:
            raise InputError(f"{address}: ef_search must be 1 to {MAX_EF_SEARCH}")
        if options.memory is not None and not re.fullmatch(r"[0-9]{1,9}(kB|MB|GB|TB)", options.memory):
            raise InputError(f"{address}: memory must be a size such as 2GB, got {options.memory!r}")
        self._options = options
        tls = {"sslmode": options.sslmode, "sslrootcert": options.sslrootcert}
        self._session = Session(address, retry, connect_timeout=options.timeout, **tls)
        self._table = Table(options.schema, options.table, f"{address} table {options.table!r}")
        try:
            self.card: dict[str, Any] = self._session.run(lambda connection: self._open(connection, card))
        except BaseException:
            self.close()
            raise

    def _open(self, connection: Any, card: Mapping[str, Any] | None) -> dict[str, Any]:
        stored = self._table.read_card(connection)
        if stored is None and card is not None:
            self._table.create(connection, card)
            self._session.register_vector(connection)
            stored = self._table.read_card(connection)
        if stored is None:
            raise InputError(f"{self._table.name}: does not exist; build it first, or correct the URL")
        if card is not None:
            check_same_model(stored, card, self._table.name, "the set to be stored")
            if new := renewed(stored, card):
                self._table.write_card(connection, new)
                return new
        return stored

    def query(self, vectors: Vectors, k: int, where: Filter | None = None) -> Hits:
        """As `Store.query`: by the HNSW index where there is one, else exactly.

        A search that the index ends before it has k rows is done again exactly, so no hit is missing.
        """
        unit = check_vectors(vectors, self.card["dimension"], "queries")

        def search(connection: Any) -> tuple[Found, pa.Schema]:
            table = self._table
            with connection.transaction():
                # One snapshot for all statements; a replica that only reads can do this too.
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                schema = table.schema(connection)
                check_k(k, table.count(connection, limit=max(k, 1)))
                if where is not None:
                    where.check(schema)
                width = table.count(connection, where, limit=k)
                if width == 0:
                    raise no_rows(where)
                ask = partial(table.search, connection, k=width, where=where, columns=schema.names)
                found = ask(queries=unit, ef_search=self._options.ef_search)
                found = completed(found, width, lambda some: ask(queries=unit[some], ef_search=1, exact=True))
                return found, schema

        return to_hits(*self._session.run(search))

    def get(self, keys: Sequence[str]) -> tuple[Vectors, pa.Table]:
        """As `Store.get`."""

        def fetch(connection: Any) -> tuple[dict[str, tuple[Any, ...]], pa.Schema]:
            schema = self._table.schema(connection)
            return self._table.rows(connection, keys, schema.names), schema

        rows, schema = self._session.run(fetch)
        missing = [key for key in keys if key not in rows]
        if missing:
            raise MissingRowError(missing)
        chosen = [rows[key] for key in keys]
        table = to_table([dict(zip(schema.names, values, strict=True)) for _, *values in chosen], schema)
        return to_vectors(chosen, self.card["dimension"]), table

    def add(self, keys: Sequence[str], vectors: Vectors, rows: pa.Table, *, replace: bool = False) -> int:
        """As `Store.add` and `RemoteStore`: batches by COPY, a transaction each.

        Returns:
            How many rows were written; those that the table had already are not counted.
        """
        name, table, run = self._table.name, self._table, self._session.run
        unit = check_vectors(vectors, self.card["dimension"])
        upload = Upload.of(keys, unit, np.asarray(vectors), rows, name)
        for column in upload.rows.column_names:
            check_name(column, f"{name}: the column")
            if column in _SYSTEM_COLUMNS:
                raise InputError(f"{name}: PostgreSQL keeps the column {column!r} for itself; rename it")
        if not len(upload):
            return 0
        run(partial(table.fit_columns, given=upload.rows.schema, filtered=self._options.indexed))
        known = run(lambda connection: table.digests(connection, upload.keys))
        missing = upload.missing_in(known, replace=replace, name=name)
        for batch in missing.batches(self._options.batch):
            run(partial(table.write, batch=batch))
        return len(missing)

    def remove(self, keys: Sequence[str] | None = None, identity: str | None = None) -> int:
        """As `Store.remove`; then the table is vacuumed, as the option `vacuum` says.

        The write-ahead log, replicas that lag and backups keep removed rows for as long as they are kept.

        Raises:
            InputError: also where the rows are deleted, but this user may not vacuum the table.
        """
        check_removal(keys, identity)
        run, table, full = self._session.run, self._table, self._options.vacuum == "full"

        def delete(connection: Any) -> int:
            with connection.transaction():
                removed = table.delete(connection, keys, identity)
                if full:
                    table.note_removal(connection, freed=False)
            return removed

        try:
            removed = run(delete)
        except InputError:
            if full and run(table.is_unfreed):  # one that was killed has done its half
                self._free(full=True)
            raise
        self._session.warnings.clear()
        self._free(full=full)
        if self._session.warnings:
            raise InputError(
                f"{self._table.name}: {removed} rows are deleted, but their place is not freed "
                f"({self._session.warnings[0]}); let the table's owner run VACUUM FULL"
            )
        return removed

    def _free(self, *, full: bool) -> None:
        self._session.run(lambda connection: self._table.vacuum(connection, full=full))
        if full:
            self._session.run(lambda connection: self._table.note_removal(connection, freed=True))

    def finish(self) -> None:
        """Builds the HNSW index and the B-trees of `indexed` where they are missing, and measures recall."""
        options, run = self._options, self._session.run
        build = partial(
            self._table.build_indexes,
            m=options.m,
            ef_construction=options.ef_construction,
            memory=options.memory,
            columns=options.indexed,
        )
        run(build)
        if not recall_is_known(self.card, run(self._table.count)):
            self.card = {**self.card, "recall": run(self._recall)}
            run(lambda connection: self._table.write_card(connection, self.card))

    def _recall(self, connection: Any) -> dict[str, Any] | None:
        with connection.transaction():
            sample = self._table.sample(connection, _SAMPLE)
            unit = to_vectors(list(sample.values()), self.card["dimension"])
            ask = partial(self._table.search, connection, unit, where=None, columns=[KEY])
            return sampled_recall(
                list(sample),
                lambda exact, k: ask(k=k, ef_search=self._options.ef_search, exact=exact),
                self._table.count(connection),
            )

    def stats(self) -> dict[str, Any]:
        """As `Store.stats`; `disk_bytes` is the table with its indexes, `index_bytes` the HNSW index alone,
        which should fit into the server's memory.
        """

        def ask(connection: Any) -> dict[str, Any]:
            index = self._table.hnsw(connection)
            return {
                "kind": "pgvector",
                "rows": self._table.count(connection),
                "dimension": self.card["dimension"],
                "model": self.card.get("model"),
                "disk_bytes": self._table.size(connection),
                "memory_bytes": None,
                "flip": self.card.get("flip"),
                "aligned": self.card.get("aligned"),
                "recall": self.card.get("recall"),
                "store": self._table.name,
                "index": None if index is None else index[0],
                "index_bytes": None if index is None else index[1],
                "postgresql": connection.info.server_version // 10000,
                "pgvector": ".".join(map(str, version(connection) or ())),
            }

        return self._session.run(ask)

    def close(self) -> None:
        """Closes the connection."""
        self._session.close()
