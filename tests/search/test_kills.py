"""Writers that are killed, two writers at once, and readers beside a writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metricid.errors import InputError
from metricid.search import SearchIndex
from metricid.search.folder import write_lock

from .people import People

SCRIPT = Path(__file__).parent / "kill_at_every_step.py"


@pytest.mark.parametrize("kind", ["flat", "ivf_sq8"])
def test_a_kill_at_any_step_leaves_the_old_index_or_the_new_one(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), kind, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert set(counts) == {"add", "replace", "remove", "build"}
    for name, seen in counts.items():
        assert seen["old"] >= 5, f"{name} was killed too late"
        assert seen["new"] >= 2, f"{name} was never killed after it took force"


def test_a_second_writer_is_kept_out_and_says_by_whom(build, place, people):
    index, new = build(people), People.make(2, prefix="new")
    reader, writer = os.pipe()
    back, done = os.pipe()
    child = os.fork()
    if child == 0:
        with write_lock(place):
            os.write(writer, b"x")
            os.read(back, 1)
        os._exit(0)
    os.read(reader, 1)
    try:
        with pytest.raises(InputError, match=f"process {child} is changing this index"):
            index.add(new.keys, new.vectors, new.rows)
        with pytest.raises(InputError, match=f"process {child} is changing this index"):
            build(people, overwrite=True)
    finally:
        os.write(done, b"x")
        os.waitpid(child, 0)
    assert index.add(new.keys, new.vectors, new.rows) == 2


def test_a_thread_of_the_same_process_is_kept_out(build, place, people):
    index = build(people)
    with write_lock(place), pytest.raises(InputError, match=f"process {os.getpid()} is changing"):
        index.remove(keys=people.keys[:1])
    assert index.remove(keys=people.keys[:1]) == 1


def test_a_reader_keeps_what_it_opened_while_another_changes_it(build, place, people):
    build(people, "hnsw")
    reader = SearchIndex(place)
    before = reader.query(people.vectors[:50], 5)
    SearchIndex(place).remove(identity="person-0003")
    after = reader.query(people.vectors[:50], 5)
    assert (before.keys == after.keys).all() and len(reader) == 400
    assert len(SearchIndex(place)) == 395


def test_a_writer_starts_from_what_is_in_force_not_from_what_it_opened(build, place, people):
    first, second = build(people), SearchIndex(place)
    new = People.make(4, prefix="new")
    first.add(new.keys, new.vectors, new.rows)
    assert second.remove(keys=new.keys[:1]) == 1
    assert len(SearchIndex(place)) == 403


def test_a_reader_that_loses_its_files_to_a_writer_starts_again(build, place, people, monkeypatch):
    from metricid.search import folder

    build(people)
    new, load, calls = People.make(4, prefix="new"), folder._load_vectors, []

    def late(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            monkeypatch.setattr(folder, "_load_vectors", load)
            SearchIndex(place).add(new.keys, new.vectors, new.rows)
            monkeypatch.setattr(folder, "_load_vectors", late)
        return load(*arguments)

    monkeypatch.setattr(folder, "_load_vectors", late)
    assert len(SearchIndex(place)) == 404 and len(calls) == 2


def test_a_reader_whose_file_vanishes_between_checksum_and_opening_starts_again(
    build, place, people, monkeypatch
):
    from metricid.search import folder

    build(people)
    new, checksum, calls = People.make(4, prefix="new"), folder.checksum, []

    def late(file):
        calls.append(file)
        found = checksum(file)
        if len(calls) == 1:
            SearchIndex(place).add(new.keys, new.vectors, new.rows)
        return found

    monkeypatch.setattr(folder, "checksum", late)
    assert len(SearchIndex(place)) == 404


def test_the_size_on_disk_is_told_while_a_writer_deletes_files(place, monkeypatch):
    from metricid.search import folder

    place.mkdir()
    (place / "stays").write_bytes(b"123")
    monkeypatch.setattr(folder.Path, "iterdir", lambda folder: iter([place / "gone", place / "stays"]))
    assert folder.disk_bytes(place) == 3
