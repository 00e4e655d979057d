"""Trainings whose batches are composed of identities that the network confuses."""

import csv
import json

import pytest
import torch
from run_states import equal_but_for_the_clock, equal_to_the_bit, final_state

from metricid.errors import InputError
from metricid.training.checkpoint import CheckpointStore

SAMPLER = {"name": "hard_identity", "identities": 4, "images": 2, "refresh": 4, "warmup": 4, "neighbours": 3}


@pytest.fixture
def mining(small):
    return small.set(
        data__sampler=dict(SAMPLER),
        data__split={"train_identities": 12},
        train={"images": 192, "precision": "fp32"},
        evaluation={"protocols": [], "every": 0},
        checkpoint={"every_steps": 1, "keep": 100, "every_minutes": None},
        log={"every": 1, "report": False},
    )


def steps(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("vectors", ["mean", "classifier", "centers"])
def test_batches_hold_neighbours_after_the_warm_up(mining, vectors):
    mining.set(data__sampler__vectors=vectors, data__sampler__guard=None)
    mining.train()
    shares = [line["mining"]["hard_share"] for line in steps(mining.run)]
    assert len(shares) == 24 and shares[:5] == [0.0] * 5  # the first search begins after one batch
    assert sum(shares[9:]) / len(shares[9:]) > 0.25, shares
    ages = [line["mining"]["table_age"] for line in steps(mining.run)]
    assert max(age for age in ages if age is not None) == 7  # searched every 4 batches, in force 4 later


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_bit_identical(mining, accumulate):
    mining.set(train__accumulate=accumulate)
    mining.train()
    whole = final_state(mining.run)
    assert len(whole["mined"]["centers"]["vectors"]) == 12
    total = 24 // accumulate
    for cut in (2, total // 2 - 1, total // 2, total - 1):
        store = CheckpointStore(mining.run / "checkpoints", keep=100)
        for path in store.steps():
            if int(path.stem.rpartition("-")[2]) > cut:
                path.unlink()
        (mining.run / "results.json").unlink()
        mining.train()
        again = final_state(mining.run)
        equal_but_for_the_clock(whole, again)
        timeless = [json.loads(json.dumps(s["mined"], default=_text)) for s in (whole, again)]
        equal_to_the_bit(*[_without_times(t) for t in timeless])


def _text(value):
    return value.tolist() if isinstance(value, torch.Tensor) else str(value)


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(v) for key, v in value.items() if key != "seconds"}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def test_identities_above_the_guard_are_listed(mining):
    mining.set(data__sampler__guard=-0.999)
    outcome = mining.train()
    with open(mining.run / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == outcome.values["suspects"] > 0
    cosines = [float(row["cosine"]) for row in rows]
    assert cosines == sorted(cosines, reverse=True) and all(-1 <= c <= 1.0001 for c in cosines)
    names = {name for row in rows for name in (row["identity"], row["other"])}
    assert names <= set(final_state(mining.run)["label_map"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": [{"loss": "triplet"}], "data__sampler__vectors": "classifier"},
            "data.sampler.vectors: classifier needs a term .* such as softmax",
        ),
        (
            {"objective": [{"loss": "softmax"}], "data__sampler__vectors": "centers"},
            "data.sampler.vectors: centers needs a term .* such as center",
        ),
        (
            {"data__workers": 2, "data__prefetch": 2},
            "data.sampler.delay: 4 batches .* the loader draws 5 ahead",
        ),
    ],
)
def test_what_cannot_be_mined_is_one_line(mining, changes, message):
    mining.set(**changes)
    with pytest.raises(InputError, match=message):
        mining.train()
    assert not mining.run.exists()


def test_a_sampler_that_would_never_search_is_refused(mining):
    mining.set(data__sampler__refresh=None)
    with pytest.raises(InputError, match=r"data\.sampler\.refresh: null searches for no neighbours"):
        mining.train()
