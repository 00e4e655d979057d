"""The store in Qdrant: the local mode, the server that METRICID_QDRANT_URL names, servers that fail."""

import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import numpy as np
import pytest

from metricid.search.qdrant import QdrantOptions
from metricid.search.qdrant_server import QdrantServer
from metricid.search.remote import open_store

from .store_contract import CARD, FAST, StoreContract, brute_force, check_options, people, refused

SECRET = "s3cret-key"


class TestLocal(StoreContract):
    killer = (
        "from qdrant_client.local.persistence import CollectionPersistence\n"
        "persist, seen = CollectionPersistence.persist, []\n"
        "def counted(self, point):\n"
        "    seen.append(point)\n"
        "    if len(seen) > 50:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return persist(self, point)\n"
        "CollectionPersistence.persist = counted\n"
    )

    @pytest.fixture
    def url(self, tmp_path):
        return f"qdrant://{tmp_path}/store"


@pytest.mark.skipif("METRICID_QDRANT_URL" not in os.environ, reason="METRICID_QDRANT_URL names no server")
class TestServer(StoreContract):
    """METRICID_QDRANT_URL is a store's URL without the collection, such as `qdrant://127.0.0.1:6333`."""

    killer = (
        "from qdrant_client import QdrantClient\n"
        "upsert, seen = QdrantClient.upsert, []\n"
        "def counted(self, *args, **kwargs):\n"
        "    seen.append(args)\n"
        "    if len(seen) > 6:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return upsert(self, *args, **kwargs)\n"
        "QdrantClient.upsert = counted\n"
    )

    @pytest.fixture
    def url(self):
        name = f"metricid-test-{uuid.uuid4().hex}"
        url = f"{os.environ['METRICID_QDRANT_URL'].rstrip('/')}/{name}"
        yield url
        store = open_store(url, card=CARD, retry=FAST)
        store._ask("delete_collection")
        store.close()


@pytest.fixture
def url(tmp_path):
    return f"qdrant://{tmp_path}/store?collection=people"


def test_two_thousand_vectors_equal_brute_force(url):
    store = open_store(url, card=CARD, retry=FAST)
    keys, vectors, rows = people(2000)
    store.add(keys, vectors, rows)
    expected, _ = brute_force(vectors, vectors[:20], keys, 10)
    np.testing.assert_array_equal(store.query(vectors[:20], 10).keys, expected)
    store.close()


def test_removed_rows_leave_no_trace_in_a_local_folder(url, tmp_path):
    store = open_store(url, card=CARD, retry=FAST)
    keys, vectors, rows = people(200)
    store.add(keys, vectors, rows)
    marks = [key.encode() for key in keys[40:44]] + [b"person 10"]

    def traces():
        files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        return {mark for mark in marks for content in files if mark in content}

    assert traces() == set(marks)
    assert store.remove(identity="person 10") == 4
    assert traces() == set()
    store.close()
    again = open_store(url, retry=FAST)
    assert again.stats()["rows"] == 196
    again.close()


@pytest.mark.parametrize("what", [{"identity": "person 10"}, {"keys": ["00040.jpg"]}])
def test_a_removal_that_was_killed_in_between_is_ended_by_the_next(url, monkeypatch, what):
    store = open_store(url, card=CARD, retry=FAST)
    store.add(*people(200))

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(QdrantServer, "rewrite", killed)
        store.remove(**what)
    store.close()

    # Some builds of SQLite overwrite what they delete: the bytes alone would not tell.
    written = []
    monkeypatch.setattr(QdrantServer, "rewrite", lambda server: written.append(server))
    again = open_store(url, retry=FAST)
    refused(lambda: again.remove(**what), "person 10" if "identity" in what else "00040.jpg")
    assert len(written) == 1
    again.close()


def test_a_local_folder_is_for_one_process(url, tmp_path):
    store = open_store(url, card=CARD, retry=FAST)
    refused(lambda: open_store(url, retry=FAST), "already accessed")
    store.close()
    (tmp_path / "file").write_text("")
    refused(lambda: open_store(f"qdrant://{tmp_path}/file", card=CARD, retry=FAST), "cannot be opened")


def test_collections_of_others_are_refused(url, tmp_path):
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=f"{tmp_path}/store")
    vectors = models.VectorParams(size=16, distance=models.Distance.DOT)
    client.create_collection("people", vectors_config=vectors)
    client.close()
    refused(lambda: open_store(url, card=CARD, retry=FAST), "no card of ours")
    refused(lambda: open_store(url, retry=FAST), "no card of ours")


