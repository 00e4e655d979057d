"""The small recipe inside a folder of its own."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from small_recipe import RECIPE

from metricid.training.build import check_recipe
from metricid.training.distributed import World
from metricid.training.session import train


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


@pytest.fixture
def small(tmp_path):
    return Small(tmp_path)
