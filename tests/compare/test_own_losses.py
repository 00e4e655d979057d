"""Losses of the user's own in a comparison: runs are processes of their own, which must know them, too."""

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import yaml

from metricid.cli.main import main
from metricid.comparison.entries import Entry
from metricid.comparison.fresh import _refusal, fresh_problems
from metricid.data.samplers import SAMPLERS, ShuffleSampler
from metricid.losses import LOSSES

MODULE = """
from torch import nn

from metricid.losses import LOSSES


@LOSSES.register("own_pull")
class Pull(nn.Module):
    pairwise = True

    def forward(self, embeddings, labels):
        return embeddings.float().square().mean()
"""
COMMAND = """
import sys

from metricid.cli.main import main

sys.exit(main(sys.argv[1:]))
"""
ALONE = (
    "is registered in this process only, but each run is a process of its own; set METRICID_IMPORT to the "
)


@pytest.fixture
def folder(tmp_path, recipe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(LOSSES, "_classes", dict(LOSSES._classes))
    monkeypatch.setattr(SAMPLERS, "_classes", dict(SAMPLERS._classes))
    monkeypatch.delenv("METRICID_IMPORT", raising=False)
    (tmp_path / "own_loss.py").write_text(MODULE)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    yield tmp_path
    sys.modules.pop("own_loss", None)


def test_a_comparison_trains_a_loss_of_ones_own(folder, monkeypatch, capsys):
    monkeypatch.setenv("METRICID_IMPORT", "own_loss")
    words = ["--losses", "softmax,softmax+own_pull:weight=0.1", "--seeds", "1", "--images", "16"]
    assert main(["compare", "tiny.yaml", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["finished"] == 2
    assert {row["objective"] for row in found["rows"]} == {"softmax", "softmax+own_pull:weight=0.1"}
    monkeypatch.delenv("METRICID_IMPORT")  # but this process still knows the loss
    assert main(["compare", "tiny.yaml", *words]) == 0, "nothing is left to run"
    capsys.readouterr()
    assert main(["compare", "tiny.yaml", *words, "--seeds", "2"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"metricid compare: loss 'own_pull' {ALONE}") and told.endswith("=own_loss")
    assert not list((folder / "runs").glob("*/*_seed1"))


def test_a_loss_of_this_process_alone_is_refused_before_anything_runs(folder, capsys):
    @LOSSES.register("own_here")
    class Here(torch.nn.Module):
        def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return embeddings.mean()

    assert main(["compare", "tiny.yaml", "--losses", "softmax,softmax+own_here", "--seeds", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    module = Here.__module__
    assert line == (
        f"metricid compare: loss 'own_here' {ALONE}module that registers it, as in METRICID_IMPORT={module}"
    )
    assert not (folder / "runs").exists()


def test_samplers_are_looked_at_too(plan, folder, monkeypatch):
    SAMPLERS.register("own_sampler")(type("OwnSampler", (ShuffleSampler,), {"__module__": "elsewhere"}))
    monkeypatch.setenv("METRICID_IMPORT", "own_loss")
    entry = Entry("mine", [{"loss": "softmax"}], None, {"name": "own_sampler", "batch_size": 8})
    (line,) = fresh_problems([plan.run(each, 0) for each in (*plan.entries, entry)])
    assert line.startswith(f"sampler 'own_sampler' {ALONE}") and line.endswith("=own_loss,elsewhere")


def test_no_process_is_asked_without_something_of_ones_own(plan, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    assert fresh_problems([plan.run(entry, 0) for entry in plan.entries]) == []


def test_a_module_that_fails_in_a_fresh_process_alone_is_told_with_the_reason(plan, folder, monkeypatch):
    (folder / "own_prog.py").write_text(COMMAND)
    monkeypatch.setenv("METRICID_IMPORT", "own_prog")
    LOSSES.register("own_here")(type("Here", (torch.nn.Module,), {"__module__": "elsewhere"}))
    (line,) = fresh_problems([plan.run(plan.entries[0], 0)])
    told = (
        "the process of a run would fail: METRICID_IMPORT: own_prog cannot be imported (RuntimeError: it runs"
    )
    assert line.startswith(told)


@pytest.mark.parametrize(
    ("program", "variable", "end"),
    [
        ({"__file__": "/a/own_prog.py", "__spec__": None}, "", " it, as in METRICID_IMPORT=own_prog"),
        ({"__file__": "/a/b.py", "__spec__": ModuleSpec("a.b", None)}, "", " it, as in METRICID_IMPORT=a.b"),
        ({"__file__": "/a/own_prog.py"}, "x", " it, as in METRICID_IMPORT=x,own_prog"),
        ({}, "x", " it, a file such as my_losses.py (METRICID_IMPORT=my_losses)"),
        (
            {"__file__": "/a/own_prog.py"},
            "x,own_prog",
            " it when it is imported: own_prog does not (`if __name__ == '__main__':`?)",
        ),
    ],
)
def test_the_module_of_a_program_is_named(monkeypatch, program, variable, end):
    module = ModuleType("__main__")
    vars(module).update(program)
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setenv("METRICID_IMPORT", variable)
    assert _refusal(["loss 'a'"], {"__main__"}) == f"loss 'a' {ALONE}module that registers{end}"
