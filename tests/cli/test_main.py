"""The door to all commands."""

import importlib
import subprocess
import sys

import pytest

from metricid.cli.main import main


def test_ctrl_c_while_a_command_is_loaded_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main(["train", "quickstart"]) == 130
    assert capsys.readouterr().err == "metricid train: interrupted\n"


def test_an_unknown_command_is_the_users_mistake(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["trian"])
    assert raised.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "order", [["train.images=7", "--print-config"], ["--print-config", "train.images=7"]]
)
def test_overrides_stand_before_or_after_options(capsys, order):
    assert main(["train", "quickstart", *order]) == 0
    assert "images: 7" in capsys.readouterr().out


def test_a_missing_argument_is_the_users_mistake(capsys):
    for command in (["train"], ["search"], ["search", "build"]):
        with pytest.raises(SystemExit) as raised:
            main(command)
        assert raised.value.code == 2
        assert "required" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "photos/ann"),
        PermissionError(13, "Permission denied", b"photos/ann"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_name(monkeypatch, capsys, error):
    def refused(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", refused)
    assert main(["embed"]) == 2
    assert capsys.readouterr().err == f"metricid embed: photos/ann: {error.strerror}\n"


def test_a_name_longer_than_the_system_takes_is_one_line(capsys, tmp_path):
    assert main(["embed", "x" * 5000, str(tmp_path), "-o", str(tmp_path / "e.parquet")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "File name too long" in lines[0]


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    words = [sys.executable, "-m", "metricid.cli.main", "suspects", b"\xff.parquet"]
    done = subprocess.run(words, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2
    assert b"udcff.parquet" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["evaluate"], ["demo", "runs/a", "--index"], ["embed", "runs/a"], ["report"]]
)
@pytest.mark.parametrize("form", ["{}", "data.root={}"])
def test_the_url_of_a_store_is_for_searches_and_its_password_is_not_shown(capsys, words, form):
    assert main([*words, form.format("pgvector://me:hush1234@h/db")]) == 2
    said = capsys.readouterr().err
    assert "the URL of a store is for metricid search" in said and "hush" not in said
