"""Whole runs in two processes: what they end with is what one process ends with, on every rank."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from run_states import equal_but_for_the_clock, final_state, validations
from small_recipe import RECIPE
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from two_ranks import in_two_ranks

from metricid.training import trainer
from metricid.training.build import build_run, check_recipe
from metricid.training.checkpoint import load_embedder, open_checkpoint
from metricid.training.distributed import World
from metricid.training.session import train
from metricid.training.signals import Stopped
from metricid.training.validation import evaluate_model

pytestmark = pytest.mark.timeout(240)
ONE = World(0, 1, torch.device("cpu"))
SMOOTH = {
    "optim": {"name": "sgd", "lr": 0.02, "weight_decay": 0.0005},
    "train": {"images": 96, "precision": "fp32"},
    "evaluation": {"protocols": ["identification"], "every": 1},
    "checkpoint": {"every_epochs": 1, "keep": 2},
}


def recipe(name, folder, **sections):
    """The small recipe with joined batches of 4 identities, in two processes or in one."""
    values = copy.deepcopy(RECIPE) | copy.deepcopy(SMOOTH) | {"name": name, "runs": str(folder)}
    for section, changes in sections.items():
        values[section] = values[section] | changes
    return values


def halved(values):
    """The same recipe for each of two processes: the joined batch stays as it was."""
    values = copy.deepcopy(values)
    values["data"]["sampler"]["identities"] //= 2
    return values


def recipes(folder):
    return {
        "accumulated": recipe("accumulated", folder, train={"accumulate": 2}),
        "averaged": recipe("averaged", folder, train={"ema": 0.5}),
        "apart": recipe("apart", folder, train={"sync_batchnorm": False, "ema": 0.5}),
        "long": recipe(
            "long",
            folder,
            optim={"name": "adamw", "lr": 0.001},
            model={"backbone_options": {"drop_path_rate": 0.2}},
            data={"workers": 1},
            train={"images": 224, "ema": 0.9},
            evaluation={"every": 3},
            checkpoint={"every_epochs": 1000, "every_minutes": None, "every_steps": 7},
        ),
    }


class Spy:
    """Notes, inside a rank, what no file of a run tells."""

    def __init__(self):
        self.values = {"no_sync": 0, "after_step": [], "evaluated": []}
        self.trainer = None
        step, no_sync, evaluate = trainer.Trainer._step, DistributedDataParallel.no_sync, evaluate_model

        def stepped(this, *arguments):
            self.trainer = this
            step(this, *arguments)
            self.values["after_step"].append(statistics(this.run.embedder))

        def local(this):
            self.values["no_sync"] += 1
            return no_sync(this)

        def evaluated(embedder, *arguments, **options):
            self.values["evaluated"].append(statistics(embedder))
            return evaluate(embedder, *arguments, **options)

        trainer.Trainer._step, DistributedDataParallel.no_sync = stepped, local
        trainer.evaluate_model = evaluated

    def take(self):
        """What was noted since the last time, and the weights that this rank ended with."""
        parts = (self.trainer.run.embedder, self.trainer.run.objective)
        weights = [{name: p.detach().clone() for name, p in part.named_parameters()} for part in parts]
        taken = self.values | {"weights": weights}
        self.values = {"no_sync": 0, "after_step": [], "evaluated": []}
        return taken


def statistics(embedder):
    return {n: b.clone() for n, b in embedder.named_buffers() if "running" in n}


def on_rank(world, values):
    spy = Spy()
    found = {}
    for name, part in values.items():
        train(check_recipe(halved(part), name), world)
        found[name] = spy.take()
    found["stopped"] = stopped_in_validation(halved(values["averaged"]), world)
    return found


def stopped_in_validation(values, world):
    """Runs to the end; rank 1 alone gets a signal in the first validation and, continued, in the last one."""
    config = check_recipe(values | {"name": "stopped"}, "stopped")
    evaluate, calls, told = trainer.evaluate_model, [], []

    def signalled(*arguments, **options):
        calls.append(1)
        if len(calls) in (1, 3) and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    trainer.evaluate_model = signalled
    for _ in range(2):
        with pytest.raises(Stopped) as stopped:
            train(config, world)
        told.append((str(stopped.value), len(validations(config.folder))))
    train(config, world)
    trainer.evaluate_model = evaluate
    return told


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs in two processes, and what their ranks noted."""
    folder = tmp_path_factory.mktemp("two")
    return folder, in_two_ranks(on_rank, recipes(folder))


def same_on_both_ranks(ranks, name):
    for mine, theirs in zip(ranks[0][name]["weights"], ranks[1][name]["weights"], strict=True):
        assert_close(mine, theirs, rtol=0, atol=0)


