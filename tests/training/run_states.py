"""What runs end with, and whether two of them are the same run."""

import json

import torch
from torch.testing import assert_close

from metricid.training.checkpoint import STEP_KEYS, CheckpointStore, read_checkpoint


def final_state(run):
    return read_checkpoint(CheckpointStore(run / "checkpoints").steps()[0])


def equal_to_the_bit(a, b, path=""):
    if isinstance(a, torch.Tensor):
        assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=path)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            equal_to_the_bit(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            equal_to_the_bit(x, y, f"{path}.{i}")
    else:
        assert a == b, path


def equal_but_for_the_clock(whole, other):
    """Two final states of the same run, but for its time and the places in its log."""
    clock = ("train_seconds", "wait_seconds")
    whole, other = (
        {**state, "position": {k: v for k, v in state["position"].items() if k not in clock}}
        for state in (whole, other)
    )
    for part in (STEP_KEYS - {"log_position"}) | {"model", "ema"}:
        equal_to_the_bit(whole[part], other[part], part)


def validations(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["results"]) for line in lines if line["event"] == "validation"]
