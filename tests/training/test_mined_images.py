"""Trainings whose sampler knows images: how far each is from its center, and its hardest negatives."""

import copy
import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
from run_states import equal_but_for_the_clock, equal_to_the_bit, final_state
from small_recipe import RECIPE
from torch.testing import assert_close
from two_ranks import in_two_ranks

from metricid.data.loader import Loader
from metricid.data.manifest import Manifest
from metricid.errors import InputError
from metricid.mining import HardIdentitySampler
from metricid.mining.offline import OfflineOptions, search_embeddings
from metricid.training import offline, trainer
from metricid.training.build import build_run, check_recipe
from metricid.training.checkpoint import CheckpointStore
from metricid.training.distributed import World
from metricid.training.embedding import embed_images
from metricid.training.mined import MinedBatches
from metricid.training.session import train
from metricid.training.signals import Stopped

ONE = World(0, 1, torch.device("cpu"))
SAMPLER = {
    "name": "hard_identity", "identities": 4, "images": 2, "refresh": None, "guard": None, "warmup": 3,
    "far_share": 0.5, "offline": {"images": 4},
}  # fmt: skip


def recipe(folder, name="mined", sampler=None, **train_section):
    values = copy.deepcopy(RECIPE)
    values["data"] |= {"sampler": SAMPLER | (sampler or {}), "split": {"train_identities": 12}}
    return values | {
        "name": name,
        "runs": str(folder),
        "optim": {"name": "sgd", "lr": 0.02},
        "train": {"images": 216, "precision": "fp32", **train_section},  # 3 epochs of 9 batches
        "evaluation": {"protocols": [], "every": 0, "batch_size": 16},
        "checkpoint": {"every_steps": 1, "keep": 100, "every_minutes": None},
        "log": {"every": 1, "report": False},
    }


def events(run, kind):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def timeless(state):
    """The sampler's part of a state, without what a clock says."""

    def without(value):
        if isinstance(value, dict):
            return {key: without(part) for key, part in value.items() if key != "seconds"}
        return [without(part) for part in value] if isinstance(value, (list, tuple)) else value

    return without(state["mined"])


class Watch:
    """Notes the rows of all batches, the embeddings that the sampler is given, and what else it is told."""

    def __init__(self, monkeypatch):
        self.batches, self.vectors, self.distances, self.updates = [], [], [], []
        epoch, use = Loader.epoch, HardIdentitySampler.use_embeddings
        told, update = HardIdentitySampler.set_distances, MinedBatches.update

        def batches(this, number, start=0):
            for place, batch in enumerate(epoch(this, number, start), start):
                self.batches.append((number, place, batch.index.tolist()))
                yield batch

        def used(this, vectors, **options):
            self.vectors.append((this._coming, vectors.clone()))
            return use(this, vectors, **options)

        def far(this, distances):
            self.distances.append((this._coming, np.array(distances)))
            told(this, distances)

        def updated(this, embedding, labels, index, gather):
            self.updates.append((embedding.detach().clone(), labels.tolist(), index.tolist()))
            update(this, embedding, labels, index, gather)

        monkeypatch.setattr(Loader, "epoch", batches)
        monkeypatch.setattr(HardIdentitySampler, "use_embeddings", used)
        monkeypatch.setattr(HardIdentitySampler, "set_distances", far)
        monkeypatch.setattr(MinedBatches, "update", updated)


