"""Checkpoints: whole or refused, and never run code."""

import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from metricid.errors import InputError
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing, embedder_to_dict
from metricid.training import checkpoint
from metricid.training.checkpoint import (
    KEYS,
    STEP_KEYS,
    CheckpointStore,
    load_embedder,
    open_checkpoint,
    random_state,
    read_checkpoint,
    seed_everything,
    set_random_state,
    write_checkpoint,
)


@pytest.fixture(scope="module")
def state():
    embedder = Embedder(EmbedderConfig("resnet10t", Preprocessing((32, 32)), neck="bnneck", embedding_dim=8))
    described = {"embedder": embedder_to_dict(embedder.config), "model": embedder.state_dict(), "ema": None}
    return dict.fromkeys(KEYS | STEP_KEYS) | described


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def flip_one_bit(path):
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[member.header_offset + 200 + member.file_size // 2] ^= 1
    path.write_bytes(bytes(content))


def test_only_the_newest_are_kept(tmp_path, state):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 20, 300):
        store.save(state, step)
    assert [p.name for p in store.steps()] == ["step-000000300.pt", "step-000000020.pt"]
    assert store.newest(pytest.fail)[0].name == "step-000000300.pt"


@pytest.mark.parametrize("damage", [lambda p: cut(p, 0.5), lambda p: cut(p, 0.0), flip_one_bit])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, state, damage):
    store = CheckpointStore(tmp_path)
    store.save(state, 1)
    damage(store.save(state, 2))
    said = []
    path, found = store.newest(said.append)
    assert path.name == "step-000000001.pt"
    assert_close(found["model"], dict(state["model"]))
    assert len(said) == 1
    assert "step-000000002.pt: damaged" in said[0]
    cut(path, 0.3)
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        store.newest(said.append)


def test_a_checkpoint_holds_the_model(tmp_path, state):
    write_checkpoint(tmp_path / "x.pt", state)
    read = read_checkpoint(tmp_path / "x.pt")
    embedder = load_embedder(read, tmp_path / "x.pt")
    assert embedder.config.preprocessing.size == (32, 32)
    assert_close(embedder.state_dict(), dict(state["model"]))


def test_the_averaged_weights_are_preferred(tmp_path, state):
    averaged = {k: v + 1 if v.is_floating_point() else v for k, v in state["model"].items()}
    write_checkpoint(tmp_path / "x.pt", {**state, "ema": averaged})
    embedder = load_embedder(read_checkpoint(tmp_path / "x.pt"), tmp_path / "x.pt")
    assert_close(embedder.state_dict(), averaged)


def test_another_architecture_is_named(tmp_path, state):
    other = {**state, "embedder": {**state["embedder"], "backbone": "resnet14t"}}
    write_checkpoint(tmp_path / "x.pt", other)
    with pytest.raises(InputError, match="another architecture than resnet14t"):
        load_embedder(read_checkpoint(tmp_path / "x.pt"), tmp_path / "x.pt")


class _Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_what_is_no_checkpoint_is_refused(tmp_path, state, capsys):
    for name, content in (("text.pt", b"hello"), ("pickle.pt", pickle.dumps(_Evil()))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_checkpoint(tmp_path / name)
    torch.save({"format": 1, "embedder": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "evil.pt")
    assert "code ran" not in capsys.readouterr().out
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"model\.weights="):
        read_checkpoint(tmp_path / "weights.pt")
    torch.save(dict.fromkeys(KEYS) | {"format": 99}, tmp_path / "new.pt")
    with pytest.raises(InputError, match="format 99"):
        read_checkpoint(tmp_path / "new.pt")


def test_a_full_disk_keeps_the_checkpoints_before(tmp_path, state, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(state, 1)

    def full(values, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(InputError, match="disk is full"):
        store.save(state, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.pt"]
    assert store.newest(pytest.fail) is not None


def test_a_run_folder_gives_its_best_checkpoint(tmp_path, state):
    with pytest.raises(InputError, match="no such run folder"):
        open_checkpoint(tmp_path / "none", pytest.fail)
    with pytest.raises(InputError, match="holds no checkpoint"):
        open_checkpoint(tmp_path, pytest.fail)
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(state, 7)
    assert open_checkpoint(tmp_path, pytest.fail)[0].name == "step-000000007.pt"
    write_checkpoint(store.best, state)
    assert open_checkpoint(tmp_path, pytest.fail)[0] == store.best
    assert open_checkpoint(store.steps()[0], pytest.fail)[0] == store.steps()[0]
    cut(store.best, 0.5)
    said = []
    assert open_checkpoint(tmp_path, said.append)[0].name == "step-000000007.pt"
    assert "best.pt: damaged" in said[0]


class FullDisk:
    """A file system that takes so many bytes and no more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_disk_that_fills_up_within_a_write_is_one_clear_line(tmp_path, state, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(state, 1)
    fdopen = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *a, **k: FullDiskContext(fdopen(*a, **k)))
    with pytest.raises(InputError, match="disk is full"):
        store.save(state, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.pt"]


class FullDiskContext(FullDisk):
    def __init__(self, file):
        super().__init__(file, 10_000)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.file.close()


def test_every_random_generator_continues():
    seed_everything(3)
    random.random(), np.random.rand(), torch.rand(1)
    saved = random_state()
    expected = (random.gauss(0, 1), np.random.randn(), torch.randn(2))
    seed_everything(4)
    set_random_state(saved)
    again = (random.gauss(0, 1), np.random.randn(), torch.randn(2))
    assert expected[:2] == again[:2]
    assert_close(expected[2], again[2], rtol=0, atol=0)
