"""Omniglot (Lake et al., Science 2015): `images_<set>/<alphabet>/<character>/<drawing>.png`."""

import re

import numpy as np

from metricid.data.layouts.listing import check_names, image_paths
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource

EXPECTED = "images_background/Alphabet/character01/0108_01.png"
_PATH = re.compile(r"(?:.*/)?images_([^/]+)/([^/]+)/([^/]+)/[^/]+")


def read(source: ImageSource, disjoint: bool = True) -> Manifest:
    """A character is an identity, named `Alphabet/character01`; its alphabet is the `group`.

    `split` is the set's name without `images_` and `background_`: `small1`, `small2`, `background`,
    `evaluation`.

    Args:
        source: a folder or an archive.
        disjoint: keep each character in the first set (by name) only. The two small sets share the Greek and
            Latin drawings file by file, so that testing on one after training on the other would test on
            training images.

    Raises:
        InputError: no images, or paths of another form.
    """
    paths = image_paths(source, EXPECTED)
    matches = [_PATH.fullmatch(path) for path in paths]
    check_names(source, [p for p, m in zip(paths, matches, strict=True) if m is None], EXPECTED)
    rows = [m.groups() for m in matches if m is not None]
    identities = [f"{alphabet}/{character}" for _, alphabet, character in rows]
    manifest = Manifest.from_columns(
        paths,
        identities,
        split=[name.removeprefix("background_") for name, _, _ in rows],
        group=[alphabet for _, alphabet, _ in rows],
        name=source.name,
    )
    if not disjoint:
        return manifest
    first: dict[str, str] = {}
    for (name, _, _), identity in zip(rows, identities, strict=True):
        first.setdefault(identity, name)  # paths are sorted, and with them the sets
    kept = [first[identity] == name for (name, _, _), identity in zip(rows, identities, strict=True)]
    return manifest.select(np.array(kept))