def test_a_creation_that_was_killed_before_the_card_is_completed(url, monkeypatch):
    from metricid.search.qdrant import QdrantStore

    with monkeypatch.context() as patch:
        patch.setattr(QdrantStore, "_write_card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_store(url, card=CARD, retry=FAST)
    refused(lambda: open_store(url, retry=FAST), "no card of ours")
    store = open_store(url, card=CARD, retry=FAST)
    assert store.add(*people(5)) == 5
    store.close()


@pytest.mark.parametrize("name", ["a/b", "../x", "a b", "a?b", "", "x" * 256])
def test_names_that_a_path_could_not_hold_are_refused(name):
    store = f"qdrant://127.0.0.1:1/{quote(name, safe='')}"
    refused(
        lambda: open_store(store, card=CARD, retry=FAST), "must be named" if name else "names no collection"
    )


def test_a_folder_of_other_files_is_no_place_for_a_store(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").touch()
    refused(
        lambda: open_store(f"qdrant://{photos}", card=CARD, retry=FAST), "holds other files; give a new one"
    )
    assert [file.name for file in photos.iterdir()] == ["a.jpg"]
    (photos / "a.jpg").unlink()
    open_store(f"qdrant://{photos}", card=CARD, retry=FAST).close()
    open_store(f"qdrant://{photos}", card=CARD, retry=FAST).close()


class Server:
    """An HTTP server that answers as it is told, and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.answers = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size) or b"null")
                outer.asked.append(
                    (self.command, self.path.partition("?")[0], body, self.headers.get("api-key"))
                )
                queue = outer.answers.get(self.path.partition("?")[0], [(404, "not found")])
                status, result = queue.pop(0) if len(queue) > 1 else queue[0]
                told = {"result": result, "status": "ok", "time": 0.0}
                if status != 200:
                    told = {"status": {"error": result}, "time": 0.0}
                content = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = answer

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_new_collection_is_made_as_the_url_says(server):
    done = {"operation_id": 1, "status": "completed"}
    server.answers = {
        "/collections/people/exists": [(503, "starting"), (200, {"exists": False})],
        "/collections/people": [(200, True)],
        "/collections/people/points": [(200, done), (200, [])],
    }
    options = "m=32&ef_construction=200&shards=6&replicas=2&on_disk=true&quantization=int8"
    url = f"qdrant://127.0.0.1:{server.port}/people?{options}"
    refused(lambda: open_store(url, card=CARD, retry=FAST), "no card of ours")  # as this server forgets it
    assert [path for _, path, _, _ in server.asked[:2]] == ["/collections/people/exists"] * 2
    body = next(
        body for method, path, body, _ in server.asked if (method, path) == ("PUT", "/collections/people")
    )
    assert body["vectors"]["embedding"] == {"size": 16, "distance": "Dot", "on_disk": True}
    assert body["hnsw_config"]["m"] == 32 and body["hnsw_config"]["ef_construct"] == 200
    assert body["shard_number"] == 6 and body["replication_factor"] == 2
    assert body["quantization_config"]["scalar"] == {"type": "int8", "always_ram": True}


def test_a_wrong_key_is_one_line_without_the_key(server, monkeypatch, capfd, caplog, recwarn):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("METRICID_QDRANT_API_KEY", SECRET)
    path = "/collections/people/exists"
    url = f"qdrant://127.0.0.1:{server.port}/people"
    said = []
    for status in (401, 403):
        server.answers = {path: [(status, f"bad key {SECRET}")]}
        said.append(
            refused(lambda: open_store(url, retry=FAST), "METRICID_QDRANT_API_KEY", "refuses the API key")
        )
    assert [key for _, _, _, key in server.asked] == [SECRET] * 2  # sent, and not tried again
    server.answers = {path: [(400, f"no such thing {SECRET}")]}
    said.append(refused(lambda: open_store(url, retry=FAST), "400", "no such thing"))
    server.answers = {path: [(500, f"broken {SECRET}")]}
    said.append(refused(lambda: open_store(url, retry=FAST), "500", "3 tries"))
    assert len(server.asked) == 6
    warned = [str(w.message) for w in recwarn]
    place = f"qdrant://127.0.0.1:{server.port}/people"
    assert warned == [f"{place}: the API key is sent unencrypted; beyond one machine, use ?tls=true"] * len(
        said
    )
    output = capfd.readouterr()
    for text in (*said, output.out, output.err, caplog.text, *(str(w.message) for w in recwarn)):
        assert SECRET not in text


def test_a_server_that_is_down_is_tried_a_few_times(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    refused(
        lambda: open_store(f"qdrant://127.0.0.1:{port}/people"), f":{port}", "5 tries", "start the server"
    )
    assert waits == [0.5, 1.0, 2.0, 4.0]


def test_something_that_is_no_qdrant_is_not_tried_again(server):
    server.answers = {"/collections/people/exists": [(200, "hello")]}
    refused(
        lambda: open_store(f"qdrant://127.0.0.1:{server.port}/people", retry=FAST), "no answer of a Qdrant"
    )
    assert len(server.asked) == 1


def test_without_the_extra_the_message_says_what_to_install(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    refused(lambda: open_store(url, card=CARD, retry=FAST), "pip install 'metricid[qdrant]'")


def test_the_page_has_every_option_with_its_default():
    check_options(QdrantOptions, "qdrant")
