"""Real processes, real signals: nothing is lost, and a resumed run ends bit-identical."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from run_states import equal_but_for_the_clock, final_state, validations

from metricid.models.embedder import Embedder
from metricid.training.signals import Stopped

pytestmark = pytest.mark.timeout(240)


def command(file):
    return [sys.executable, "-m", "metricid.cli.main", "train", str(file)]


def start(file):
    return subprocess.Popen(
        command(file),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
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
        if log.is_file():  # its last line may be half written
            complete = log.read_text().rpartition("\n")[0].splitlines()
            events = [json.loads(line) for line in complete]
            if any(event["event"] == "step" and event["step"] >= step for event in events):
                return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached")


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
    equal_but_for_the_clock(whole, killed)
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_validation_is_obeyed_before_the_next_batch(long, monkeypatch, number):
    long.set(
        train__images=200,
        data__workers=0,
        evaluation={"protocols": ["identification"], "every": 1, "batch_size": 4},
    )
    long.set(name="whole").train()
    embed, batches = Embedder.embed, []

    def interrupting(self, *arguments, **options):
        batches.append(len(arguments[0]))
        if len(batches) == 7:  # the second of the five batches of the second validation
            os.kill(os.getpid(), number)
        return embed(self, *arguments, **options)

    monkeypatch.setattr(Embedder, "embed", interrupting)
    long.set(name="stopped")
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step .* of 25"):
        long.train()
    assert batches == [4, 4, 4, 4, 2, 4, 4]
    assert len(validations(long.run)) == 1
    long.train()
    whole = long.folder / "runs" / "whole"
    equal_but_for_the_clock(final_state(whole), final_state(long.run))
    assert validations(whole) == validations(long.run)
    assert len(validations(long.run)) > 2
