"""Whole runs: what they leave behind, and what happens when something goes wrong."""

import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch.testing import assert_close

from metricid.data.manifest import Manifest
from metricid.errors import InputError
from metricid.training import module, trainer
from metricid.training.checkpoint import CheckpointStore, read_checkpoint
from metricid.training.run_folder import read_run_recipe
from metricid.training.signals import Stopped


def events(run, kind):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_a_run_explains_itself(small):
    outcome = small.train()
    run = small.run
    assert {p.name for p in run.iterdir()} >= {
        "recipe.yaml",
        "environment.json",
        "log.jsonl",
        "checkpoints",
        "manifests",
        "results.json",
        "results.txt",
        "curves",
        "report.html",
    }
    assert read_run_recipe(run) == small.config().plain()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    parts = {
        name: Manifest.read(run / "manifests" / f"{name}.csv") for name in ("train", "validation", "test")
    }
    names = [set(part.identity_names()) for part in parts.values()]
    assert [len(n) for n in names] == [9, 3, 4]
    assert len(set.union(*names)) == 16
    for name, part in parts.items():
        assert environment["data"][name]["fingerprint"] == part.fingerprint()
    results = json.loads((run / "results.json").read_text())
    assert results == outcome.values
    assert results["images"] == 96
    assert results["steps"] == 6
    assert results["results"][0]["counts"]["queries"] == 24
    assert not list(run.rglob(".*.tmp"))
    assert "rank-1" in outcome.text
    assert str(run) in outcome.text


def test_terms_are_logged_one_by_one_and_only_inside_their_window(small):
    small.set(log__every=1, train__accumulate=1, train__images=64)
    small.train()
    steps = events(small.run, "step")
    assert [set(s["terms"]) for s in steps] == [{"softmax", "center"}] * 2 + [
        {"softmax", "triplet", "center"}
    ] * 6
    for line in steps:
        weighted = (
            line["terms"]["softmax"] + line["terms"].get("triplet", 0) + 0.001 * line["terms"]["center"]
        )
        assert line["loss"] == pytest.approx(weighted, rel=1e-4)
        assert {"lr", "images_per_second", "wait_share", "epoch", "images"} <= set(line)


def test_a_term_outside_its_window_is_left_as_it_is(small):
    head = {"loss": "arcface", "name": "late", "start": 0.9}
    small.set(objective=[{"loss": "softmax"}, head], optim={"name": "sgd", "lr": 0.1, "weight_decay": 0.1})
    small.set(train__accumulate=1, checkpoint={"every_steps": 1, "keep": 100}, evaluation__every=0)
    small.train()
    states = [
        read_checkpoint(p)["objective"] for p in reversed(CheckpointStore(small.run / "checkpoints").steps())
    ]
    heads = [state["losses.late.weight"] for state in states]
    assert all(torch.equal(heads[0], weight) for weight in heads[:10])
    assert not torch.equal(heads[0], heads[-1])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_balance_trains_on_when_a_term_starts_later(small, name):
    small.set(optim={"name": name, "lr": 0.01}, balance={"name": "uncertainty"}, log__every=1)
    small.set(objective=[{"loss": "softmax"}, {"loss": "triplet", "on": "features", "start": 0.5}])
    small.train()
    weights = [event["weights"] for event in events(small.run, "step")]
    assert "triplet" not in weights[0] and weights[-1]["triplet"] not in (0, 1)


def test_a_run_whose_balance_saw_weighted_losses_is_not_continued(small):
    small.set(balance={"name": "gradnorm"}, checkpoint={"every_steps": 1, "keep": 1, "every_minutes": None})
    small.train()
    (small.run / "results.json").unlink()
    (path,) = CheckpointStore(small.run / "checkpoints", keep=1).steps()
    state = read_checkpoint(path)
    del state["objective"]["balance.form"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"saw the losses with their weights; end the run"):
        small.train()


def test_the_checkpoint_holds_the_whole_state_and_the_label_map(small):
    small.train()
    store = CheckpointStore(small.run / "checkpoints")
    assert [p.name for p in store.steps()] == ["step-000000006.pt", "step-000000004.pt"]
    state = read_checkpoint(store.steps()[0])
    assert {"model", "objective", "ema", "optimizer", "scaler", "position", "random", "label_map"} <= set(
        state
    )
    train = Manifest.read(small.run / "manifests" / "train.csv")
    assert state["label_map"] == {name: i for i, name in enumerate(train.identity_names())}
    assert store.best.is_file()


