"""A store in Qdrant: one collection, one point per image; on a server, or in a folder for small tests."""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from metricid.errors import InputError
from metricid.search.exchange import (
    DIGEST,
    VECTOR,
    Found,
    Upload,
    check_removal,
    completed,
    merge_columns,
    no_identity,
    no_rows,
    recall_is_known,
    sampled_recall,
    to_hits,
    to_table,
)
from metricid.search.qdrant_server import QdrantServer
from metricid.search.remote import Address, Retry, read_options
from metricid.search.store import (
    IDENTITY,
    KEY,
    Filter,
    Hits,
    MissingRowError,
    Vectors,
    check_k,
    check_keys,
    check_same_model,
    check_vectors,
    renewed,
)

# No row has this number: those are uuid5 of the key, which are never all zeros.
CARD_POINT = "00000000-0000-0000-0000-000000000000"
_CARD = "metricid_store"
_SPACE = uuid.UUID("5d1c1c5e-7f0e-5c6b-9d53-6f1a8f2b7a11")
_TYPES = {"text": pa.string(), "number": pa.float32()}
_SAMPLE = 50  # queries by which recall is measured
_ASKED = 1000  # points asked for at a time
_QUERIES = 100  # queries sent at a time
_INDEXING = 3600.0  # seconds that `finish` waits for the server's index


@dataclass(frozen=True)
class QdrantOptions:
    """Options of a `qdrant://` URL.

    Args:
        collection: name of the collection in a local folder; on a server the URL's path names it.
        m, ef_construction: of the HNSW index of a new collection.
        ef_search: candidates per query; raised to k.
        shards, replicas: of a new collection, on a cluster.
        on_disk: a new collection keeps vectors in files, and not in memory.
        quantization: `int8` keeps a copy of 8 bits in memory, and compares the best by the full vectors.
        indexed: columns to filter by that get an index.
        batch: points per request.
        tls: speak https.
        timeout: seconds for an answer.
    """

    collection: str = "embeddings"
    m: int = 16
    ef_construction: int = 100
    ef_search: int = 128
    shards: int = 1
    replicas: int = 1
    on_disk: bool = False
    quantization: Literal["none", "int8"] = "none"
    indexed: tuple[str, ...] = (IDENTITY, "camera", "split")
    batch: int = 500
    tls: bool = False
    timeout: int = 60