def test_a_recipe_mines_offline_before_every_epoch_after_the_warm_up(tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    values = recipe(tmp_path, sampler={"temperature": 0.0, "share": 0.5, "images": 1, "far_share": 0.0})
    train(check_recipe(values, "r"), ONE)
    run = tmp_path / "mined"
    whole = build_run(check_recipe(values, "r"), ONE)
    length = whole.loader.num_batches(0)
    epochs = len(watch.batches) // length
    assert epochs == 3
    passes = events(run, "offline")
    assert (
        [line["epoch"] for line in passes] == [epoch for epoch, _ in watch.vectors] == list(range(1, epochs))
    )
    assert all(line["images"] == 72 and line["unreadable"] == 0 for line in passes)
    assert all(line["embed_seconds"] > 0 and line["search_recall"] == 1.0 for line in passes)
    labels = whole.splits.train.labels(whole.label_map)
    for epoch, vectors in watch.vectors:
        assert vectors.dtype == torch.float16 and vectors.shape == (72, whole.embedder.output_dim)
        near = vectors.double() @ vectors.double().T
        near[torch.from_numpy(labels[:, None] == labels)] = -2
        first = near.max(dim=1).values
        met = [rows for number, _, rows in watch.batches if number == epoch]
        beside = [
            near[seed, other] >= first[seed] - 1e-3
            for rows in met
            for seed, other in zip(rows[::2], rows[1::2], strict=True)
        ]
        assert np.mean(beside) > 0.8, "a seed stands beside its hardest negative, if that is not used up"
    before = [rows for number, _, rows in watch.batches if number == 0]
    beside = [
        near[seed, other] >= first[seed] - 1e-3
        for rows in before
        for seed, other in zip(rows[::2], rows[1::2], strict=True)
    ]
    assert np.mean(beside) < 0.3
    ages = [line["mining"]["offline_age"] for line in events(run, "step")]
    assert ages[:length] == [None] * length and ages[length : 2 * length] == list(range(length))
    for line in events(run, "step")[length:]:
        assert line["mining"]["hard_share"] is not None
    state = final_state(run)["mined"]
    assert state["centers"] is None and state["distances"] is None  # nothing searches them


def test_the_pass_embeds_as_an_evaluation_does(tmp_path, monkeypatch):
    run = build_run(check_recipe(recipe(tmp_path), "r"), ONE)
    seen = []
    monkeypatch.setattr(
        run.mined.sampler, "use_embeddings",
        lambda v, **o: (seen.append(v), HardIdentitySampler.use_embeddings(run.mined.sampler, v, **o))[1],
    )  # fmt: skip
    run.embedder.train()
    offline.mine_offline(run, tmp_path, lambda: False)
    assert run.embedder.training
    table = run.splits.train
    settings = {"world": ONE, "precision": run.precision, "flip": False, "workers": 0}
    expected = embed_images(run.embedder, run.splits.source, table, **settings).vectors
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert_close(seen[0].float(), torch.from_numpy(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "accumulate"),
    [
        ({}, 1),
        ({}, 2),
        ({"refresh": 4, "offline": {"every": 2}}, 1),
        ({"refresh": 4, "offline": None}, 2),
    ],
)
def test_a_resumed_run_ends_bit_identical(tmp_path, changes, accumulate):
    values = recipe(tmp_path, sampler=changes, accumulate=accumulate)
    config = check_recipe(values, "r")
    train(config, ONE)
    run = tmp_path / "mined"
    whole = final_state(run)
    passes = events(run, "offline")
    for cut in (9 // accumulate, 11 // accumulate):  # at the end of an epoch, and within one
        for path in CheckpointStore(run / "checkpoints", keep=100).steps():
            if int(path.stem.rpartition("-")[2]) > cut:
                path.unlink()
        (run / "results.json").unlink()
        train(config, ONE)
        again = final_state(run)
        equal_but_for_the_clock(whole, again)
        equal_to_the_bit(timeless(whole), timeless(again))
    assert [line["epoch"] for line in events(run, "offline")] == [line["epoch"] for line in passes]


def test_without_a_pass_the_steps_say_how_far_each_image_is(tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    values = recipe(tmp_path, sampler={"offline": None, "refresh": 4, "vectors": "classifier"})
    train(check_recipe(values, "r"), ONE)
    assert [epoch for epoch, _ in watch.distances] == [0, 1, 2]
    centers, last, told = {}, np.zeros(72), []
    for step, (embedding, labels, rows) in enumerate(watch.updates):
        if step % 9 == 0:
            told.append(last.copy())
        unit = torch.nn.functional.normalize(embedding.double(), dim=1)
        for label in sorted(set(labels)):
            mine = [place for place, one in enumerate(labels) if one == label]
            mean = unit[mine].mean(0)
            centers[label] = mean if label not in centers else 0.9 * centers[label] + 0.1 * mean
            for row in {rows[place] for place in mine}:
                same = [place for place in mine if rows[place] == row]
                cosine = torch.cosine_similarity(unit[same], centers[label][None], dim=1)
                last[row] = float((1 - cosine).mean())
    assert len(told) == 3 and told[1].any()
    for (_, got), expected in zip(watch.distances, told, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    state = final_state(tmp_path / "mined")["mined"]
    assert_close(
        state["distances"]["distances"].nan_to_num(0).double(), torch.from_numpy(last), atol=1e-5, rtol=0
    )
    labels = np.array(
        [int(row) // 6 for row in range(72)]
    )  # six images of each identity, one after the other
    shown = [row for epoch, _, batch in watch.batches if epoch == 2 for row in batch]
    far = {r for k in range(12) for r in np.flatnonzero(labels == k)[np.argsort(-told[2][labels == k])[:2]]}
    assert np.mean([row in far for row in shown]) == 0.5  # `far_share` of two images: one


def test_a_signal_during_the_pass_saves_and_the_same_command_continues(tmp_path, monkeypatch):
    config = check_recipe(recipe(tmp_path, name="whole", accumulate=2), "r")
    train(config, ONE)
    other = check_recipe(recipe(tmp_path, name="stopped", accumulate=2), "r")
    stream, calls = offline.embed_stream, []

    def signalled(*arguments, **options):
        for number, part in enumerate(stream(*arguments, **options)):
            calls.append(number)
            if calls.count(1) == 1 and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield part

    monkeypatch.setattr(offline, "embed_stream", signalled)
    with pytest.raises(Stopped, match="after step 4 of 14"):  # the fifth step reaches into the second epoch
        train(other, ONE)
    assert calls == [0, 1]
    assert events(tmp_path / "stopped", "offline") == []
    train(other, ONE)
    whole, again = final_state(tmp_path / "whole"), final_state(tmp_path / "stopped")
    again["config"] = whole["config"]
    equal_but_for_the_clock(whole, again)
    equal_to_the_bit(timeless(whole), timeless(again))


def test_wrong_labels_and_images_alike_are_listed(tmp_path):
    run = build_run(check_recipe(recipe(tmp_path, sampler={"guard": 0.99}), "r"), ONE)
    table = run.splits.train
    labels = torch.from_numpy(table.labels(run.label_map))
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(12, 32, generator=generator)
    vectors = people[labels] + 0.3 * torch.randn(72, 32, generator=generator)
    vectors[10] = people[7] + 0.3 * torch.randn(32, generator=generator)  # an image of another
    vectors[40] = vectors[3]  # the same image under two names
    options = {"neighbours": 5, "exact_up_to": 1000}
    found = search_embeddings(vectors, labels, OfflineOptions(), **options)
    counts = run.mined.list_images(tmp_path, table, vectors, found)
    names = run.mined.identities
    with open(tmp_path / "suspect_images.csv", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    wrong = rows[table.path_at(10)]
    assert wrong["identity"] == names[labels[10]] and wrong["other"] == names[7]
    assert float(wrong["own_cosine"]) < 0.5 < float(wrong["cosine"])
    assert counts["suspect_images"] == len(rows) <= 3
    with open(tmp_path / "alike_images.csv", newline="") as file:
        (pair,) = csv.DictReader(file)
    assert (pair["path"], pair["other_path"]) == (table.path_at(3), table.path_at(40))
    assert (pair["identity"], pair["other_identity"]) == (names[labels[3]], names[labels[40]])
    assert float(pair["cosine"]) > 0.999 and counts["alike_images"] == 1
    clean = people[labels] + 0.01 * torch.randn(72, 32, generator=generator)
    run.mined.list_images(
        tmp_path, table, clean, search_embeddings(clean, labels, OfflineOptions(), **options)
    )
    assert not (tmp_path / "suspect_images.csv").exists() and not (tmp_path / "alike_images.csv").exists()


def test_embeddings_that_are_not_finite_are_one_line(tmp_path):
    run = build_run(check_recipe(recipe(tmp_path), "r"), ONE)
    with torch.no_grad():
        next(run.embedder.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match=r"not finite \(72 such images\); has the training diverged"):
        offline.mine_offline(run, tmp_path, lambda: False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offline": {"every": 0}}, "data.sampler.offline.every: must be at least 1, not 0"),
        ({"offline": {"imgaes": 3}}, "data.sampler.offline: unknown option 'imgaes'; did you mean 'images'"),
        ({"offline": 3}, "data.sampler.offline: expected"),
        ({"offline": None}, "data.sampler.refresh: null searches for no neighbours"),
        ({"identities": 13}, "data.sampler.identities: 13 needs 13 identities, and the data has 12"),
        ({"share": 1.5}, "data.sampler.share: must be at least 0 and below 1, not 1.5"),
    ],
)
def test_wrong_options_name_their_path(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        train(check_recipe(recipe(tmp_path, sampler=changes), "r"), ONE)
    assert str(raised.value).count("\n") <= 1
    assert not (tmp_path / "mined").exists()


def test_the_log_tells_how_full_a_memory_is(tmp_path):
    values = recipe(tmp_path, sampler={"offline": None, "refresh": 4})
    values["objective"] = [{"loss": "softmax"}, {"loss": "contrastive", "memory": {"size": 20, "warmup": 4}}]
    train(check_recipe(values, "r"), ONE)
    full = [line["memory"]["contrastive"] for line in events(tmp_path / "mined", "step")]
    assert full[:4] == [0.4, 0.8, 1.0, 1.0] and len(full) == 27


def on_rank(world, values):
    with pytest.MonkeyPatch.context() as patch:
        found = {}
        for name, part in values.items():
            watch, kept = Watch(patch), []
            loop = trainer.Trainer._train
            patch.setattr(
                trainer.Trainer, "_train", lambda this, kept=kept, loop=loop: (kept.append(this), loop(this))
            )
            train(check_recipe(part, name), world)
            mined = timeless({"mined": kept[0].run.mined.state_dict()})
            found[name] = {"batches": watch.batches, "vectors": watch.vectors, "mined": mined}
            patch.undo()
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the runs in two processes, their recipes, and what the ranks noted."""
    folder = tmp_path_factory.mktemp("two")
    halves = {"identities": 2}
    values = {
        "offline": recipe(folder, "offline", sampler=halves),
        "steps": recipe(folder, "steps", sampler=halves | {"offline": None, "refresh": 4}),
        "apart": recipe(folder, "apart", sampler=halves, sync_batchnorm=False, images=144),
    }
    return folder, values, in_two_ranks(on_rank, values)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["offline", "steps", "apart"])
def test_two_processes_hold_the_same_and_share_no_identity(two, name):
    folder, values, ranks = two
    first, second = (found[name] for found in ranks)
    equal_to_the_bit(first["mined"], second["mined"])
    for (epoch, one), (_, other) in zip(first["vectors"], second["vectors"], strict=True):
        assert epoch in (1, 2) and torch.equal(one, other)
    assert len(first["vectors"]) == {"offline": 2, "steps": 0, "apart": 1}[name]
    table = Manifest.read(folder / name / "manifests" / "train.csv")
    labels = table.labels()
    for one, other in zip(first["batches"], second["batches"], strict=True):
        assert one[:2] == other[:2]
        assert not set(labels[one[2]]) & set(labels[other[2]])
    for epoch in range(values[name]["train"]["images"] // 72):
        rows = [
            row
            for part in (first, second)
            for number, _, batch in part["batches"]
            if number == epoch
            for row in batch
        ]
        assert set(labels[rows]) == set(range(12))
    equal_to_the_bit(timeless(final_state(folder / name)), first["mined"])


@pytest.mark.timeout(180)
def test_two_processes_mine_what_one_mines(two, tmp_path):
    _, _, ranks = two
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        train(check_recipe(recipe(tmp_path, "one"), "one"), ONE)
    for (_, one), (_, both) in zip(watch.vectors[:1], ranks[0]["offline"]["vectors"][:1], strict=True):
        assert_close(both.float(), one.float(), atol=5e-3, rtol=0)
    joined = [a + b for (*_, a), (*_, b) in zip(*(rank["offline"]["batches"] for rank in ranks), strict=True)]
    assert joined[:9] == [rows for *_, rows in watch.batches[:9]]
