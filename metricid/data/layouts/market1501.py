"""Market-1501 (Zheng et al., ICCV 2015) and data sets that name their files in the same way."""

import posixpath
import re
from collections.abc import Sequence

from metricid.data.layouts.listing import check_names, image_paths
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource
from metricid.errors import InputError

EXPECTED = "0002_c1s1_000451_03.jpg = identity, camera, ..."
DISTRACTOR = "0"
_NAME = re.compile(r"(-?\d+)_c(\d+)")
_FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


def read(source: ImageSource) -> Manifest:
    """Identity, camera and split (`train`, `query`, `gallery`) of every image.

    Identities keep their digits as written (`0002`), cameras are plain numbers (`c012` is `12`). Identity -1
    (junk) is dropped everywhere; identity 0 is a distractor: kept as `"0"` in the gallery, where it never
    matches a query, and dropped elsewhere. Where the folders `bounding_box_train`, `query`,
    `bounding_box_test` exist, other folders (`gt_bbox`, ...) are ignored; without any of them all images are
    `train`.

    Raises:
        InputError: no images, none left, or file names of another form.
    """
    paths = image_paths(source, EXPECTED)
    folders = [posixpath.basename(posixpath.dirname(path)) for path in paths]
    if _FOLDERS.keys() & set(folders):
        listed = [(p, _FOLDERS[f]) for p, f in zip(paths, folders, strict=True) if f in _FOLDERS]
    else:
        listed = [(p, "train") for p in paths]
    found = [(path, split, _NAME.match(posixpath.basename(path))) for path, split in listed]
    check_names(source, [path for path, _, match in found if match is None], EXPECTED)
    rows = []
    for path, split, match in found:
        assert match is not None
        identity, camera = match.groups()
        if identity.startswith("-"):
            continue
        if int(identity) == 0:
            if split != "gallery":
                continue
            identity = DISTRACTOR
        rows.append((path, identity, str(int(camera)), split))
    if not rows:
        raise InputError(f"{source.name}: only junk images (identity -1 or 0); expected {EXPECTED}")
    path_column, identities, cameras, splits = (list(column) for column in zip(*rows, strict=True))
    return Manifest.from_columns(path_column, identities, camera=cameras, split=splits, name=source.name)


def named_identities(paths: Sequence[str]) -> int:
    """How many identities the names of files tell of; 0 if one of them has another form."""
    found = [_NAME.match(posixpath.basename(path)) for path in paths]
    return len({match.group(1) for match in found if match is not None}) if all(found) else 0
