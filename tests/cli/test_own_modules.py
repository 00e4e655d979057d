"""METRICID_IMPORT: modules of the user's own in every command, and what is said where one cannot be had."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from metricid.cli.main import import_own_modules, main
from metricid.data.samplers import SAMPLERS, ShuffleSampler
from metricid.losses import LOSSES

MODULE = """
from torch import nn

from metricid.losses import LOSSES


@LOSSES.register("own_pull")
class Pull(nn.Module):
    pairwise = True

    def __init__(self, *, strength: float = 1.0):
        super().__init__()
        self.strength = strength

    def forward(self, embeddings, labels):
        return self.strength * embeddings.float().square().mean()
"""
COMMAND = "import sys\nfrom metricid.cli.main import main\n"
RECIPE = {
    "name": "own",
    "data": {
        "train": "synthetic_faces",
        "size": [32, 32],
        "options": {"identities": 8, "images": 4},
        "split": {"train_identities": 6},
        "sampler": {"name": "pk", "identities": 4, "images": 2},
        "workers": 0,
    },
    "model": {"backbone": "test_resnet"},
    "objective": [{"loss": "softmax"}, {"loss": "own_pull", "strength": 0.5}],
    "train": {"images": 16, "precision": "fp32"},
    "log": {"report": False},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module and a recipe; what the process has imported is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(LOSSES, "_classes", dict(LOSSES._classes))
    monkeypatch.setattr(SAMPLERS, "_classes", dict(SAMPLERS._classes))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("METRICID_IMPORT", raising=False)
    (tmp_path / "own_pull_module.py").write_text(MODULE)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(RECIPE))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def refused(capsys, *words):
    """The one line of a command that ends with exit code 2."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert not out
    return line


def test_a_loss_of_ones_own_is_trained_and_evaluated(folder, monkeypatch, capsys):
    assert str(folder) not in sys.path
    monkeypatch.setenv("METRICID_IMPORT", " own_pull_module, ")
    assert main(["train", "own.yaml"]) == 0
    assert sys.path[-1] == str(folder), "after everything that is installed"
    log = [json.loads(line) for line in (folder / "runs/own/log.jsonl").read_text().splitlines()]
    assert any("own_pull" in json.dumps(entry) for entry in log if entry["event"] == "step")
    capsys.readouterr()
    assert main(["evaluate", "runs/own", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_a_stored_recipe_imports_nothing_and_the_message_names_the_variable(folder, monkeypatch, capsys):
    monkeypatch.setenv("METRICID_IMPORT", "own_pull_module")
    assert main(["train", "own.yaml"]) == 0
    assert "own_pull_module" not in (folder / "runs/own/recipe.yaml").read_text()
    monkeypatch.delenv("METRICID_IMPORT")
    del LOSSES._classes["own_pull"]
    capsys.readouterr()
    for command in ("evaluate", "report"):
        assert main([command, "runs/own"]) == 2
        told = capsys.readouterr().err
        assert "unknown loss 'own_pull'" in told
        assert told.rstrip().endswith("set METRICID_IMPORT=its_module)")


def test_a_sampler_of_ones_own_is_known_too(folder, monkeypatch, capsys):
    (folder / "own_sampler.py").write_text(
        "from metricid.data.samplers import SAMPLERS, ShuffleSampler\n"
        "@SAMPLERS.register('own_shuffle')\n"
        "class OwnShuffle(ShuffleSampler):\n"
        "    pass\n"
    )
    words = ["train", "quickstart", "data.sampler={name: own_shuffle, batch_size: 8}", "--print-config"]
    assert main(words) == 2
    assert "unknown sampler 'own_shuffle'" in capsys.readouterr().err
    monkeypatch.setenv("METRICID_IMPORT", "own_sampler,own_pull_module")
    assert main(words) == 0
    assert issubclass(SAMPLERS.get("own_shuffle"), ShuffleSampler)
    assert "own_pull" in LOSSES.names()


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        (
            "own_none",
            None,
            "ModuleNotFoundError: No module named 'own_none'); it must be an installed package",
        ),
        ("own_none.deep", None, "ModuleNotFoundError: No module named 'own_none'); it must be an installed"),
        (
            "own_needy",
            "import own_absent",
            "No module named 'own_absent'); correct it (python -c 'import own_n",
        ),
        ("own_wrong", "raise ValueError('first\\nsecond')", "(ValueError: first); correct it"),
        ("own_silent", "assert False", "(AssertionError); correct it"),
        ("own_syntax", "def f(:", "(SyntaxError: invalid syntax (own_syntax.py, line 1)); correct it"),
        ("own_exit", "import sys\nsys.exit(3)", "(SystemExit: 3); correct it"),
        (
            "own_twice",
            "from metricid.losses import LOSSES\nLOSSES.register('softmax')(int)",
            "(ValueError: loss 'softmax' is registered twice)",
        ),
        (
            "own_run",
            "from metricid.cli.main import main\nmain(['train', 'quickstart'])",
            "(RuntimeError: it runs metricid when it is imported; do that below",
        ),
        ("own_pull_module.py", None, "'own_pull_module.py' is no name of a module"),
        ("../own", None, "'../own' is no name of a module"),
        (".own", None, "'.own' is no name of a module"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(folder, monkeypatch, capsys, name, source, reason):
    if source is not None:
        (folder / f"{name}.py").write_text(source)
    monkeypatch.setenv("METRICID_IMPORT", name)
    line = refused(capsys, "train", "quickstart", "--print-config")
    assert line.startswith("metricid train: METRICID_IMPORT: ") and name in line
    assert reason in line and "second" not in line
    monkeypatch.delenv("METRICID_IMPORT")
    assert main(["train", "quickstart", "--print-config"]) == 0, "a failed import leaves nothing behind"


def test_nothing_is_added_to_the_path_without_the_variable(folder):
    before = list(sys.path)
    import_own_modules()
    assert sys.path == before


def test_a_folder_that_is_on_the_path_already_stays_where_it_is(folder, monkeypatch):
    monkeypatch.setenv("METRICID_IMPORT", "own_pull_module")
    sys.path.insert(0, str(folder))
    before = list(sys.path)
    import_own_modules()
    import_own_modules()
    assert sys.path == before


def test_a_program_that_is_named_by_the_variable_itself_registers_once(folder):
    (folder / "own_program.py").write_text(
        MODULE + COMMAND + "if __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "own_program.py", "train", "own.yaml", "--print-config"],
        capture_output=True,
        text=True,
        env=os.environ | {"METRICID_IMPORT": "own_program"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "own_pull" in done.stdout
