"""The door to all commands."""

import importlib

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
