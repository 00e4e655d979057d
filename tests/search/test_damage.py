"""Damaged, mixed and foreign files: one clear line each, and nothing is changed."""

import fcntl
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from metricid.errors import InputError
from metricid.search import ArraySource, SearchIndex, folder

from .people import People


def refused(place, message, verify=False):
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    with pytest.raises(InputError, match=message) as caught:
        SearchIndex(place, verify=verify)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


def test_no_index(tmp_path):
    tmp_path.joinpath("file").write_text("x")
    for name in ("", "missing", "file"):
        with pytest.raises(InputError, match="is no index"):
            SearchIndex(tmp_path / name)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_sq8", "rabitq"])
def test_a_cut_off_vector_file(people, build, place, kind):
    build(people, kind)
    file = place / "vectors-1.faiss"
    file.write_bytes(file.read_bytes()[:-100])
    refused(place, "vectors-1.faiss: has .* bytes, the card says .*: cut off")


@pytest.mark.parametrize("offset", [0, 20, 1000, -1])
def test_one_wrong_byte_in_the_vector_file(people, build, place, offset):
    build(people)
    file = place / "vectors-1.faiss"
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)
    refused(place, "vectors-1.faiss: is damaged")


def test_a_large_vector_file_is_checked_when_asked(people, build, place, monkeypatch):
    monkeypatch.setattr("metricid.search.folder.CHECKED_BYTES", 1000)
    index = build(people)
    file = place / "vectors-1.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert len(SearchIndex(place)) == 400
    refused(place, "is damaged", verify=True)
    with pytest.raises(InputError, match="is damaged"):
        index.remove(keys=people.keys[:1])


def test_a_faiss_file_that_is_none(people, build, place):
    build(people)
    file, card = place / "vectors-1.faiss", json.loads((place / "card.json").read_text())
    file.write_bytes(b"not an index at all" * 10)
    card["files"]["vectors"] |= {
        "bytes": 190,
        "sha256": __import__("hashlib").sha256(file.read_bytes()).hexdigest(),
    }
    (place / "card.json").write_text(json.dumps(card))
    refused(place, "not a whole FAISS file")


def test_a_truncated_parquet_file(people, build, place):
    build(people)
    file = place / "rows-1.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    refused(place, "rows-1.parquet: is cut off or damaged")


def test_a_sidecar_that_misses_rows(people, build, place):
    build(people)
    file = place / "rows-1.parquet"
    pq.write_table(pq.read_table(file).slice(0, 390), file)
    refused(place, "rows-1.parquet: has 390 rows for 400 vectors")


def test_a_sidecar_of_another_index(people, build, place):
    build(people)
    pq.write_table(People.make(400, prefix="other").rows, place / "rows-1.parquet")
    refused(place, "rows-1.parquet: was changed")


@pytest.mark.parametrize("name", ["vectors-1.faiss", "rows-1.parquet"])
def test_a_missing_file(people, build, place, name):
    build(people)
    (place / name).unlink()
    refused(place, f"{name}: is missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "card.json: cannot be read"),
        ("[]", "has format None"),
        ('{"format": 9}', "has format 9, this metricid reads 1"),
        ('{"format": 1}', "is not the card of an index"),
    ],
)
def test_a_card_that_is_none(people, build, place, text, message):
    build(people)
    (place / "card.json").write_text(text)
    refused(place, message)


def test_a_kind_that_the_card_does_not_tell(people, build, place):
    build(people)
    card = json.loads((place / "card.json").read_text())
    (place / "card.json").write_text(json.dumps(card | {"kind": "hnsw"}))
    refused(place, "holds a IndexFlatIP, but the card says hnsw")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generation", None),
        ("generation", "1"),
        ("generation", 7),
        ("wanted", ["auto"]),
        ("target", "high"),
        ("target", float("nan")),
        ("rows", -1),
        ("dimension", 10**30),
        ("effort", 1.5),
        ("recall", {}),
        ("recall", {"value": "1", "at": 10, "queries": 5, "rows": 400}),
        ("files", None),
        ("files", ["vectors", "rows"]),
        ("files", {"vectors": {}, "rows": {}}),
        ("files", {part: {"name": f"../{part}", "sha256": "0", "bytes": 1} for part in ("vectors", "rows")}),
        ("model_path", 3),
        ("changed", None),
    ],
)
def test_a_card_that_was_changed_by_hand(people, build, place, name, value):
    build(people)
    card = json.loads((place / "card.json").read_text())
    (place / "card.json").write_text(json.dumps(card | {name: value}))
    refused(
        place, f"card.json: is not the card of an index .'{name if value != 7 else 'files'}' is missing or"
    )
    (place / "card.json").write_text(json.dumps({k: v for k, v in card.items() if k != name}))
    if name != "model_path":
        refused(place, f"'{name}' is missing or was changed")