def test_a_finished_run_is_shown_and_not_repeated(small):
    first = small.train()
    before = (small.run / "log.jsonl").read_bytes()
    again = small.train()
    assert again.values == first.values
    assert "finished" in again.text
    assert (small.run / "log.jsonl").read_bytes() == before


def test_a_run_folder_of_another_recipe_is_left_alone(small):
    small.train()
    small.set(optim__lr=0.002)
    with pytest.raises(InputError, match=r"optim\.lr: 0\.001 -> 0\.002.*name=\.\.\."):
        small.train()


def test_a_run_does_not_continue_on_other_data(small):
    small.set(data__train="folder", data__options={}, data__root=str(small.folder / "photos"))
    for name in "abcdefgh":
        (small.folder / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((32, 32, 3), 10 * ord(name) % 256, np.uint8)
            cv2.imwrite(str(small.folder / "photos" / name / f"{number}.png"), pixels)
    small.set(data__split={"train_identities": 6}, evaluation__every=0)
    small.train()
    (small.run / "results.json").unlink()
    (small.folder / "photos" / "a" / "2.png").rename(small.folder / "photos" / "a" / "9.png")
    with pytest.raises(InputError, match="other training data"):
        small.train()


def test_how_a_run_is_watched_may_change_when_it_resumes(small):
    small.train()
    small.set(log__every=5, data__workers=1)
    assert "finished" in small.train().text


def test_accumulating_two_batches_equals_one_of_both(small, monkeypatch):
    """With batch normalisation off, two half batches give the gradient of the whole."""
    gradients = []
    monkeypatch.setattr(
        trainer.Trainer,
        "_clip",
        lambda self: gradients.append([p.grad.clone() for p in self.parameters if p.grad is not None]) or 1.0,
    )
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda self, x: x)
    monkeypatch.setattr(torch.nn.BatchNorm1d, "forward", lambda self, x: x)
    small.set(objective=[{"loss": "softmax"}], model__backbone="resnet10t", model__backbone_options={})
    small.set(data__split={"train_identities": 14}, data__augment={"preset": "plain"}, evaluation__every=0)
    small.set(
        train={"images": 8, "precision": "fp32", "accumulate": 2},
        data__sampler={"name": "shuffle", "batch_size": 4},
    )
    small.set(name="two").train()
    small.set(
        train={"images": 8, "precision": "fp32", "accumulate": 1},
        data__sampler={"name": "shuffle", "batch_size": 8},
    )
    small.set(name="one").train()
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-3)


def poison(small, monkeypatch, steps):
    """Makes the loss NaN at the given calls."""
    calls = iter(range(10_000))
    forward = module.TrainingModule.forward

    def poisoned(self, *arguments):
        output, features, embedding = forward(self, *arguments)
        if next(calls) in steps:
            nan = output.total * float("nan")
            output = output._replace(total=nan, terms=output.terms | {"softmax": nan.detach()})
        return output, features, embedding

    monkeypatch.setattr(module.TrainingModule, "forward", poisoned)


def test_a_step_with_a_non_finite_loss_is_skipped_counted_and_named(small, monkeypatch):
    small.set(train__accumulate=1, train__images=64)
    poison(small, monkeypatch, {3, 5})
    outcome = small.train()
    found = events(small.run, "nonfinite")
    assert [e["step"] for e in found] == [3, 5]
    assert found[0]["what"] == "loss of softmax"
    assert outcome.values["nonfinite_steps"] == 2
    assert "2 steps were skipped" in outcome.text
    state = read_checkpoint(CheckpointStore(small.run / "checkpoints").steps()[0])
    for part in ("model", "ema", "objective"):
        assert all(torch.isfinite(v).all() for v in state[part].values())


def test_a_skipped_step_changes_neither_weights_nor_statistics(small, monkeypatch):
    small.set(train__images=16, train__accumulate=1, checkpoint__every_steps=1, evaluation__every=0)
    poison(small, monkeypatch, {1})
    small.train()
    newest, before = (read_checkpoint(p) for p in CheckpointStore(small.run / "checkpoints").steps())
    for part in ("model", "ema", "objective"):
        assert_close(newest[part], before[part], rtol=0, atol=0)


def test_ten_non_finite_steps_in_a_row_stop_the_run_with_advice(small, monkeypatch):
    small.set(train__images=800, train__accumulate=1, evaluation__every=0)
    poison(small, monkeypatch, set(range(3, 1000)))
    with pytest.raises(InputError, match=r"step 12: 10 non-finite steps in a row.*optim\.lr"):
        small.train()


