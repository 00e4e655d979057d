"""Labeled Faces in the Wild (Huang et al., 2007): `Name/Name_0001.jpg` and `pairs.txt`."""

import posixpath
import re
from typing import NamedTuple

import numpy as np

from metricid.data.layouts.listing import check_names, image_paths
from metricid.data.manifest import Manifest
from metricid.data.sources import FolderSource, ImageSource, TarSource
from metricid.errors import InputError

EXPECTED = "Name/Name_0001.jpg"
_NUMBER = re.compile(r"(.+)_(\d{4,})\.[^.]+")


class Pairs(NamedTuple):
    """N pairs of manifest rows: a [N], b [N] int64, same [N] bool, fold [N] int64 from 0."""

    a: np.ndarray
    b: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def read(source: ImageSource) -> Manifest:
    """The identity is the folder's name, which the file's name repeats.

    Raises:
        InputError: no images, or file names of another form.
    """
    paths = image_paths(source, EXPECTED)
    identities = [posixpath.basename(posixpath.dirname(path)) for path in paths]
    wrong = []
    for path, identity in zip(paths, identities, strict=True):
        match = _NUMBER.fullmatch(posixpath.basename(path))
        if not identity or match is None or match.group(1) != identity:
            wrong.append(path)
    check_names(source, wrong, EXPECTED)
    return Manifest.from_columns(paths, identities, name=source.name)


def read_pairs(source: FolderSource | TarSource, manifest: Manifest, file: str = "pairs.txt") -> Pairs:
    """Reads the pair list of the verification protocol.

    First line: number of folds and of pairs of each kind per fold (`10 300`). Then, fold by fold, the genuine
    pairs (`name i j`) and the impostor pairs (`name1 i name2 j`), separated by tabs or spaces.

    Args:
        source: has `file`.
        manifest: as `read` makes it.
        file: path of the list within the source.

    Raises:
        InputError: names the line that has another form, or an image that the manifest lacks.
    """
    where = f"{source.name}/{file}"
    try:
        lines = source.read_bytes(file).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text") from None
    header = lines[0].split() if lines else []
    if not 1 <= len(header) <= 2 or not all(word.isdigit() and int(word) > 0 for word in header):
        raise InputError(f"{where}: line 1 must be 'folds pairs' such as '10 300'")
    folds, each = (int(header[0]), int(header[1])) if len(header) == 2 else (1, int(header[0]))
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) - 1 != 2 * folds * each:
        raise InputError(
            f"{where}: {len(lines) - 1} pairs, but line 1 promises {folds} x 2 x {each}; "
            "the file is cut off or edited"
        )
    rows = _rows_by_number(manifest)
    a, b = np.empty((2, len(lines) - 1), np.int64)
    for place, line in enumerate(lines[1:]):
        genuine = place % (2 * each) < each
        words = line.split()
        if len(words) != (3 if genuine else 4):
            form = "'name i j' (same person)" if genuine else "'name1 i name2 j' (two people)"
            raise InputError(f"{where}: line {place + 2} must be {form}, but is {line!r}")
        first, second = (words[0], words[1]), (words[0], words[2]) if genuine else (words[2], words[3])
        for side, (name, number) in ((a, first), (b, second)):
            if not number.isdigit():
                raise InputError(f"{where}: line {place + 2}: {number!r} is not an image number")
            row = rows.get((name, int(number)))
            if row is None:
                raise InputError(
                    f"{where}: line {place + 2}: {name}_{int(number):04d} is not in {manifest.name}"
                )
            side[place] = row
    number_of = np.arange(len(lines) - 1)
    return Pairs(a, b, number_of % (2 * each) < each, number_of // (2 * each))


def _rows_by_number(manifest: Manifest) -> dict[tuple[str, int], int]:
    rows = {}
    for row, path in enumerate(manifest.paths):
        match = _NUMBER.fullmatch(posixpath.basename(path))
        if match is not None:
            rows[match.group(1), int(match.group(2))] = row
    return rows
