"""Probably wrong labels beside pictures: of a run's own list, and of embeddings."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metricid._version import __version__
from metricid.errors import InputError
from metricid.mining.noise import GAP
from metricid.mining.suspects import Suspects, find_suspects, typical_images
from metricid.report.pictures import Picture, Shown, encode_pictures
from metricid.report.templating import fill

TYPICAL = 3  # pictures that stand for an identity
PICTURE_BYTES = 800_000  # of the lists of one set in a report
ALONE_BYTES = 7_000_000  # of a page that shows nothing else
MOST_TOP = 100

Read = Callable[[str], np.ndarray | None]


@dataclass(frozen=True)
class Person:
    """An identity and what it looks like."""

    name: str
    images: Sequence[Shown]


@dataclass(frozen=True)
class AlikePair:
    """Two identities that are probably one."""

    first: Person
    second: Person
    cosine: float


@dataclass(frozen=True)
class StrayImage:
    """An image beside its own identity and beside the one that it is nearest to.

    Attributes:
        image: it.
        rest: its own identity.
        own: cosine to the other images of that.
        other: the nearest other identity.
        cosine: cosine to that.
    """

    image: Shown
    rest: Person
    own: float
    other: Person
    cosine: float


@dataclass(frozen=True)
class SuspectView:
    """Lists as a page shows them, the most suspect first.

    Attributes:
        about: among which images; the start of a sentence.
        guard: the cosine above which pairs are listed; None where a run chose it.
        gap: by which another identity is nearer; None where images were not judged.
        pairs: identities that are probably one.
        all_pairs: number of those, shown or not.
        images: probably wrong labels.
        all_images: likewise.
        far: images far from everybody.
        all_far: likewise.
        pictured: number of different pictures.
    """

    about: str
    guard: float | None = None
    gap: float | None = None
    pairs: Sequence[AlikePair] = ()
    all_pairs: int = 0
    images: Sequence[StrayImage] = ()
    all_images: int = 0
    far: Sequence[StrayImage] = ()
    all_far: int = 0
    pictured: int = field(default=0, repr=False)


def show_suspects(
    found: Suspects,
    gap: float,
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    names: Sequence[str],
    paths: Sequence[str],
    read: Read | None,
    *,
    about: str,
    top: int,
    budget: int = PICTURE_BYTES,
) -> SuspectView:
    """The first of each list, with the most typical images of the identities in it.

    Args:
        found: the lists.
        gap: that they were made with.
        embeddings: [N, D] that they are of.
        labels: [N] place of each identity among the names.
        names: [C] of the identities.
        paths: [N].
        read: path -> [H, W, 3] uint8 RGB, or None where it cannot be read; None for a page without pictures.
        about: see `SuspectView`.
        top: entries of each list.
        budget: bytes of the pictures.
    """
    pairs = found.pairs[:top].tolist()
    strays = [
        list(
            zip(
                *(part[:top].tolist() for part in (kind.rows, kind.own, kind.other, kind.cosine)), strict=True
            )
        )
        for kind in (found.images, found.far)
    ]
    wanted = [name for pair in pairs for name in pair]
    wanted += [name for row, _, other, _ in strays[0] + strays[1] for name in (int(labels[row]), other)]
    typical = typical_images(
        torch.from_numpy(embeddings),
        torch.from_numpy(labels),
        torch.tensor(wanted, dtype=torch.int64),
        TYPICAL + 1,
        leave_out=torch.cat([found.images.rows, found.far.rows]),
    )

    def faces(code: int, without: int = -1) -> list[str]:
        return [paths[row] for row in typical[code] if row != without][:TYPICAL]

    places = [path for pair in pairs for code in pair for path in faces(code)]
    for row, _, other, _ in strays[0] + strays[1]:
        places += [paths[row], *faces(int(labels[row]), row), *faces(other)]
    pictures = {} if read is None else encode_pictures(read, places, budget)

    def person(code: int, without: int = -1) -> Person:
        return _person(names[code], faces(code, without), pictures)

    def stray(row: int, own: float, other: int, cosine: float) -> StrayImage:
        mine = int(labels[row])
        image = Shown(names[mine], paths[row], "", pictures.get(paths[row]))
        return StrayImage(image, person(mine, row), own, person(other), cosine)

    return SuspectView(
        about,
        found.guard,
        gap,
        [
            AlikePair(person(a), person(b), c)
            for (a, b), c in zip(pairs, found.cosines[:top].tolist(), strict=True)
        ],
        len(found.pairs),
        [stray(*entry) for entry in strays[0]],
        len(found.images),
        [stray(*entry) for entry in strays[1]],
        len(found.far),
        len(pictures),
    )


def suspects_of(
    embeddings: NDArray[np.float32],
    identities: NDArray[Any],
    paths: Sequence[str],
    read: Read | None,
    *,
    about: str,
    top: int,
    ignore: Sequence[str] = (),
) -> SuspectView | None:
    """Searches embeddings for probably wrong labels, at the default guard and gap.

    Args:
        embeddings: [N, D].
        identities: [N] names.
        paths: [N].
        read: as in `show_suspects`.
        about: see `SuspectView`.
        top: entries of each list.
        ignore: identities that stand for nobody.

    Returns:
        None where nothing is suspect, or nothing can be said: one identity, or one image of each.
    """
    keep = np.flatnonzero(~np.isin(identities, list(ignore)))
    names, labels = np.unique(identities[keep].astype(str), return_inverse=True)
    if len(names) < 2 or len(names) == len(keep):
        return None
    vectors = embeddings[keep]
    found = find_suspects(torch.from_numpy(vectors), torch.from_numpy(labels))
    if not len(found):
        return None
    kept = [paths[row] for row in keep.tolist()]
    return show_suspects(found, GAP, vectors, labels, names.tolist(), kept, read, about=about, top=top)


def read_pairs(
    file: Path, identities: Sequence[str], paths: Sequence[str], read: Read | None, *, about: str, top: int
) -> SuspectView | None:
    """The pairs that a training lists, with the first images of each identity.

    Args:
        file: its `suspects.csv`.
        identities: [N] of the images that it trained on; empty where they are not known.
        paths: [N].
        read: as in `show_suspects`.
        about: see `SuspectView`.
        top: pairs.

    Returns:
        None where there is no file, or no pair in it.

    Raises:
        InputError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        with open(file, newline="", encoding="utf-8") as text:
            rows = [(r["identity"], r["other"], float(r["cosine"])) for r in csv.DictReader(text)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{file}: damaged; remove it, or train the run again") from error
    if not rows:
        return None
    wanted = {name for row in rows[:top] for name in row[:2]}
    faces = _first(identities, paths, wanted)
    places = [path for row in rows[:top] for name in row[:2] for path in faces[name]]
    pictures = {} if read is None else encode_pictures(read, places, PICTURE_BYTES)
    pairs = [
        AlikePair(_person(one, faces[one], pictures), _person(two, faces[two], pictures), cosine)
        for one, two, cosine in rows[:top]
    ]
    return SuspectView(about, pairs=pairs, all_pairs=len(rows), pictured=len(pictures))


def render_suspects(view: SuspectView, title: str, notes: Iterable[str], made: str) -> str:
    """A page of these lists alone."""
    return fill(
        "suspects.html", title=title, suspects=[view], notes=list(notes), made=made, version=__version__
    )


def _first(identities: Sequence[str], paths: Sequence[str], wanted: set[str]) -> dict[str, list[str]]:
    faces: dict[str, list[str]] = {name: [] for name in wanted}
    for name, path in zip(identities, paths, strict=True):
        if name in wanted and len(faces[name]) < TYPICAL:
            faces[name].append(path)
    return faces


def _person(name: str, paths: Iterable[str], pictures: Mapping[str, Picture]) -> Person:
    return Person(name, [Shown(name, path, "", pictures.get(path)) for path in paths])
