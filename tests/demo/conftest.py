"""A small trained run on generated faces, and what the page shows of it."""

import copy

import numpy as np
import pytest
import torch

from metricid.data.synthetic import SyntheticFaces
from metricid.training.build import check_recipe
from metricid.training.distributed import World
from metricid.training.session import train

RECIPE = {
    "name": "small",
    "data": {
        "train": "synthetic_faces",
        "size": [32, 32],
        "options": {"identities": 30, "images": 6},
        "split": {"train_identities": 14, "validation_identities": 2},
        "sampler": {"name": "pk", "identities": 4, "images": 4},
        "workers": 0,
    },
    "model": {"backbone": "test_resnet", "neck": "bnneck"},
    "objective": [{"loss": "softmax"}, {"loss": "triplet", "on": "features", "margin": None}],
    "optim": {"lr": 0.002},
    "train": {"images": 320, "precision": "fp32"},
    "evaluation": {"protocols": ["identification"]},
}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """The folder of a trained run."""
    folder = tmp_path_factory.mktemp("demo")
    config = check_recipe(copy.deepcopy(RECIPE) | {"runs": str(folder)}, "small.yaml")
    train(config, World(0, 1, torch.device("cpu")))
    return folder / "small"


@pytest.fixture(scope="session")
def faces() -> SyntheticFaces:
    """The images of the run."""
    return SyntheticFaces(identities=30, images=6, size=(32, 32))


@pytest.fixture
def people():
    """Embeddings of 12 people with 4 images each, near their centres, and the names."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(12, 8)).repeat(4, axis=0)
    vectors = centres + 0.8 * random.normal(size=centres.shape)
    return vectors.astype(np.float32), np.array([f"p{i:02d}" for i in range(12)], object).repeat(4)
