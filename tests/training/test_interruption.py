"""Real processes, real signals: nothing is lost, and a resumed run ends bit-identical."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch.testing import assert_close

from metricid.training.checkpoint import CheckpointStore, read_checkpoint

pytestmark = pytest.mark.timeout(240)


def command(file):
    return [sys.executable, "-m", "metricid.cli.main", "train", str(file)]


def start(file):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(file),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(process, run, step):
    """Waits until the log holds this step; the process must be alive then."""
    deadline = time.monotonic() + 120
    log = run / "log.jsonl"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()[1][-2000:]}")
        if log.is_file():
            lines = [line for line in log.read_text().splitlines() if '"event": "step"' in line]
            if any(json.loads(line)["step"] >= step for line in lines):
                return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached")


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


@pytest.fixture
def long(small):
    return small.set(
        train__images=1600,
        train__accumulate=1,
        data__workers=1,
        checkpoint__every_steps=7,
        log__every=1,
        evaluation__every=20,
        objective=[
            {"loss": "arcface", "scale": 16.0},
            {"loss": "triplet", "on": "features", "margin": None},
            {"loss": "center", "on": "features", "weight": 0.001, "update": "alpha", "start": 0.3},
        ],
        model={"backbone": "test_resnet", "neck": "bnneck", "backbone_options": {"drop_path_rate": 0.2}},
    )


def test_killed_at_any_moment_and_resumed_it_ends_bit_identical(long):
    torch.set_num_threads(1)
    long.set(name="whole").train()
    file = long.set(name="killed").write()
    for step in (3, 40, 41, 133):
        process = start(file)
        wait_for_step(process, long.run, step)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (long.run / "results.json").exists()
    process = start(file)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    assert "resuming" in err
    whole, killed = final_state(long.folder / "runs" / "whole"), final_state(long.run)
    for part in ("model", "ema", "objective", "optimizer", "random", "ema_updates"):
        equal_to_the_bit(whole[part], killed[part], part)
    times = ("train_seconds", "wait_seconds")
    assert {k: v for k, v in whole["position"].items() if k not in times} == {
        k: v for k, v in killed["position"].items() if k not in times
    }
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (long.folder / "runs" / "whole", long.run)
    ]
    losses = [[(e["step"], e["loss"]) for e in log if e["event"] == "step"] for log in logs]
    assert losses[0] == losses[1]
    results = [
        json.loads((folder / "results.json").read_text())["results"]
        for folder in (long.folder / "runs" / "whole", long.run)
    ]
    assert results[0][0]["metrics"] == results[1][0]["metrics"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_saves_and_ends_with_one_clear_line(long, number, code):
    long.set(checkpoint={"every_epochs": 1000, "every_minutes": None}, data__workers=2)
    process = start(long.write())
    wait_for_step(process, long.run, 20)
    os.killpg(process.pid, number)  # as a terminal or a cluster does: to the workers as well
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err[-2000:]
    assert out == ""
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert f"stopped by {signal.Signals(number).name} after step" in line
    assert "the same command continues" in line
    state = final_state(long.run)
    assert f"after step {state['position']['step']} of 200" in line
    assert not list(long.run.rglob(".*.tmp"))


def test_torchrun_with_two_processes_trains_as_one_process_on_the_joined_batch(long):
    long.set(
        train={"images": 64, "precision": "fp32"},
        optim={"name": "sgd", "lr": 0.02, "weight_decay": 0.0005},
        model={"backbone": "test_resnet", "neck": "bnneck"},
        evaluation__every=0,
    )
    long.set(name="one", data__sampler={"name": "pk", "identities": 4, "images": 2}).train()
    one = final_state(long.run)
    file = long.set(name="two", data__sampler={"name": "pk", "identities": 2, "images": 2}).write()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    process = subprocess.run(
        [*launch, "-m", "metricid.cli.main", "train", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("run folder:") == 1
    two = final_state(long.run)
    assert (two["position"]["step"], two["position"]["images"]) == (8, 64)
    assert len(two["random"]) == 2
    for part in ("model", "objective"):
        for name, value in one[part].items():
            assert_close(two[part][name], value, atol=1e-3, rtol=1e-3, msg=f"{part}.{name}")
