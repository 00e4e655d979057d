"""Files that are read once, although two uploads of one photo are one file."""

import time
from types import SimpleNamespace

import pytest

from metricid.demo import uploads
from metricid.demo.uploads import Uploads


@pytest.fixture
def clock(monkeypatch):
    """A time that tests set, and the timers that were started, as (seconds, call)."""
    found = SimpleNamespace(now=0.0, timers=[])

    class Timer:
        def __init__(self, seconds, call):
            found.timers.append((seconds, call))

        def start(self):
            assert self.daemon, "it must not hold up the end of the server"

    monkeypatch.setattr(uploads, "Timer", Timer)
    monkeypatch.setattr(uploads.time, "monotonic", lambda: found.now)
    return found


def upload(folder, data=b"photo", name="face.jpg"):
    file = folder / "hash" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return file


def test_who_comes_after_another_gets_what_was_in_the_file(tmp_path, clock):
    taken, file = Uploads(), upload(tmp_path)
    assert taken.take(str(file)) == b"photo"
    assert not file.exists() and file.parent.is_dir(), "the same photo may be on its way to this folder"
    clock.now = 59
    assert taken.take(str(file)) == b"photo"
    clock.now = 100
    assert taken.take(str(file)) == b"photo", "a minute after the last"
    file.write_bytes(b"again")
    assert taken.take(str(file)) == b"again", "what is there comes first"
    assert not file.exists()


def test_after_a_minute_nothing_is_left(tmp_path, clock):
    taken, file = Uploads(), upload(tmp_path)
    other = upload(tmp_path, name="other.jpg")
    taken.take(str(file))
    clock.now = 20
    taken.take(str(other))
    ((seconds, forget),) = clock.timers
    assert seconds == 60, "one timer, for the oldest"
    clock.now = 60
    forget()
    assert list(taken._recent) == [other]
    (_, (seconds, forget)) = clock.timers
    assert seconds == 20
    clock.now = 80
    forget()
    assert not taken._recent and not file.parent.exists() and len(clock.timers) == 2
    with pytest.raises(FileNotFoundError):
        taken.take(str(file))


def test_no_more_is_remembered_than_a_server_can_hold(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(uploads, "_MOST_BYTES", 100)
    taken = Uploads()
    files = [upload(tmp_path, bytes(40), f"{i}.jpg") for i in range(3)]
    for file in files:
        taken.take(str(file))
    with pytest.raises(FileNotFoundError):
        taken.take(str(files[0]))
    assert taken.take(str(files[1])) == bytes(40) == taken.take(str(files[2]))
    large = upload(tmp_path, bytes(101), "large.jpg")
    assert len(taken.take(str(large))) == 101
    assert not taken._recent


def test_a_folder_in_the_place_of_a_file_is_no_upload(tmp_path):
    (tmp_path / "hash" / "face.jpg").mkdir(parents=True)
    with pytest.raises(OSError, match=r"face\.jpg"):
        Uploads().take(str(tmp_path / "hash" / "face.jpg"))


def test_the_real_timer_forgets(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "_SECONDS", 0.05)
    taken, file = Uploads(), upload(tmp_path)
    taken.take(str(file))
    deadline = time.monotonic() + 30
    while taken._recent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not taken._recent and not file.parent.exists()