@pytest.mark.parametrize("name", ["vectors-1.faiss", "rows-1.parquet"])
def test_a_file_that_cannot_be_read(people, build, place, name, monkeypatch):
    build(people)
    real = folder.Path.open

    def locked(file, *arguments, **options):
        if file.name == name:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr(folder.Path, "open", locked)
    with pytest.raises(InputError, match=f"{name}: cannot be read .Permission denied.; check its rights"):
        SearchIndex(place)


def test_building_over_something_else(people, build, place, tmp_path):
    build(people)
    with pytest.raises(InputError, match="is an index already; use --overwrite"):
        build(people)
    build(people.take([1, 2]), overwrite=True)
    assert len(SearchIndex(place)) == 2
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files and no index"):
        SearchIndex.build(tmp_path, people.source)
    with pytest.raises(InputError, match="cannot be made into an index"):
        SearchIndex.build(tmp_path / "note.txt", people.source)


def test_an_overwrite_that_fails_leaves_the_old_index(people, build, place):
    build(people)
    before = sorted(file.name for file in place.iterdir())
    bad = people.take([0, 1, 2])
    bad.vectors[2] = 0
    with pytest.raises(InputError, match="row 2 .* zero vector"):
        build(bad, overwrite=True)
    assert sorted(file.name for file in place.iterdir()) == before
    assert len(SearchIndex(place)) == 400


def test_an_unknown_kind(people, build):
    with pytest.raises(InputError, match="unknown kind 'hnws'; did you mean 'hnsw'"):
        build(people, "hnws")


def test_a_kind_that_this_faiss_lacks(people, build, monkeypatch):
    monkeypatch.delattr("faiss.IndexIVFRaBitQ")
    with pytest.raises(InputError, match="has no RaBitQ; install a newer"):
        build(people, "rabitq")


def broken(people):
    vectors = people.vectors.copy()
    vectors[300] = np.nan
    return ArraySource(vectors, people.rows)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_refused_build_leaves_nothing_behind(tmp_path, people, kind):
    place = tmp_path / "a" / "b" / "people.index"
    with pytest.raises(InputError, match="row 300 .* NaN"):
        SearchIndex.build(place, broken(people), kind=kind)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_build_leaves_a_folder_as_it_was(tmp_path, place, people, build):
    place.mkdir()
    with pytest.raises(InputError, match="row 300 .* NaN"):
        SearchIndex.build(place, broken(people))
    assert place.is_dir() and list(place.iterdir()) == []
    build(people)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    with pytest.raises(InputError, match="row 300 .* NaN"):
        SearchIndex.build(place, broken(people), overwrite=True)
    with pytest.raises(InputError, match="is an index already"):
        SearchIndex.build(place, broken(people))
    after = {file.name: file.read_bytes() for file in place.iterdir()}
    assert after == before and len(SearchIndex(place)) == 400


def test_a_build_that_cannot_put_itself_in_force_leaves_nothing(place, people, build, monkeypatch):
    def full(folder, card):
        raise InputError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="the disk is full"):
        patch.setattr("metricid.search.folder.commit", full)
        build(people)
    assert not place.exists()
    assert len(build(people)) == 400


def test_a_lock_that_a_refused_build_removes_is_taken_again(place, monkeypatch):
    """The file that was opened is no longer the one that others lock."""
    place.mkdir()
    lockf, calls = fcntl.lockf, []

    def late(file, *arguments):
        if not calls:
            (place / folder.LOCK).unlink()
        calls.append(file)
        return lockf(file, *arguments)

    monkeypatch.setattr(fcntl, "lockf", late)
    with folder.write_lock(place):
        assert len(calls) == 2
        assert (place / folder.LOCK).read_text() == str(os.getpid())
