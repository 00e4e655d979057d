"""A recipe small enough to train within a test, and a folder in which it is changed and run."""

import copy
from pathlib import Path

import torch
import yaml

from metricid.training.build import check_recipe
from metricid.training.distributed import World
from metricid.training.session import train

RECIPE = {
    "name": "small",
    "data": {
        "train": "synthetic_faces",
        "size": [32, 32],
        "options": {"identities": 16, "images": 6},
        "split": {"train_identities": 12, "validation_identities": 3},
        "augment": {"preset": "face"},
        "sampler": {"name": "pk", "identities": 4, "images": 2},
        "workers": 0,
    },
    "model": {"backbone": "test_resnet", "neck": "bnneck"},
    "objective": [
        {"loss": "softmax", "label_smoothing": 0.1},
        {"loss": "triplet", "on": "features", "margin": None, "start": 0.25},
        {"loss": "center", "on": "features", "weight": 0.001, "update": "alpha"},
    ],
    "optim": {"lr": 0.001},
    "train": {"images": 96, "ema": 0.9, "precision": "fp32", "accumulate": 2},
    "evaluation": {"protocols": ["identification"], "every": 2},
    "checkpoint": {"every_steps": 2, "keep": 2},
    "log": {"every": 2},
}


class Small:
    """Makes, changes and runs the small recipe inside a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.values = copy.deepcopy(RECIPE) | {"runs": str(folder / "runs")}
        self.world = World(0, 1, torch.device("cpu"))

    def set(self, **paths):
        """Changes values; `data__workers=1` stands for `data.workers`."""
        for path, value in paths.items():
            *parents, last = path.split("__")
            node = self.values
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = value
        return self

    def config(self):
        return check_recipe(self.values, "small.yaml")

    def train(self):
        return train(self.config(), self.world)

    def write(self) -> Path:
        file = self.folder / "small.yaml"
        file.write_text(yaml.safe_dump(self.values))
        return file

    @property
    def run(self) -> Path:
        return self.folder / "runs" / self.values["name"]