def test_accumulated_batches_of_two_processes_are_those_of_one(runs, tmp_path):
    folder, ranks = runs
    train(check_recipe(recipes(tmp_path)["accumulated"], "one"), ONE)
    one, two = final_state(tmp_path / "accumulated"), final_state(folder / "accumulated")
    assert two["position"]["step"] == one["position"]["step"] == 6
    # The first batch of each of the 6 steps keeps its gradients to itself, the second averages their sum.
    assert [rank["accumulated"]["no_sync"] for rank in ranks] == [6, 6]
    for part in ("model", "objective"):
        for name, value in one[part].items():
            assert_close(two[part][name], value, atol=1e-4, rtol=1e-4, msg=f"{part}.{name}")
    same_on_both_ranks(ranks, "accumulated")


def test_without_joined_batchnorm_the_ranks_hold_the_same_weights_and_evaluate_rank_zeros_statistics(runs):
    folder, ranks = runs
    same_on_both_ranks(ranks, "apart")
    noted = [rank["apart"] for rank in ranks]
    differing = [
        any(not torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in zip(noted[0]["after_step"], noted[1]["after_step"], strict=True)
    ]
    assert len(differing) == 12 and all(differing), "each rank normalises its own batches"
    assert len(noted[0]["evaluated"]) == len(validations(folder / "apart")) > 1
    for mine, theirs in zip(noted[0]["evaluated"], noted[1]["evaluated"], strict=True):
        assert_close(mine, theirs, rtol=0, atol=0)
    last = {name: final_state(folder / "apart")["ema"][name] for name in noted[0]["evaluated"][-1]}
    assert_close(noted[1]["evaluated"][-1], last, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["accumulated", "averaged", "apart"])
def test_evaluation_in_two_processes_equals_that_in_one(runs, name):
    """The final validation and the test, without averaged weights and with them."""
    folder, _ = runs
    config = check_recipe(recipes(folder)[name], name)
    run = build_run(config, ONE)
    path, state = open_checkpoint(folder / name, pytest.fail)
    tested = json.loads((folder / name / "results.json").read_text())["results"][0]["metrics"]
    pairs = [(state, run.splits.test, tested)]
    pairs.append(
        (final_state(folder / name), run.splits.validation, validations(folder / name)[-1][1][0]["metrics"])
    )
    assert (state["ema"] is None) == (name == "accumulated")
    for stored, table, expected in pairs:
        embedder = load_embedder(stored, path)
        results = evaluate_model(
            embedder, run.splits.source, table, config.data, config.evaluation, ONE, run.precision
        )
        assert results[0].metrics == pytest.approx(expected, abs=1e-9)
    assert 0.2 < tested["mAP"] < 1.0


def test_a_signal_to_one_rank_during_validation_stops_both_and_nothing_is_lost(runs):
    folder, ranks = runs
    for rank in ranks:
        (first, none_yet), (last, one) = rank["stopped"]
        assert "stopped by SIGTERM after step 7 of 12" in first
        assert "stopped by SIGTERM after step 12 of 12" in last
        assert (none_yet, one) == (0, 1), "a validation that is cut short leaves no result"
    whole, stopped = folder / "averaged", folder / "stopped"
    assert validations(whole) == validations(stopped)
    equal_but_for_the_clock(final_state(whole), final_state(stopped))


KILLED_AT_STEP_21 = """
import os, signal, sys

import torch
from metricid.cli.main import main
from metricid.training import trainer

save, write, barrier = trainer.Trainer._save, torch.save, trainer.barrier
step = 0

def note_step(self):
    global step
    step = self.position.step
    return save(self)

def write_half(values, file, *rest, **options):
    if step == 21 and "optimizer" in values:  # what the ranks send each other is saved by the same function
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getppid(), signal.SIGKILL)  # torchrun
        os.kill(os.getpid(), signal.SIGKILL)
    write(values, file, *rest, **options)

def die_waiting(world):
    if step == 21 and world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    barrier(world)

trainer.Trainer._save, torch.save, trainer.barrier = note_step, write_half, die_waiting
main(sys.argv[1:])
"""


def torchrun(program, file):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    return subprocess.run(
        [*launch, *program, "train", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_torchrun_killed_while_it_writes_a_checkpoint_ends_bit_identical(runs, tmp_path):
    folder, _ = runs
    values = halved(recipes(folder)["long"]) | {"runs": str(tmp_path)}
    file, program = tmp_path / "long.yaml", tmp_path / "killed.py"
    file.write_text(yaml.safe_dump(values))
    program.write_text(KILLED_AT_STEP_21)
    assert torchrun([str(program)], file).returncode == -signal.SIGKILL
    run = tmp_path / "long"
    assert final_state(run)["position"]["step"] == 14
    assert list(run.rglob(".*.tmp")) and not (run / "results.json").exists()
    again = torchrun(["-m", "metricid.cli.main"], file)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("resuming") == again.stdout.count("run folder:") == 1
    assert "from step 14 of 28" in again.stderr
    assert not list(run.rglob(".*.tmp"))
    equal_but_for_the_clock(final_state(folder / "long"), final_state(run))
    assert validations(folder / "long") == validations(run)
