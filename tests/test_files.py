"""Files are whole or absent."""

import errno
import os

import pytest

from metricid.errors import InputError
from metricid.files import atomic_write


def test_a_file_appears_whole_with_its_folder(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with atomic_write(path, "w") as file:
        file.write("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path, "w") as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"), atomic_write(path, "w") as file:
        file.write("new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("name", ["/proc/zz/x.txt", "n" * 300])
def test_a_place_that_takes_no_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match="cannot be written"), atomic_write(tmp_path / name):
        pass


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="cannot be written"), atomic_write(tmp_path / "x" / "y"):
        pass
