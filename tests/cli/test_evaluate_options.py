"""Options of `metricid evaluate` that would have no effect are refused."""

import numpy as np
import pytest

from metricid.cli.main import main
from metricid.data import EmbeddingSet, Manifest


@pytest.fixture
def stored(tmp_path):
    names = [f"{i}.jpg" for i in range(8)]
    table = Manifest.from_columns(names, list("aabbccdd"))
    file = tmp_path / "e.parquet"
    EmbeddingSet(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), table, {}).write(file)
    return str(file)


def test_distractors_without_reid(stored, capfd):
    assert main(["evaluate", stored, "--distractors", "a"]) == 2
    assert "--distractors: only protocol reid has them, this is identification" in capfd.readouterr().err
    assert main(["evaluate", stored]) == 0


@pytest.mark.parametrize(
    "override", ["model.backbone=resnet50", "optim.lr=0.1", "seed=3", "data.size=[64,64]"]
)
def test_a_trained_model_is_not_changed_by_an_override(override, capfd):
    assert main(["evaluate", "runs/none", override]) == 2
    assert f"{override}: a trained model stays as it is" in capfd.readouterr().err


def test_data_and_evaluation_may_be_changed(capfd):
    assert main(["evaluate", "runs/none", "data.root=/moved", "evaluation.flip=false"]) == 2
    assert "runs/none: no such run folder or checkpoint; give" in capfd.readouterr().err


def test_more_workers_than_any_machine_wants(stored, capfd):
    assert main(["evaluate", "quickstart", "--baseline", "pixels", "--workers", "100000000"]) == 2
    assert "--workers: must be at most 512" in capfd.readouterr().err
