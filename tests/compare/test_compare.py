"""The command itself: mistakes, the plan, and one comparison that is interrupted and goes on."""

import json
import os
import signal
import threading
import time

import pytest
import torch
import yaml

from metricid.cli.compare import _devices
from metricid.cli.main import main
from metricid.errors import InputError


@pytest.fixture
def file(tmp_path, recipe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def test_all_mistakes_come_at_once_and_nothing_is_written(file, tmp_path, capsys):
    words = ["--losses", "softmx,arcface:scale=x,softmax,softmax", "--seeds", "0", "--budget", "5x"]
    assert main(["compare", file, "optim.lr=-1", *words]) == 2
    told = capsys.readouterr().err
    for part in (
        "--seeds: must be 1 to 100",
        "--budget: '5x'",
        "optim.lr",
        "softmx: objective.0.loss: unknown loss",
        "arcface:scale=x: objective.0.scale: expected a number",
        "softmax: named twice",
    ):
        assert part in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--losses: name the objectives"),
        (["--losses", "arcface", "--by", "mAPP"], "did you mean 'mAP'"),
        (["--losses", "arcface", "--devices", "cuda:0,cpu"], "only GPUs"),
        (["--losses", "arcface", "--devices", "gpu"], "each is auto"),
        (["--losses", "arcface", "--devices", "cpu,cpu"], "named twice"),
        (["--losses", "arcface", "--images", "8", "--budget", "1m"], "either --images or --budget"),
        (["--losses", "arcface", "--images", "0"], "--images: must be at least 1"),
        (["--losses", "arcface", "--protocols", "reidd"], "unknown protocol 'reidd'"),
        (["--objectives", "none.yaml"], "none.yaml"),
        (["--losses", "softmax,recipe", "objective=5"], "objective: input should be a valid array, got 5"),
        (["--losses", "arcface", "--name", "a/b"], "--name: 'a/b'"),
        (
            ["--losses", "arcface", "--devices", "cuda:99"],
            "--devices: cuda:99 was asked for, this machine has",
        ),
        (["--losses", "arcface,embedding_distillation:teacher=none.pt"], "teacher=none.pt: "),
        (
            ["--losses", "arcface", "--protocols", "reid"],
            "compare: evaluation: protocol reid needs the column",
        ),
        (
            [
                "--losses",
                "softmax,center",
                "data.sampler={name: hard_identity, vectors: centers, identities: 4, images: 2}",
            ],
            "compare: softmax: data.sampler.vectors: centers needs a term",
        ),
        (["--losses", "triplet", "data.sampler.images=1"], "triplet compares images of one identity"),
    ],
)
def test_mistakes(file, tmp_path, capsys, words, told):
    assert main(["compare", file, *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        ("{name: pk, identities: 3, images: 2}", "mine: its sampler gives 6 images to a step, that of the"),
        ("{name: pkk}", "data.sampler: unknown sampler 'pkk'; did you mean 'pk'?"),
        ("{name: pk, identities: 8, images: 1}", "mine: triplet compares images of one identity"),
        ("7", "mine: sampler: expected a mapping"),
        (
            "{name: hard_identity, vectors: centers, identities: 4, images: 2}",
            "mine: data.sampler.vectors: centers needs a term",
        ),
    ],
)
def test_mistakes_in_a_sampler_of_its_own(file, tmp_path, capsys, sampler, told):
    objectives = tmp_path / "mine.yaml"
    objectives.write_text(f"mine: {{objective: [{{loss: triplet}}], sampler: {sampler}}}")
    assert main(["compare", file, "--losses", "softmax", "--objectives", str(objectives)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_plan_is_listed_without_a_trace(file, tmp_path, capsys):
    assert main(["compare", file, "--losses", "softmax,recipe", "--seeds", "2", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["images"] == 96
    assert [(run["objective"], run["seed"], run["state"]) for run in listed["runs"]] == [
        ("softmax", 0, "waiting"),
        ("recipe", 0, "waiting"),
        ("softmax", 1, "waiting"),
        ("recipe", 1, "waiting"),
    ]
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_comparison_goes_on_where_it_was(file, tmp_path, capsys):
    words = ["compare", file, "--losses", "softmax,arcface:scale=16", "--seeds", "1", "--images", "400"]
    folder = tmp_path / "runs" / "compare_tiny"
    log = folder / "softmax_seed0" / "log.jsonl"

    def interrupt():
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert main(words) == 130
    thread.join()
    told = capsys.readouterr()
    assert "stopped by SIGINT; 0 of 2 runs have results; the same command continues" in told.err
    assert not (folder / "arcface_scale_16_seed0").exists()
    assert "0 of 2 runs" in (folder / "leaderboard.md").read_text()

    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "resuming" in (folder / "softmax_seed0" / "output.txt").read_text()
    assert found["finished"] == found["runs"] == 2
    for row in found["rows"]:
        assert row["measures"].keys() >= {"rank-1", "mAP", "TAR@FAR=0.1"}
        assert row["memory_mib"] > 50 and row["images_per_second"] > 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["images"] for line in lines if line["event"] == "step"] == list(range(8, 401, 8))
    assert "<svg" in (folder / "compare.html").read_text()

    before = (folder / "softmax_seed0" / "results.json").stat().st_mtime_ns
    assert main(words) == 0
    assert "2 have ended before" in capsys.readouterr().err
    assert (folder / "softmax_seed0" / "results.json").stat().st_mtime_ns == before
    assert main([*words[:-1], "200"]) == 2
    assert "images: 400 -> 200" in capsys.readouterr().err


@pytest.mark.parametrize(("visible", "chosen"), [(None, "1"), ("", "1"), ("5,3", "3"), ("7", None)])
def test_a_gpu_is_counted_among_those_that_are_visible(monkeypatch, visible, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 if visible == "7" else 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if chosen is None:
        with pytest.raises(InputError, match="--devices: cuda:1 was asked for"):
            _devices("cuda:1", "auto")
        assert _devices("cuda:0", "auto")[0].environment["CUDA_VISIBLE_DEVICES"] == "7"
    else:
        assert _devices("cuda:1", "auto")[0].environment["CUDA_VISIBLE_DEVICES"] == chosen
