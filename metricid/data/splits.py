"""Splits by identity: nobody is on both sides."""

import random
from collections.abc import Collection

import numpy as np

from metricid.data.manifest import Manifest
from metricid.errors import InputError


def split_identities(
    manifest: Manifest, train: int | float, seed: int, min_images: int = 1, distractors: Collection[str] = ()
) -> tuple[Manifest, Manifest]:
    """Splits a manifest so that no identity is in both parts.

    The identity names with at least `min_images` images are sorted and shuffled with `random.Random(seed)`;
    the first ones train, the rest test. Rows keep their order; the column `split` says `train` or `test`.

    Args:
        manifest: any.
        train: how many identities train: a number, or a fraction between 0 and 1 (rounded to the nearest).
        seed: of the shuffle.
        min_images: identities with fewer images are in neither part.
        distractors: names that stand for nobody, such as "0" in Market-1501; their rows are in the test part
            and do not count as an identity.

    Returns:
        The training part and the test part.

    Raises:
        InputError: one of the parts would be empty.
    """
    names, place = manifest.identity_names(), manifest.labels()
    counts = np.bincount(place, minlength=len(names))
    usable = [
        name
        for name, count in zip(names, counts, strict=True)
        if count >= min_images and name not in distractors
    ]
    count = round(train * len(usable)) if isinstance(train, float) else train
    if not 0 < count < len(usable):
        raise InputError(
            f"{manifest.name}: cannot put {train} of {len(usable)} identities (those with {min_images} or "
            "more images) into training and keep some for the test; choose another number"
        )
    random.Random(seed).shuffle(usable)
    chosen, tested = set(usable[:count]), {*usable[count:], *distractors}
    part = np.array([1 if name in chosen else 2 if name in tested else 0 for name in names], np.int64)[place]
    return (
        manifest.select(part == 1).with_column("split", "train"),
        manifest.select(part == 2).with_column("split", "test"),
    )


def query_gallery(test: Manifest, distractors: Collection[str] = ()) -> Manifest:
    """Sets `split`: `query` for the first image by name of each (identity, camera), `gallery` for the rest.

    Args:
        test: with cameras.
        distractors: names that stand for nobody: all of their images are `gallery`.

    Raises:
        InputError: the manifest has no cameras.
    """
    cameras = test.column("camera")
    if cameras is None:
        raise InputError(
            f"{test.name}: has no column 'camera', which decides the queries; add it or use leave-one-out"
        )
    paths, identities = test.paths, test.identities
    split = np.full(len(test), "gallery", object)
    seen: set[tuple[str, str]] = set()
    for row in sorted(range(len(test)), key=paths.__getitem__):
        pair = (identities[row], cameras[row])
        if pair not in seen and identities[row] not in distractors:
            seen.add(pair)
            split[row] = "query"
    return test.with_column("split", split)
