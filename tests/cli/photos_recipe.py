"""The recipe of a training on a handful of a test's photos."""

from pathlib import Path
from typing import Any

PEOPLE = ("ann", "bob", "eve", "kim", "lee")


def photos_recipe(folder: Path, name: str, **data: Any) -> dict[str, Any]:
    """A recipe that learns three of the people in `folder`/photos within a moment; `data`: more options."""
    return {
        "name": name,
        "runs": str(folder / "runs"),
        "data": {
            "train": "folder",
            "root": str(folder / "photos"),
            "split": {"train_identities": 3},
            "sampler": {"name": "pk", "identities": 3, "images": 2},
            "workers": 0,
            **data,
        },
        "model": {"backbone": "test_resnet"},
        "objective": [{"loss": "softmax"}],
        "train": {"images": 24, "precision": "fp32"},
        "evaluation": {"every": 0},
    }
