import os

import pytest
import torch

from metricid.config import DataConfig, SplitConfig
from metricid.data.factory import build_splits, data_problems, pick_workers, split_table
from metricid.data.manifest import Manifest


@pytest.fixture
def market(write_images):
    """Five people who train, two who are tested, and distractors in the gallery."""
    names = [f"bounding_box_train/{i:04d}_c{c}s1_1.jpg" for i in range(1, 6) for c in (1, 2)]
    names += [f"query/{i:04d}_c1s1_1.jpg" for i in (11, 12)]
    names += [f"bounding_box_test/{i:04d}_c2s1_1.jpg" for i in (0, 11, 12)]
    return write_images(names)


def splits(root, **options):
    return build_splits(DataConfig(train="market1501", root=str(root), **options), make_queries=True)


def test_official_test_identities_never_train(market):
    done = splits(market, split=SplitConfig(train_identities=3))
    both = [*done.train.identity_names(), *done.test.identity_names()]
    assert sorted(both) == [f"{i:04d}" for i in range(1, 6)]
    assert len(done.train.identity_names()) == 3


def test_without_evaluation_rows_everybody_is_divided():
    table = Manifest.from_columns(list("abcd"), list("ABCD"), split=["small1"] * 2 + ["small2"] * 2)
    train, test = split_table(table, SplitConfig(train_identities=2))
    assert len(train) == len(test) == 2


@pytest.mark.parametrize(
    "split", [SplitConfig(train_identities=2), SplitConfig(train="gallery", test="gallery")]
)
def test_distractors_neither_train_nor_ask(write_images, split):
    names = [
        f"bounding_box_test/{i:04d}_c{c}s1_{n}.jpg" for i in (0, 1, 2, 3) for c in (1, 2) for n in (1, 2)
    ]
    done = splits(write_images(names), split=split)
    assert "0" not in done.train.identity_names()
    nobody = done.test.select(done.test.identities == "0")
    assert nobody.column("split").tolist() == ["gallery"] * 4
    assert (done.test.column("split") == "query").any()


def test_official_queries_and_distractors_without_a_split(market):
    done = splits(market)
    assert len(done.train.identity_names()) == 5
    assert dict(zip(done.test.identities, done.test.column("split"), strict=True))["0"] == "gallery"


def test_workers_share_the_cores_of_their_own_node(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert pick_workers(3, 16, cpu) == 3
    assert pick_workers("auto", 2, gpu) == pick_workers("auto", 2, cpu) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pick_workers("auto", 16, gpu) == 3


def test_no_workers_beside_a_network_that_needs_both_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(2), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert pick_workers("auto", 1, torch.device("cpu")) == 0
    assert pick_workers("auto", 1, torch.device("cuda")) == 1
    assert pick_workers(1, 1, torch.device("cpu")) == 1


def test_only_counts_of_a_sampler_must_be_above_zero():
    sampler = {"name": "hard_identity", "identities": 4, "images": 0, "ramp": 0, "warmup": 0, "share": 0}
    found = data_problems({"data": {"sampler": sampler | {"temperature": 0, "exact_up_to": 200_000}}})
    assert [path for path, _ in found] == ["data.sampler.images"]
