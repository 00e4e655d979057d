"""The store in PostgreSQL, against a real server with pgvector."""

import logging
import re
import socket
import sys
import time
import uuid
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import psycopg
import pytest
from pgvector.psycopg import register_vector

from metricid.search import pgtable
from metricid.search.exchange import completed
from metricid.search.pgvector import PgvectorOptions
from metricid.search.remote import Address, open_store
from metricid.search.store import Filter

from .postgres import PASSWORD, running_postgres
from .store_contract import (
    CARD,
    FAST,
    StoreContract,
    brute_force,
    check_options,
    contents,
    dumped,
    people,
    refused,
)


@pytest.fixture(scope="module")
def server():
    with running_postgres() as server:
        yield server


@pytest.fixture
def table():
    return f"t{uuid.uuid4().hex}"


@pytest.fixture
def url(server, table):
    return f"pgvector://postgres:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres?table={table}"


@pytest.fixture
def sql(server):
    """A plain connection, which knows nothing of our code."""
    with psycopg.connect(**server.connection(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        yield connection


@pytest.fixture
def store(url):
    store = open_store(url, card=CARD, retry=FAST)
    yield store
    store.close()


class TestContract(StoreContract):
    killer = (
        "import psycopg\n"
        "write, seen = psycopg.Copy.write_row, []\n"
        "def counted(self, row):\n"
        "    seen.append(row)\n"
        "    if len(seen) > 50:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write(self, row)\n"
        "psycopg.Copy.write_row = counted\n"
    )


def test_the_table_is_plain_sql(store, table, sql):
    keys, vectors, rows = people(300)
    store.add(keys, vectors, rows)
    store.finish()
    query = vectors[5] / np.linalg.norm(vectors[5])
    statement = f"SELECT path FROM {table} WHERE camera = '1' ORDER BY embedding <=> %s LIMIT 9"
    expected = [path for (path,) in sql.execute(statement, [query])]
    assert store.query(vectors[5:6], 9, Filter.parse(["camera=1"])).keys[0].tolist() == expected
    types = sql.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0",
        [table],
    ).fetchall()
    assert dict(types) == {
        "path": "text",
        "embedding": "vector(16)",
        "metricid_digest": "uuid",
        "identity": "text",
        "camera": "text",
        "quality": "real",
    }
    norms = sql.execute(
        f"SELECT min(vector_norm(embedding)), max(vector_norm(embedding)) FROM {table}"
    ).fetchone()
    assert norms == pytest.approx((1, 1), abs=1e-6)


def test_finish_builds_the_index_as_asked_and_queries_use_it(url, table, sql):
    store = open_store(f"{url}&m=8&ef_construction=32&memory=64MB", card=CARD, retry=FAST)
    keys, vectors, rows = people(2000)
    store.add(keys, vectors, rows)
    assert store.stats()["index"] is None
    store.finish()
    store.finish()
    definitions = [d for (d,) in sql.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", [table])]
    assert (
        sum("hnsw" in d and "vector_ip_ops" in d and "m='8'" in d and "='32'" in d for d in definitions) == 1
    )
    assert (
        sum(d.endswith("(identity)") for d in definitions)
        == sum(d.endswith("(camera)") for d in definitions)
        == 1
    )
    assert store.stats()["index_bytes"] > 2000 * 16 * 4
    scans = (
        "SELECT sum(idx_scan) FROM pg_stat_user_indexes "
        "WHERE relname = %s AND indexrelname LIKE '%%embedding%%'"
    )
    before = sql.execute(scans, [table]).fetchone()[0]
    hits = store.query(vectors[:50], 10)
    store.close()
    deadline = time.monotonic() + 30  # the server counts a scan some time after its connection has ended
    while (
        counted := sql.execute(scans, [table]).fetchone()[0]
    ) < before + 50 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert counted >= before + 50
    expected, _ = brute_force(vectors, vectors[:50], keys, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(hits.keys, expected, strict=True)]) > 0.9


@pytest.mark.parametrize("extension", [None, (0, 7, 4)])
def test_a_rare_filter_finds_all_its_rows_past_the_index(url, table, sql, monkeypatch, extension):
    """By the index's iterative scan, or before pgvector 0.8 by the exact search that follows."""
    if extension:
        monkeypatch.setattr(pgtable, "version", lambda connection: extension)
    exact = []
    monkeypatch.setattr(
        "metricid.search.pgvector.completed",
        lambda found, width, exactly: completed(
            found, width, lambda some: exact.extend(some) or exactly(some)
        ),
    )
    store = open_store(f"{url}&indexed=&ef_search=10", card=CARD, retry=FAST)
    keys, vectors, rows = people(2000)
    rare = np.arange(2000) % 250 == 7
    rows = rows.set_column(2, "camera", [["rare" if r else "often" for r in rare]])
    store.add(keys, vectors, rows)
    store.finish()
    # Without this the planner compares with the few rows, and never meets the index.
    store._session.run(lambda connection: connection.execute("SET enable_seqscan = off"))
    store._session.run(lambda connection: connection.execute("SET enable_sort = off"))
    hits = store.query(vectors[:20], 8, Filter.parse(["camera=rare"]))
    expected, _ = brute_force(vectors, vectors[:20], keys, 8, rare)
    np.testing.assert_array_equal(hits.keys, expected)
    assert bool(exact) == bool(extension)
    store.close()


@pytest.mark.parametrize(
    "name", ['a"b', "x; DROP TABLE victim; --", "Robert'); DROP TABLE victim;--", "%s", "{table}", "Ünï"]
)
def test_names_are_quoted(url, table, sql, name):
    sql.execute("CREATE TABLE IF NOT EXISTS victim (id int)")
    strange = url.replace(table, quote(name, safe="") + table[:8])
    store = open_store(strange, card=CARD, retry=FAST)
    keys, vectors, rows = people(12)
    rows = rows.rename_columns(["path", "identity", name.replace('"', "'"), "quality"])
    store.add(keys, vectors, rows)
    store.finish()
    assert store.query(vectors[:1], 2, Filter.parse(["identity!=y'--"])).keys[0, 0] == keys[0]
    refused(lambda: store.query(vectors[:1], 1, Filter.parse(["identity=x' OR 'a'='a"])), "no row")
    refused(lambda: store.remove(identity="x'; DELETE FROM victim; --"), "no row")
    assert store.remove(identity="person 0") == 4
    store.close()
    assert sql.execute("SELECT count(*) FROM victim").fetchone() == (0,)
    assert sql.execute("SELECT count(*) FROM pg_class WHERE relname = %s", [name + table[:8]]).fetchone() == (
        1,
    )


def test_the_password_is_nowhere(server, url, table, monkeypatch, capfd, caplog):
    """Not in messages, logs, output, cards or what a store shows of itself; right or wrong."""
    caplog.set_level(logging.DEBUG)
    wrong = url.replace(quote(PASSWORD, safe=""), "hunter2")
    bare = re.sub(":[^:@/]+@", "@", url)
    said = [refused(lambda: open_store(wrong, card=CARD, retry=FAST), "password of 'postgres'", "~/.pgpass")]
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    said += [refused(lambda: open_store(bare, card=CARD, retry=FAST), "password of 'postgres'", "PGPASSWORD")]
    monkeypatch.delenv("PGPASSWORD")
    said += [refused(lambda: open_store(bare, card=CARD, retry=FAST), "or got none")]
    for broken in (
        "pgvector://postgres:hunter2/x@127.0.0.1/db",
        "pgvector://postgres:hunter2#x@127.0.0.1/db",
        "pgvector://postgres:hunter2@127.0.0.1:port/db",
        "pgvector://postgres:hunter2@[::1/db",
        "pg://postgres:hunter2@127.0.0.1/db",
        "postgres:hunter2@127.0.0.1/db",
        "pgvector://postgres:hunter2@127.0.0.1/db?table",
        "pgvector://postgres@127.0.0.1/db?table=x&password=hunter2",
        "qdrant://postgres:hunter2@127.0.0.1/db",
    ):
        said += [refused(lambda broken=broken: open_store(broken, card=CARD, retry=FAST))]
    store = open_store(url, card=CARD, retry=FAST)
    store.add(*people(8))
    store.finish()
    said += [dumped(store), repr(Address.parse(url)), str(Address.parse(url)), repr(vars(store))]
    server.stop()
    try:
        said += [refused(lambda: store.query(people(1)[1], 1), "start the server")]
    finally:
        server.start()
    store.close()
    output = capfd.readouterr()
    for text in (*said, output.out, output.err, caplog.text):
        assert "hunter2" not in text and PASSWORD not in text and quote(PASSWORD, safe="") not in text


def test_passwords_come_from_the_environment_and_from_pgpass(server, url, monkeypatch, tmp_path):
    bare = re.sub(":[^:@/]+@", "@", url)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    open_store(bare, card=CARD, retry=FAST).close()
    monkeypatch.delenv("PGPASSWORD")
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{server.port}:postgres:postgres:{PASSWORD.replace(':', chr(92) + ':')}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    open_store(bare, retry=FAST).close()


def test_a_server_that_is_down_is_tried_a_few_times(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    dead = f"pgvector://postgres@127.0.0.1:{port}/postgres?table=x"
    refused(lambda: open_store(dead, card=CARD), f"127.0.0.1:{port}", "5 tries", "start the server")
    assert waits == [0.5, 1.0, 2.0, 4.0]


def test_a_host_that_is_not_found_is_tried_again_and_an_encryption_that_is_not_there_is_not(
    url, table, monkeypatch
):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    nowhere = f"pgvector://u:hunter2@no.such.host.invalid/postgres?table={table}"
    said = refused(lambda: open_store(nowhere, card=CARD), "no.such.host.invalid", "5 tries", "check host")
    assert "hunter2" not in said and waits == [0.5, 1.0, 2.0, 4.0]
    refused(lambda: open_store(f"{url}&sslmode=require", card=CARD), "SSL", "correct the URL")
    assert len(waits) == 4


def test_an_upload_outlives_a_restart_of_the_server(server, url, monkeypatch):
    store = open_store(f"{url}&batch=10", card=CARD, retry=FAST)
    write, batches, waits = pgtable.Table.write, [], []

    def interrupted(self, connection, batch):
        batches.append(len(batch))
        if len(batches) == 3:
            server.stop()
        return write(self, connection, batch)

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            monkeypatch.undo()
            server.start()

    monkeypatch.setattr(pgtable.Table, "write", interrupted)
    clock = SimpleNamespace(sleep=wait, monotonic=time.monotonic)
    monkeypatch.setattr("metricid.search.remote.time", clock)  # the server's own start sleeps too
    keys, vectors, rows = people(60)
    assert store.add(keys, vectors, rows) == 60
    assert len(batches) == 4 and waits == [0.01, 0.02]
    assert contents(store, keys)[1:] == [rows.to_pylist(), 60]
    store.close()


def test_a_lost_connection_is_made_again(store, sql):
    keys, vectors, rows = people(20)
    store.add(keys, vectors, rows)
    sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'metricid'")
    assert store.query(vectors[:1], 1).keys.tolist() == [[keys[0]]]


def test_a_table_that_vanishes_is_one_line(store, sql, table):
    store.add(*people(5))
    sql.execute(f"DROP TABLE {table}")
    refused(lambda: store.query(people(1)[1], 1), "dropped")
    refused(lambda: store.remove(keys=["00000.jpg"]), "dropped")


def traces(server, marks):
    """The files of tables that hold one of some byte strings."""
    return {mark for path in server.data_files() for mark in marks if mark in path.read_bytes()}


def test_removed_rows_leave_no_trace_in_the_files(server, store, sql, table):
    keys, vectors, rows = people(300, seed=99, prefix=f"{table}-")  # vectors of no other test
    names = [f"{table}=person={i // 4}" for i in range(300)]
    rows = rows.set_column(1, "identity", [names])
    store.add(keys, vectors, rows)
    store.finish()
    sql.execute(f"ANALYZE {table}")
    # The last rows of the last page: a plain VACUUM moves nothing over them.
    units = store.get(keys[296:])[0]
    # pgvector writes a vector as its floats in a row; the key and the name as text.
    marks = [unit.tobytes() for unit in units] + [key.encode() for key in keys[296:]]
    marks.append(names[296].encode())
    sql.execute("CHECKPOINT")
    assert traces(server, marks) == set(marks)
    assert store.remove(identity=names[296]) == 4
    sql.execute("CHECKPOINT")
    assert traces(server, marks) == set()
    assert store.stats()["rows"] == 296 and "hnsw" in store.stats()["index"]
    np.testing.assert_array_equal(store.query(vectors[280:296], 1).keys[:, 0], keys[280:296])


def test_a_removal_that_was_cut_off_is_ended_by_the_next(server, store, sql, table, monkeypatch):
    keys, vectors, rows = people(40, seed=98, prefix=f"{table}-")
    store.add(keys, vectors, rows)
    store.finish()
    marks = [key.encode() for key in keys[:4]]

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pgtable.Table, "vacuum", killed)
        with pytest.raises(KeyboardInterrupt):
            store.remove(keys=keys[:4])
    sql.execute("CHECKPOINT")
    assert store.stats()["rows"] == 36 and traces(server, marks) == set(marks)
    refused(lambda: store.remove(keys=keys[:4]), keys[0])
    sql.execute("CHECKPOINT")
    assert traces(server, marks) == set() and store.stats()["rows"] == 36
    with monkeypatch.context() as patch:  # nothing is left to free
        patch.setattr(pgtable.Table, "vacuum", killed)
        refused(lambda: store.remove(keys=keys[:4]), keys[0])


def test_rights_that_are_missing_are_named(server, url, table, sql, monkeypatch):
    store = open_store(url, card=CARD, retry=FAST)
    keys, vectors, rows = people(12)
    store.add(keys, vectors, rows)
    store.close()
    role = f"r{table}"
    sql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'other'")
    sql.execute(f"GRANT SELECT, DELETE ON {table} TO {role}")
    low = f"pgvector://{role}:other@127.0.0.1:{server.port}/postgres?table={table}"
    store = open_store(low, retry=FAST)
    assert store.query(vectors[:1], 1).keys.tolist() == [[keys[0]]]
    refused(lambda: store.add(*people(3, prefix="new")), "ask the database's administrator")
    refused(lambda: store.remove(identity="person 1"), "4 rows are deleted", "VACUUM FULL")
    assert store.stats()["rows"] == 8
    store.close()
    elsewhere = f"{low}2"
    refused(lambda: open_store(elsewhere, card=CARD, retry=FAST), "ask the database's administrator")


def test_a_server_that_only_reads_answers_and_refuses_changes(url, monkeypatch):
    store = open_store(url, card=CARD, retry=FAST)
    keys, vectors, rows = people(12)
    store.add(keys, vectors, rows)
    store.finish()
    store.close()
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_read_only=on")
    replica = open_store(url, retry=FAST)
    assert replica.query(vectors[:1], 1).keys.tolist() == [[keys[0]]]
    refused(lambda: replica.add(*people(3, prefix="new")), "primary server")
    refused(lambda: replica.remove(keys=keys[:1]), "primary server")
    replica.close()


def test_tables_and_databases_of_others_are_refused(url, table, sql):
    sql.execute(f"CREATE TABLE {table} (path text, note text)")
    refused(lambda: open_store(url, card=CARD, retry=FAST), "no card of ours", "another table")
    sql.execute(f"COMMENT ON TABLE {table} IS 'somebody''s'")
    refused(lambda: open_store(url, retry=FAST), "no card of ours")
    nowhere = url.replace("/postgres?", "/nowhere?")
    refused(lambda: open_store(nowhere, card=CARD, retry=FAST), "does not exist", "correct the URL")
    refused(lambda: open_store(f"{url}&schema=nowhere", card=CARD, retry=FAST), "create the schema")
    long = url.replace(table, "x" * 64)
    refused(lambda: open_store(long, card=CARD, retry=FAST), "63 bytes")
    wide = {**CARD, "dimension": 2001}
    refused(
        lambda: open_store(url.replace(table, table + "w"), card=wide, retry=FAST), "2000", "2001", "Qdrant"
    )


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("ef_search=1001", "ef_search"),
        ("m=50", "ef_construction"),
        ("vacuum=never", "full, plain"),
        ("memory=lots", "such as 2GB"),
    ],
)
def test_options_out_of_range_are_refused(url, option, part):
    def finished():
        store = open_store(f"{url}&{option}", card=CARD, retry=FAST)
        store.add(*people(5))
        store.finish()

    refused(finished, part)


def test_without_the_extra_the_message_says_what_to_install(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    refused(lambda: open_store(url, card=CARD, retry=FAST), "pip install 'metricid[pgvector]'")


def test_the_page_has_every_option_with_its_default():
    check_options(PgvectorOptions, "pgvector")
