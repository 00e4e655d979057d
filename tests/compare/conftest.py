"""A small recipe, and comparisons whose results are made up."""

import copy
import json

import pytest

from metricid.comparison.entries import Entry
from metricid.comparison.plan import Plan
from metricid.evaluation import ProtocolResult
from metricid.training.build import check_recipe

RECIPE = {
    "name": "tiny",
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
    "objective": [{"loss": "softmax", "label_smoothing": 0.1}, {"loss": "supcon", "weight": 0.5}],
    "train": {"images": 96, "precision": "fp32"},
    "evaluation": {"protocols": ["identification", "verification"]},
    "log": {"every": 1},
}


@pytest.fixture
def recipe():
    return copy.deepcopy(RECIPE)


@pytest.fixture
def plan(tmp_path, recipe):
    entries = tuple(Entry(name, [{"loss": name}]) for name in ("softmax", "supcon", "arcface"))
    return Plan(tmp_path / "compare_tiny", check_recipe(recipe, "tiny").plain(), entries, (0, 1, 2), 96)


@pytest.fixture
def results():
    """Writes what a finished run leaves: rank-1 as given, the rest made up from it."""

    def write(run, rank1, *, unsupported=()):
        found = [
            ProtocolResult("identification", "cosine", {"rank-1": rank1, "mAP": rank1 / 2}, {"queries": 24}),
            ProtocolResult(
                "verification",
                "all pairs",
                {"TAR@FAR=0.1": 0.9, "TAR@FAR=0.01": rank1 / 4, "TAR@FAR=0.001": 0.01, "EER": 0.2},
                {"impostor pairs": 5000},
                unsupported=list(unsupported),
            ),
        ]
        values = {"images_per_second": 100.0, "train_seconds": 9.6, "results": [r.to_json() for r in found]}
        run.folder.mkdir(parents=True)
        (run.folder / "results.json").write_text(json.dumps(values))
        (run.folder / "results.txt").write_text("a table")
        (run.folder / "usage.json").write_text(json.dumps({"process_bytes": 2**29, "gpu_bytes": 0}))

    return write