def test_a_full_disk_while_checkpointing_loses_nothing(small, monkeypatch):
    small.set(train__images=160)
    save = torch.save
    written = []

    def fill(values, file, *rest, **options):
        if values["position"]["step"] == 4:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        written.append(values["position"]["step"])
        save(values, file, *rest, **options)

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(InputError, match="disk is full.*same command"):
        small.train()
    assert [p.name for p in CheckpointStore(small.run / "checkpoints").steps()] == ["step-000000002.pt"]
    assert not list(small.run.rglob(".*.tmp"))
    monkeypatch.setattr(torch, "save", save)
    assert small.train().values["steps"] == 10


def test_a_damaged_newest_checkpoint_is_passed_over(small, capsys):
    small.train()
    newest = CheckpointStore(small.run / "checkpoints").steps()[0]
    newest.write_bytes(newest.read_bytes()[:1000])
    (small.run / "results.json").unlink()
    assert small.train().values["steps"] == 6
    said = capsys.readouterr().err
    assert "step-000000006.pt: damaged" in said
    assert "resuming" in said
    assert "from step 4 of 6" in said


def test_what_a_killed_process_was_writing_is_removed(small):
    (small.run / "checkpoints").mkdir(parents=True)
    (small.run / "checkpoints" / ".step-000000001.pt.abc.tmp").write_bytes(b"half")
    small.train()
    assert not list(small.run.rglob(".*.tmp"))


LOCKS = """
import fcntl, os, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
if child := os.fork():
    print(child, flush=True)
sys.stdin.read()
"""


def test_a_second_process_in_the_same_folder_is_kept_out_until_the_first_is_killed(small):
    small.run.mkdir(parents=True)
    program = [sys.executable, "-c", LOCKS, str(small.run / ".lock")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        with pytest.raises(InputError, match="another process is training here"):
            small.train()
        process.kill()
        process.wait()
        os.kill(child, 0)  # what it started lives on, as loader processes do for a moment
        small.train()
        os.kill(child, signal.SIGKILL)


def test_an_overflow_of_scaled_gradients_is_no_non_finite_loss_until_the_scale_is_spent(small, monkeypatch):
    small.set(train__images=80, train__accumulate=1, evaluation__every=0, train__max_nonfinite=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=True)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler)
    clip = trainer.Trainer._clip

    def overflowing(self):
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.fill_(float("inf"))
        return clip(self)

    monkeypatch.setattr(trainer.Trainer, "_clip", overflowing)
    monkeypatch.setattr(scaler, "unscale_", lambda optimizer: scaler._per_optimizer_states[id(optimizer)])
    monkeypatch.setattr(
        scaler, "update", lambda: scaler._scale.mul_(0.5) if scaler._scale is not None else None
    )
    with pytest.raises(InputError, match="3 non-finite steps in a row"):
        small.train()
    assert [e["step"] for e in events(small.run, "nonfinite")] == [2, 3, 4]


def test_a_refused_resume_leaves_the_papers_of_the_run(small):
    small.set(data__options={"identities": 16, "images": 6, "seed": 0}).train()
    (small.run / "results.json").unlink()
    (small.run / "recipe.yaml").unlink()
    papers = (
        (small.run / "environment.json").read_bytes(),
        (small.run / "manifests" / "train.csv").read_bytes(),
    )
    small.set(data__options={"identities": 16, "images": 6, "seed": 1}, optim__lr=0.5)
    with pytest.raises(InputError, match="under another recipe"):
        small.train()
    assert papers == (
        (small.run / "environment.json").read_bytes(),
        (small.run / "manifests" / "train.csv").read_bytes(),
    )
    assert not (small.run / "recipe.yaml").exists()


def test_a_log_that_cannot_be_written_is_one_clear_line(small):
    small.run.mkdir(parents=True)
    (small.run / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"log\.jsonl: the log cannot be written"):
        small.train()


def test_a_damaged_best_checkpoint_gives_way_to_the_newest(small, capfd):
    small.train()
    (small.run / "results.json").unlink()
    best = small.run / "checkpoints" / "best.pt"
    best.write_bytes(best.read_bytes()[:500])
    assert small.train().values["checkpoint"].endswith("step-000000006.pt")
    assert "best.pt: damaged" in capfd.readouterr().err


