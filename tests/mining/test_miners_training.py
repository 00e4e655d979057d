"""A training whose miner finds nothing says so; one that finds something logs how much."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metricid.data.samplers import PKSampler
from metricid.losses import Objective
from metricid.mining import HardIdentitySampler
from metricid.training.build import check_recipe
from metricid.training.distributed import World
from metricid.training.found import Findings, never_used
from metricid.training.session import train

RECIPE = {
    "name": "small",
    "data": {
        "train": "synthetic_faces",
        "size": [32, 32],
        "options": {"identities": 16, "images": 6},
        "split": {"train_identities": 12},
        "sampler": {"name": "pk", "identities": 4, "images": 2},
        "workers": 0,
    },
    "model": {"backbone": "test_resnet", "neck": "bnneck"},
    "objective": [
        {"loss": "softmax"},
        {"loss": "triplet", "on": "features"},
        {"loss": "contrastive", "miner": {"name": "semi_hard", "margin": 0.0}},
        {"loss": "supcon", "weight": 0.1, "miner": "multi_similarity", "memory": {"size": 32}},
    ],
    "train": {"images": 96, "precision": "fp32", "accumulate": 2},
    "evaluation": {"protocols": [], "every": 0},
    "log": {"every": 2, "report": False},
}


def test_a_run_that_mines_nothing_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No negative is farther than the positive by less than nothing."""
    values = copy.deepcopy(RECIPE) | {"runs": str(tmp_path)}
    train(check_recipe(values, "small.yaml"), World(0, 1, torch.device("cpu")))
    lines = [json.loads(line) for line in (tmp_path / "small" / "log.jsonl").read_text().splitlines()]
    mined = [line["mined"] for line in lines if line["event"] == "step"]
    assert len(mined) == 3
    assert all(set(found) == {"triplet", "contrastive", "supcon"} for found in mined)
    assert all(found["triplet"] == 8 for found in mined)  # one of each image
    assert all(found["contrastive"] == 0 for found in mined)
    assert all(found["supcon"] > 0 for found in mined)
    told = [line for line in lines if line["event"] == "mined_nothing"]
    assert told == [{"event": "mined_nothing", "step": 6, "term": "contrastive", "batches": 12}]
    said = capfd.readouterr().err
    assert said.count("found nothing") == 1
    assert "contrastive: its miner semi_hard(margin=0.0) found nothing in the last 12 batches" in said


def test_an_empty_stretch_is_told_again_when_it_has_doubled() -> None:
    objective = Objective.from_config([{"loss": "triplet"}, {"loss": "supcon"}], 4, 8, 8)
    findings = Findings(objective)
    tally = objective.losses["triplet"].miner.tally
    told = []
    for batch in range(1, 101):
        tally.add(torch.tensor(0 if batch != 60 else 5))
        means, lines = findings.read()
        assert means == {"triplet": 5.0 if batch == 60 else 0.0}
        told += [(batch, *line) for line in lines]
    # Ten batches, twenty, forty; then one with triplets, and from there on again.
    assert told == [
        (10, "triplet", 10),
        (20, "triplet", 20),
        (40, "triplet", 40),
        (70, "triplet", 10),
        (80, "triplet", 20),
        (100, "triplet", 40),
    ]
    assert findings.read() == ({}, [])


def test_terms_without_a_miner_are_not_spoken_of() -> None:
    objective = Objective.from_config([{"loss": "softmax"}, {"loss": "supcon"}], 4, 8, 8)
    assert Findings(objective).read() == ({}, [])


def test_a_training_too_short_for_what_it_asks_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """12 batches: of three a table is searched and comes too late, of a memory the warm-up is longer."""
    values = copy.deepcopy(RECIPE) | {"runs": str(tmp_path)}
    values["data"]["sampler"] |= {"name": "hard_identity", "refresh": 50}
    values["objective"][3]["memory"] |= {"warmup": 12}
    train(check_recipe(values, "small.yaml"), World(0, 1, torch.device("cpu")))
    lines = [json.loads(line) for line in (tmp_path / "small" / "log.jsonl").read_text().splitlines()]
    told = {line["option"]: line["problem"] for line in lines if line["event"] == "never_used"}
    assert set(told) == {"data.sampler", "supcon.memory.warmup"}
    said = capfd.readouterr().err
    assert "data.sampler: the first 55 batches are random, and the training has 12" in said
    assert "supcon.memory.warmup: is 12 batches, and the training has 12, so the memory is never used" in said


def test_what_comes_into_use_is_not_spoken_of() -> None:
    terms = [{"loss": "supcon", "memory": {"size": 32, "warmup": 11}}, {"loss": "triplet"}]
    objective = Objective.from_config(terms, 4, 8, 8)
    labels = np.repeat(np.arange(12), 6)
    early = HardIdentitySampler(labels, 4, 2, warmup=4, delay=2, refresh=5)
    assert never_used(objective, early, 12) == {}
    assert set(never_used(objective, early, 4)) == {"data.sampler", "supcon.memory.warmup"}
    by_hand = HardIdentitySampler(labels, 4, 2, refresh=None)
    assert never_used(objective, by_hand, 12) == never_used(objective, PKSampler(labels, 4, 2), 12) == {}
