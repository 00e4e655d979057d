"""A run on photos of five people, and `metricid search` beside it."""

import json
import re

import cv2
import numpy as np
import pytest
import yaml
from photos_recipe import PEOPLE, photos_recipe

from metricid.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Photos of five people, a run trained on them for a moment, and their embeddings."""
    folder = tmp_path_factory.mktemp("trained")
    random = np.random.default_rng(0)
    for person in PEOPLE:
        (folder / "photos" / person).mkdir(parents=True)
        base = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        for number in range(4):
            noisy = np.clip(base.astype(int) + random.integers(-30, 30, base.shape), 0, 255).astype(np.uint8)
            image = cv2.resize(noisy, (32, 32), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(folder / "photos" / person / f"{number}.png"), image)
    recipe = photos_recipe(folder, "shop", size=[32, 32])
    (folder / "shop.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "shop.yaml")]) == 0
    for name, flags in (("photos", ["--flip"]), ("plain", [])):
        words = ["embed", str(folder / "runs" / "shop"), str(folder / "photos"), *flags]
        assert main([*words, "-o", str(folder / f"{name}.parquet"), "--workers", "0"]) == 0
    return folder


class Shop:
    """Runs the command and keeps what it said."""

    def __init__(self, folder, trained, capfd):
        self.folder, self.trained, self._capfd = folder, trained, capfd
        self.run = str(trained / "runs" / "shop")
        self.embeddings = str(trained / "photos.parquet")
        self.photos = trained / "photos"
        self.index = str(folder / "people.index")

    def search(self, *words):
        self._capfd.readouterr()
        code = main(["search", *map(str, words)])
        self.out, self.err = self._capfd.readouterr()
        return code

    def ok(self, *words):
        assert self.search(*words) == 0, self.err
        return self.out

    def json(self, *words):
        return json.loads(self.ok(*words, "--json"))

    def refused(self, *words, says):
        assert self.search(*words) == 2
        said = [line for line in re.split(r"[\r\n]+", self.err) if line.startswith("metricid")]
        assert len(said) == 1 and "Traceback" not in self.err, self.err
        assert re.search(says, said[0]), said[0]
        assert self.out == ""

    def build(self, *words):
        return self.json("build", self.embeddings, "-o", self.index, *words)


@pytest.fixture
def shop(tmp_path, trained, capfd):
    return Shop(tmp_path, trained, capfd)
