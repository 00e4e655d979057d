"""The commands on real faces and real people: counts of the protocols, and results computed another way."""

import json

import numpy as np
import pytest
from sklearn.model_selection import KFold

from metricid.cli.main import main
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.sources import open_source
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing, embedder_to_dict
from metricid.training.checkpoint import seed_everything, write_checkpoint

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def checkpoint(tmp_path):
    seed_everything(0)
    embedder = Embedder(EmbedderConfig("test_resnet", Preprocessing((32, 32))))
    config = {
        "name": "untrained",
        "data": {"train": "synthetic_faces", "size": [32, 32]},
        "objective": [{"loss": "softmax"}],
        "train": {"images": 1},
    }
    state = {"embedder": embedder_to_dict(embedder.config), "model": embedder.state_dict(), "ema": None}
    write_checkpoint(tmp_path / "untrained.pt", state | {"config": config})
    return tmp_path / "untrained.pt"


def by_definition(vectors, pairs, same):
    """10-fold accuracy by a plain loop over thresholds."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = ((unit[pairs[:, 0]] - unit[pairs[:, 1]]) ** 2).sum(1)
    thresholds = np.arange(0, 4, 0.01)
    accuracies = []
    for train, test in KFold(10).split(distance):
        right = [((distance[train] < t) == same[train]).mean() for t in thresholds]
        accuracies.append(((distance[test] < thresholds[int(np.argmax(right))]) == same[test]).mean())
    return float(np.mean(accuracies)), float(np.std(accuracies))


def test_the_lfw_protocol_from_a_checkpoint_to_ten_folds(real_data, checkpoint, tmp_path, capfd):
    stored = tmp_path / "lfw.npy"
    data = ["--layout", "lfw", "--root", str(real_data / "lfw_aligned112.tar")]
    code = main(["evaluate", str(checkpoint), *data, "--flip", "--save-embeddings", str(stored), "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    (result,) = json.loads(out)["results"]
    assert (result["counts"]["genuine pairs"], result["counts"]["impostor pairs"]) == (3000, 3000)
    saved = EmbeddingSet.read(stored)
    assert len(saved) == 13233
    row = {path: i for i, path in enumerate(saved.table.paths)}
    lines = open_source(real_data / "lfw_aligned112.tar").read_bytes("pairs.txt").decode().splitlines()[1:]
    pairs, same = [], []
    for line in lines:
        words = line.split()
        names = [words[0], words[0]] if len(words) == 3 else [words[0], words[2]]
        numbers = [words[1], words[-1]]
        pairs.append([row[f"{n}/{n}_{int(i):04d}.jpg"] for n, i in zip(names, numbers, strict=True)])
        same.append(len(words) == 3)
    mean, std = by_definition(saved.embeddings.astype(np.float64), np.array(pairs), np.array(same))
    assert result["metrics"]["accuracy"] == pytest.approx(mean, abs=2e-3)
    assert result["metrics"]["accuracy std"] == pytest.approx(std, abs=2e-3)
    assert 0.5 < mean < 0.8


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [
        ("market_r18_cpu", {"queries": 668, "gallery": 2006, "identities": 151, "cameras": 6}),
        ("omniglot", {"queries": 2120, "gallery": 2120, "identities": 106}),
    ],
)
def test_recipes_of_real_data_have_the_counts_of_their_split(real_data, recipe, counts, capfd):
    assert main(["evaluate", recipe, "--baseline", "pixels", "--json"]) == 0
    (result,) = json.loads(capfd.readouterr().out)["results"]
    found = result["counts"]
    found["queries"] += found["queries without positive"]
    assert counts.items() <= found.items()
    measure = "Recall@1" if recipe == "omniglot" else "rank-1"
    assert 0.005 < result["metrics"][measure] < 0.6