def test_skipped_images_are_remembered_across_a_resume(small):
    photos = small.folder / "photos"
    for name in "abcd":
        (photos / name).mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(photos / name / f"{number}.png"), np.full((32, 32, 3), 60 * number, np.uint8))
    (photos / "a" / "1.png").write_bytes(b"")
    small.set(data__train="folder", data__options={}, data__root=str(photos), data__on_corrupt="skip")
    small.set(
        data__split={"train_identities": 2, "seed": 5}, data__sampler={"name": "shuffle", "batch_size": 4}
    )
    small.set(train={"images": 48, "precision": "fp32"}, evaluation={"protocols": [], "every": 0})
    first = small.train().values["skipped_images"]
    (small.run / "results.json").unlink()
    assert small.train().values["skipped_images"] == first
    assert [p.rpartition("photos/")[2] for p in first] == ["a/1.png"]


def test_tensorboard_gets_the_scalars(small):
    small.set(log__tensorboard=True)
    small.train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events_ = EventAccumulator(str(small.run / "tensorboard")).Reload()
    assert {"loss", "lr", "terms/softmax", "validation/rank-1"} <= set(events_.Tags()["scalars"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__split": {"train_identities": 1}}, "at least two"),
        ({"data__sampler": {"name": "pk", "identities": 40, "images": 2}}, "identities"),
        ({"data__split": {"train_identities": 12, "validation_identities": 12}}, "leave none to train on"),
        ({"data__split": {"train": "a", "test": "b"}}, "column 'split'"),
        ({"data__train": "folder", "data__options": {}, "data__root": "/nowhere"}, "/nowhere"),
        ({"data__train": "folder", "data__options": {}}, "data.root"),
        ({"data__train": "manifest", "data__options": {}}, "data.manifest"),
        ({"evaluation__protocols": ["reid"]}, "camera"),
        ({"data__split": {"train_identities": 15}}, "needs two identities"),
        ({"train__precision": "fp16"}, "fp16 needs a CUDA GPU"),
        (
            {"objective": [{"loss": "softmax"}], "balance": {"name": "uncertainty"}},
            "balance: one term has nothing to be balanced with",
        ),
        (
            {"objective": [{"loss": "softmax", "weight": {"plateau": 1}}], "evaluation__every": 0},
            "objective.0.weight.plateau: waits for validations; set data.split.validation_identities and",
        ),
        (
            {
                "objective": [{"loss": "softmax"}, {"loss": "triplet", "weight": {"plateau": 1}}],
                "data__split": {"train_identities": 12},
            },
            "objective.1.weight.plateau: waits for validations",
        ),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(small, changes, message):
    small.set(**changes)
    with pytest.raises(InputError, match=message):
        small.train()
    assert not small.run.exists()


def test_recipe_file_of_a_run_reads_back(small):
    small.set(train__images=16, evaluation__every=0).train()
    values = yaml.safe_load((small.run / "recipe.yaml").read_text())
    assert values["objective"][1]["on"] == "features"


def test_weights_and_gradient_norms_of_the_terms_are_logged(small):
    small.set(
        objective=[
            {"loss": "softmax", "weight": {"linear": [0, 1]}},
            {"loss": "triplet", "on": "features", "weight": {"plateau": 1, "patience": 1, "threshold": 9.0}},
        ],
        train__accumulate=1,
        train__images=288,
        evaluation__every=1,
        log__every=6,
    )
    small.train()
    lines = events(small.run, "step")
    assert [line["weights"]["softmax"] for line in lines] == pytest.approx(
        [(line["step"] - 1) / lines[-1]["step"] for line in lines]
    )
    assert all(norm > 0 for line in lines for norm in line["grad_norms"].values())
    assert lines[0]["weights"]["triplet"] == 1
    assert len(events(small.run, "validation")) > 2
    assert lines[-1]["weights"]["triplet"] < 1  # no validation is better by 9


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "gradnorm"])
def test_a_stopped_run_continues_its_balance_to_the_bit(small, name):
    small.set(balance={"name": name}, log__every=1)
    small.set(name="whole").train()
    whole = small.run
    small.set(name="parts")
    with pytest.MonkeyPatch.context() as patch:
        step = trainer.Trainer._step

        def stopping(self, *arguments):
            step(self, *arguments)
            if self.position.step == 5:
                self.stop.number = signal.SIGTERM

        patch.setattr(trainer.Trainer, "_step", stopping)
        with pytest.raises(Stopped):
            small.train()
    small.train()
    parts, lines = (
        [{key: line[key] for key in ("loss", "weights", "grad_norms")} for line in events(run, "step")]
        for run in (small.run, whole)
    )
    assert parts == lines
    if name != "dwa":  # which waits for two epochs
        assert len({line["weights"]["softmax"] for line in parts}) > 3