class QdrantStore:
    """A collection of points with the vector `embedding`; the card is a point without a vector.

    Opened by `open_store`; see there and `RemoteStore`.
    """

    def __init__(self, address: Address, *, card: Mapping[str, Any] | None, retry: Retry):
        self._options = options = read_options(address, QdrantOptions)
        collection = address.path.strip("/") if address.host else options.collection
        self._server = QdrantServer(
            address, collection, retry, create=card is not None, tls=options.tls, timeout=options.timeout
        )
        self.name, self._ask, self._models = self._server.name, self._server.ask, self._server.models
        try:
            self.card, self._schema = self._open(card)
        except BaseException:
            self.close()
            raise

    def query(self, vectors: Vectors, k: int, where: Filter | None = None) -> Hits:
        """As `Store.query`: by the HNSW index, which Qdrant keeps for large collections, else exactly."""
        unit = check_vectors(vectors, self.card["dimension"], "queries")
        _, self._schema = self._read_card()
        rows = self._count(None)
        check_k(k, rows)
        if where is not None:
            where.check(self._schema)
            rows = self._count(where)
            if rows == 0:
                raise no_rows(where)
        width = min(k, rows)
        found = self._search(unit, width, where)
        found = completed(found, width, lambda some: self._search(unit[some], width, where, exact=True))
        return to_hits(found, self._schema)

    def get(self, keys: Sequence[str]) -> tuple[Vectors, pa.Table]:
        """As `Store.get`."""
        _, self._schema = self._read_card()
        points = self._points(keys, with_payload=True, with_vectors=[VECTOR])
        missing = [key for key in keys if key not in points]
        if missing:
            raise MissingRowError(missing)
        vectors = np.empty((len(keys), self.card["dimension"]), np.float32)
        for place, key in enumerate(keys):
            vectors[place] = points[key].vector[VECTOR]
        return vectors, to_table([self._row(points[key].payload) for key in keys], self._schema)

    def add(self, keys: Sequence[str], vectors: Vectors, rows: pa.Table, *, replace: bool = False) -> int:
        """As `Store.add` and `RemoteStore`: batches by upsert.

        Returns:
            How many rows were written; those that the collection had already are not counted.
        """
        unit = check_vectors(vectors, self.card["dimension"])
        upload = Upload.of(keys, unit, np.asarray(vectors), rows, self.name)
        if not len(upload):
            return 0
        known = self._points(upload.keys, with_payload=[KEY, DIGEST])
        digests = {key: point.payload[DIGEST] for key, point in known.items()}
        missing = upload.missing_in(digests, replace=replace, name=self.name)
        self._fit_columns(upload.rows.schema)
        for batch in missing.batches(self._options.batch):
            columns = batch.rows.to_pylist()
            points = [
                self._models.PointStruct(
                    id=_number(row[KEY]), vector={VECTOR: vector.tolist()}, payload={**row, DIGEST: digest}
                )
                for row, vector, digest in zip(columns, batch.vectors, batch.digests, strict=True)
            ]
            self._ask("upsert", points=points, wait=True)
        return len(missing)

    def remove(self, keys: Sequence[str] | None = None, identity: str | None = None) -> int:
        """As `Store.remove`. Searches miss the rows at once; a server frees their bytes when it rewrites a
        segment, a local folder is rewritten here.
        """
        check_removal(keys, identity)
        if keys is not None:
            known = self._points(check_keys(keys, "keys to remove"), with_payload=[KEY])
            missing = [key for key in keys if key not in known]
            if missing:
                self._free()
                raise MissingRowError(missing)
            removed = len(known)
            selector: Any = self._models.PointIdsList(points=[_number(key) for key in known])
        else:
            where = Filter.parse([f"{IDENTITY}={identity}"])
            _, self._schema = self._read_card()
            where.check(self._schema)
            removed = self._count(where)
            if removed == 0:
                self._free()
                raise no_identity(self.name, identity)
            selector = self._models.FilterSelector(filter=self._filter(where))
        if removed:
            self._ask("delete", points_selector=selector, wait=True)
            self._free()
        return removed

    def _free(self) -> None:
        """Frees the bytes of deleted rows in a local folder, also after a removal that was killed."""
        if self._server.folder is not None:
            self._server.rewrite()

    def finish(self) -> None:
        """Waits until the server has indexed what it was given, and measures recall."""
        deadline = time.monotonic() + _INDEXING
        while (status := self._ask("get_collection").status) == self._models.CollectionStatus.YELLOW:
            if time.monotonic() > deadline:
                raise InputError(f"{self.name}: is still indexing; run the same command again to wait longer")
            time.sleep(1.0)
        if status == self._models.CollectionStatus.RED:
            raise InputError(
                f"{self.name}: the server reports a fault of the collection; see the server's log"
            )
        if recall_is_known(self.card, self._count(None)):
            return
        sample, _ = self._ask(
            "scroll", scroll_filter=self._filter(None), limit=_SAMPLE, with_vectors=[VECTOR]
        )
        unit = np.array([point.vector[VECTOR] for point in sample], np.float32)
        recall = sampled_recall(
            [point.payload[KEY] for point in sample],
            lambda exact, k: self._search(unit, k, None, exact=exact),
            self._count(None),
        )
        self.card = {**self.card, "recall": recall}
        self._write_card(self.card, self._schema)

    def stats(self) -> dict[str, Any]:
        """As `Store.stats`; a server does not tell what it takes on disk and in memory."""
        told = self._ask("get_collection")
        graph = told.config.hnsw_config
        return {
            "kind": "qdrant",
            "rows": self._count(None),
            "dimension": self.card["dimension"],
            "model": self.card.get("model"),
            "disk_bytes": None
            if self._server.folder is None
            else sum(file.stat().st_size for file in self._server.folder.rglob("*") if file.is_file()),
            "memory_bytes": None,
            "flip": self.card.get("flip"),
            "aligned": self.card.get("aligned"),
            "recall": self.card.get("recall"),
            "store": self.name,
            "index": f"hnsw, m {graph.m}, ef_construction {graph.ef_construct}",
            "indexed_rows": told.indexed_vectors_count,
            "status": told.status.value,
        }

    def close(self) -> None:
        """Closes the connection, or lets go of the folder."""
        self._server.close()

    def _open(self, card: Mapping[str, Any] | None) -> tuple[dict[str, Any], pa.Schema]:
        if not self._ask("collection_exists"):
            if card is None:
                raise InputError(f"{self.name}: does not exist; build it first, or correct the URL")
            self._create(card)
        elif card is not None and self._is_bare(card):
            # A creation that was killed before it wrote the card.
            self._write_card(card, pa.schema([(KEY, pa.string())]))
        stored, schema = self._read_card()
        if card is not None:
            check_same_model(stored, card, self.name, "the set to be stored")
            if new := renewed(stored, card):
                self._write_card(new, schema)
                return new, schema
        return stored, schema

    def _create(self, card: Mapping[str, Any]) -> None:
        models, options = self._models, self._options
        dimension = card.get("dimension")
        if not isinstance(dimension, int) or not 1 <= dimension <= 65535:
            raise InputError(f"{self.name}: Qdrant takes vectors of width 1 to 65535, got {dimension}")
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        quantization = models.ScalarQuantization(scalar=scalar) if options.quantization == "int8" else None
        self._ask(
            "create_collection",
            vectors_config={
                VECTOR: models.VectorParams(
                    size=dimension, distance=models.Distance.DOT, on_disk=options.on_disk
                )
            },
            hnsw_config=models.HnswConfigDiff(m=options.m, ef_construct=options.ef_construction),
            quantization_config=quantization,
            shard_number=options.shards,
            replication_factor=options.replicas,
        )
        self._write_card(card, pa.schema([(KEY, pa.string())]))

    def _is_bare(self, card: Mapping[str, Any]) -> bool:
        told = self._ask("get_collection")
        vectors = told.config.params.vectors
        ours = isinstance(vectors, dict) and list(vectors) == [VECTOR]
        return ours and told.points_count == 0 and vectors[VECTOR].size == card.get("dimension")

    def _read_card(self) -> tuple[dict[str, Any], pa.Schema]:
        found = self._ask("retrieve", ids=[CARD_POINT], with_payload=True)
        try:
            told = json.loads(found[0].payload[_CARD])
            return told["card"], pa.schema([(name, _TYPES[kind]) for name, kind in told["columns"].items()])
        except (IndexError, KeyError, TypeError, ValueError):
            raise InputError(f"{self.name}: exists, but holds no card of ours; choose another name") from None

    def _write_card(self, card: Mapping[str, Any], schema: pa.Schema) -> None:
        names = {kind: name for name, kind in _TYPES.items()}
        told = {"card": card, "columns": {column.name: names[column.type] for column in schema}}
        point = self._models.PointStruct(
            id=CARD_POINT, vector={}, payload={_CARD: json.dumps(told, allow_nan=False)}
        )
        self._ask("upsert", points=[point], wait=True)

    def _fit_columns(self, given: pa.Schema) -> None:
        _, stored = self._read_card()
        self._schema = merge_columns(stored, given, self.name)
        new = self._schema.names[len(stored) :]
        if new:
            self._write_card(self.card, self._schema)
        if self._server.folder is not None:
            return
        for name in set(new) & set(self._options.indexed):
            text = pa.types.is_string(self._schema.field(name).type)
            kind = self._models.PayloadSchemaType.KEYWORD if text else self._models.PayloadSchemaType.FLOAT
            self._ask("create_payload_index", field_name=_path(name), field_schema=kind, wait=True)

    def _search(self, unit: Vectors, k: int, where: Filter | None, *, exact: bool = False) -> Found:
        models = self._models
        # The local mode is exact, and warns about what it ignores.
        how = models.SearchParams(exact=exact, hnsw_ef=max(self._options.ef_search, k))
        condition = None if where is None else self._filter(where)
        found: Found = []
        for start in range(0, len(unit), _QUERIES):
            requests = [
                models.QueryRequest(
                    query=vector.tolist(),
                    using=VECTOR,
                    filter=condition,
                    limit=k,
                    params=None if self._server.folder else how,
                    with_payload=True,
                )
                for vector in unit[start : start + _QUERIES]
            ]
            answers = self._ask("query_batch_points", requests=requests)
            found += [[(p.score, self._row(p.payload)) for p in answer.points] for answer in answers]
        return found

    def _points(self, keys: Sequence[str], **what: Any) -> dict[str, Any]:
        """Key to point, of those keys that the collection has."""
        found = {}
        for start in range(0, len(keys), _ASKED):
            ids = [_number(key) for key in keys[start : start + _ASKED]]
            found.update({point.payload[KEY]: point for point in self._ask("retrieve", ids=ids, **what)})
        return found

    def _count(self, where: Filter | None) -> int:
        return self._ask("count", count_filter=self._filter(where), exact=True).count

    def _filter(self, where: Filter | None) -> Any:
        """All conditions, and never the card."""
        models = self._models
        must: list[Any] = []
        must_not: list[Any] = [models.HasIdCondition(has_id=[CARD_POINT])]
        for condition in where.conditions if where else ():
            key = _path(condition.column)
            same: Any = models.FieldCondition(key=key, match=models.MatchValue(value=condition.value))
            if condition.value == "":
                # Points that were there before the column was have no value at all.
                empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
                same = models.Filter(should=[same, empty])
            (must if condition.equal else must_not).append(same)
        return models.Filter(must=must, must_not=must_not)

    def _row(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        text = {column.name: "" for column in self._schema if pa.types.is_string(column.type)}
        return {**text, **{name: value for name, value in payload.items() if name != DIGEST}}


def _number(key: str) -> str:
    return str(uuid.uuid5(_SPACE, key))


def _path(column: str) -> str:
    """A column's name in a filter, where dots and brackets would lead into nested values."""
    return column if re.fullmatch(r"[A-Za-z0-9_-]+", column) else f'"{column}"'
