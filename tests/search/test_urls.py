"""URLs of stores that are wrong: one line that shows no password, and no server is asked."""

import re

import pytest

from metricid.errors import InputError
from metricid.search.qdrant import QdrantStore
from metricid.search.remote import Address, Retry, open_store

from .store_contract import CARD, FAST, refused


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    def asked(*_):
        raise AssertionError("a server was asked")

    monkeypatch.setattr(Retry, "run", asked)


@pytest.mark.parametrize(
    "place",
    [
        "u:hunter2?x@127.0.0.1/db",
        "u:hunter2?table=x@127.0.0.1/db",
        "u:1234?hunter2=x@127.0.0.1/db",
        "u:hun?ter2@127.0.0.1/db?table=a",
        "u:hunter2/x@127.0.0.1/db",
        "u:hunter2#x@127.0.0.1/db",
        "u:hunter2@127.0.0.1:abc/db",
        "u:hunter2@127.0.0.1:99999/db",
        "u:hunter2@127.0.0.1:0/db",
        "u:hunter2@[::1/db",
        "u:hunter2@ho st/db",
        "u:hunter2@a..b/db",
        "u:hunter2@xn--é.invalid/db",
        f"u:hunter2@{'a' * 64}.invalid/db",
        "u:hunter2@127.0.0.1/a%0Ab",
        "u:hunter2@127.0.0.1/a%00b",
        "u%1B[31m:hunter2@127.0.0.1/db",
        "u:hunter2@h\x1b[31m/db",
    ],
)
@pytest.mark.parametrize("kind", ["pgvector", "qdrant"])
def test_one_line_without_the_password(kind, place):
    said = refused(lambda: open_store(f"{kind}://{place}", card=CARD, retry=FAST), "--store")
    assert not re.search("hunter2|1234|hun|ter2", said) and said.isprintable()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("pgvector://h:99999/db", "--store: pgvector://***: the port must be a number from 1 to 65535"),
        ("pgvector://hunter2:abc", "--store: pgvector://***: the port must be a number"),
        ("pgvector://u:hunter2@h:x/db", "--store: pgvector://***@h:x/db: the port must be a number"),
        ("pgvector://h/db?table=a&m=8&table=b", "the option 'table' is given twice; keep one"),
        ("pgvector://h/db?table=a&table=a", "the option 'table' is given twice; keep one"),
        ("qdrant://h", "qdrant://h: names no collection; give qdrant://HOST:PORT/COLLECTION"),
    ],
)
def test_what_is_wrong_is_said(url, says):
    assert "hunter2" not in refused(lambda: open_store(url, card=CARD, retry=FAST), says)


@pytest.mark.parametrize("place", ["", "?collection=x", "/", "/.", ":6333/x", ":6333"])
def test_a_local_folder_has_a_name(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: open_store(f"qdrant://{place}", card=CARD, retry=FAST), "names neither a server nor")
    assert not list(tmp_path.iterdir())


def test_an_address_is_shown_as_it_is_given():
    for url in ("pgvector://u@[::1]:5432/db", "qdrant://host:1/x", "qdrant:///a/b", "pgvector:///db"):
        assert str(Address.parse(url)) == url
    assert str(Address.parse("pgvector://u:hunter2@[::1]/db?table=x")) == "pgvector://u@[::1]/db"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("pgvector://h/d", True),
        ("redis://h", True),
        ("pgvector:/u:p@h/d", True),
        ("postgresql:u:p@h/d", True),
        ("people.index", False),
        ("C:/people.index", False),
        ("qdrant/index", False),
    ],
)
def test_a_url_with_a_slash_too_few_is_no_folder(text, meant):
    assert Address.is_meant(text) is meant


def test_a_host_that_the_client_refuses_is_one_line(monkeypatch):
    """Clients have rules of their own, which may change."""
    import qdrant_client

    def refuse(**_):
        raise ValueError("Failed to parse: Host 'x'\ncontains something")

    monkeypatch.setattr(qdrant_client, "QdrantClient", refuse)
    with pytest.raises(InputError, match="correct the URL") as caught:
        QdrantStore(Address.parse("qdrant://h:1/x"), card=CARD, retry=FAST)
    assert "\n" not in str(caught.value)
