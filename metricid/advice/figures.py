"""Figures of a table of images: how many of whom, how unevenly, seen by which cameras, in what shape."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
KINDS = ("faces", "people", "vehicles", "other")
PORTRAIT = 1.6  # height / width from which a crop is taken for a standing person; they are cut at about 2
SQUARE = (0.8, 1.25)
LANDSCAPE = 0.8
AGREEMENT = 0.8  # share of the sample that must have the same shape for a guess


@dataclass(frozen=True)
class Spread:
    """How N images spread over C identities.

    Attributes:
        images: N.
        identities: C.
        smallest: images of the smallest identity; `lower`, `median`, `upper` are the quartiles (observed
            values, the lower of two where one lies between), `largest` the maximum.
        mean: N / C.
        singletons: identities with one image.
        gini: 0 if all identities are equally large, towards 1 if one holds everything.
        top_1, top_10: share of the images held by the largest 1% and 10% of the identities (rounded up).
        imbalance: largest / smallest.
        effective: exp of the entropy of the shares (Hill, Ecology 1973, order 1): C if all are equally large.
        histogram: (fewest images, most images, identities) of bins that double.
    """

    images: int
    identities: int
    smallest: int
    lower: int
    median: int
    upper: int
    largest: int
    mean: float
    singletons: int
    gini: float
    top_1: float
    top_10: float
    imbalance: float
    effective: float
    histogram: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Cameras:
    """Which cameras took the images.

    Attributes:
        shares: share of the images of each camera, by name.
        unknown: images whose camera is not given.
        identities: those with a known camera.
        on_one: those of them that only one camera has seen.
        median: cameras that have seen an identity, in the middle.
    """

    shares: dict[str, float]
    unknown: int
    identities: int
    on_one: int
    median: int


@dataclass(frozen=True)
class Shapes:
    """Sizes of a sample of the images.

    Attributes:
        sampled: images that were read.
        unreadable: others that could not be.
        height, width: medians, in pixels.
        aspect: median of height / width.
        kind: what is probably shown, by the shape alone; `other` where shapes differ or say nothing.
    """

    sampled: int
    unreadable: int
    height: int
    width: int
    aspect: float
    kind: str


@dataclass(frozen=True)
class Figures:
    """All that an advice about a table is based on.

    Attributes:
        counts: [C] images of each identity, distractors left out.
        spread: of all these images.
        splits: (images, identities) by the value of the split column; None without one.
        split_counts: [C'] images of each identity within each split.
        shared: identities in more than one split; query, gallery and test count as one.
        cameras: None without a camera column.
        shapes: None where no image was read.
        distractor_images: images of names that stand for nobody.
    """

    counts: Counts
    spread: Spread
    splits: dict[str, tuple[int, int]] | None
    split_counts: dict[str, Counts]
    shared: int
    cameras: Cameras | None
    shapes: Shapes | None
    distractor_images: int

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values, without the arrays."""
        return {
            "spread": asdict(self.spread),
            "splits": self.splits
            and {k: {"images": a, "identities": b} for k, (a, b) in self.splits.items()},
            "identities_in_two_splits": self.shared if self.splits else None,
            "cameras": self.cameras and asdict(self.cameras),
            "shapes": self.shapes and asdict(self.shapes),
            "distractor_images": self.distractor_images,
        }


def describe(
    identities: Sequence[Any] | NDArray[Any],
    *,
    cameras: NDArray[Any] | None = None,
    splits: NDArray[Any] | None = None,
    distractors: Collection[str] = (),
    sides: NDArray[np.int64] | None = None,
    unreadable: int = 0,
) -> Figures:
    """The figures of N rows.

    Args:
        identities: [N] names.
        cameras: [N] names, empty where unknown.
        splits: [N] names.
        distractors: identities that stand for nobody; their images are counted apart.
        sides: [S, 2] (height, width) in pixels of a sample of the images.
        unreadable: further images of the sample that could not be read.

    Raises:
        ValueError: no row shows anybody.
    """
    names, codes = np.unique(np.asarray(identities, dtype=str), return_inverse=True)
    somebody = ~np.isin(names, list(distractors))[codes]
    if not somebody.any():
        raise ValueError("there is no image of an identity")
    codes = codes[somebody]
    present, codes = np.unique(codes, return_inverse=True)
    counts = np.bincount(codes, minlength=len(present)).astype(np.int64)
    parts: dict[str, Counts] = {}
    shared = 0
    if splits is not None:
        column = np.asarray(splits, dtype=str)[somebody]
        member = {
            str(name): np.bincount(codes[column == name], minlength=len(present)) for name in set(column)
        }
        parts = {name: member[name][member[name] > 0].astype(np.int64) for name in sorted(member)}
        shared = int((np.sum([m > 0 for m in _evaluated_as_one(member)], axis=0) > 1).sum())
    return Figures(
        counts=counts,
        spread=spread(counts),
        splits=None if splits is None else {k: (int(c.sum()), len(c)) for k, c in parts.items()},
        split_counts=parts,
        shared=shared,
        cameras=None if cameras is None else _cameras(codes, np.asarray(cameras, dtype=str)[somebody]),
        shapes=None if sides is None or not len(sides) else _shapes(sides, unreadable),
        distractor_images=int((~somebody).sum()),
    )


def spread(counts: Counts) -> Spread:
    """How images spread over identities.

    Args:
        counts: [C] images of each identity, all at least 1, C at least 1.
    """
    ordered = np.sort(counts)
    lower, median, upper = (int(q) for q in np.quantile(ordered, (0.25, 0.5, 0.75), method="lower"))
    shares = ordered / ordered.sum()
    return Spread(
        images=int(ordered.sum()),
        identities=len(ordered),
        smallest=int(ordered[0]),
        lower=lower,
        median=median,
        upper=upper,
        largest=int(ordered[-1]),
        mean=float(ordered.mean()),
        singletons=int((ordered == 1).sum()),
        gini=gini(ordered),
        top_1=top_share(ordered, 0.01),
        top_10=top_share(ordered, 0.1),
        imbalance=float(ordered[-1] / ordered[0]),
        effective=float(np.exp(-(shares * np.log(shares)).sum())),
        histogram=histogram(ordered),
    )


def gini(counts: Counts) -> float:
    """Mean difference of two identities' sizes over twice their mean size (Gini, 1912).

    Args:
        counts: [C].
    """
    ordered = np.sort(counts).astype(np.float64)
    rank = np.arange(1, len(ordered) + 1)
    return float(((2 * rank - len(ordered) - 1) * ordered).sum() / (len(ordered) * ordered.sum()))


def top_share(counts: Counts, part: float) -> float:
    """Share of the images held by the largest `part` of the identities, at least one of them."""
    most = max(1, math.ceil(part * len(counts) - 1e-9))
    return float(np.sort(counts)[-most:].sum() / counts.sum())


def histogram(counts: Counts) -> tuple[tuple[int, int, int], ...]:
    """(first, last, identities) of the bins 1, 2, 3-4, 5-8, 9-16, ... from the smallest to the largest."""
    place = np.ceil(np.log2(np.asarray(counts, np.float64))).astype(np.int64)
    found = np.bincount(place)
    return tuple(
        (2 ** (bin_ - 1) + 1 if bin_ else 1, 2**bin_, int(found[bin_]))
        for bin_ in range(int(place.min()), len(found))
    )


def _evaluated_as_one(member: Mapping[str, Counts]) -> list[Counts]:
    """Query and gallery are two sides of one test: an identity belongs in both."""
    tested = [m for name, m in member.items() if name in ("query", "gallery", "test")]
    others = [m for name, m in member.items() if name not in ("query", "gallery", "test")]
    return [*others, *([np.sum(tested, axis=0)] if tested else [])]


def _cameras(codes: Counts, names: NDArray[Any]) -> Cameras | None:
    known = names != ""
    if not known.any():
        return None
    cameras, which = np.unique(names[known], return_inverse=True)
    images = np.bincount(which)
    pairs = np.unique(codes[known] * len(cameras) + which)
    seen_by = np.bincount(pairs // len(cameras))
    seen_by = seen_by[seen_by > 0]
    return Cameras(
        shares={str(name): float(n / known.sum()) for name, n in zip(cameras, images, strict=True)},
        unknown=int((~known).sum()),
        identities=len(seen_by),
        on_one=int((seen_by == 1).sum()),
        median=int(np.quantile(seen_by, 0.5, method="lower")),
    )


def _shapes(sides: NDArray[np.int64], unreadable: int) -> Shapes:
    height, width = (int(side) for side in np.median(sides, axis=0))
    aspects = sides[:, 0] / sides[:, 1]
    tests = {
        "people": aspects >= PORTRAIT,
        "faces": (aspects >= SQUARE[0]) & (aspects <= SQUARE[1]),
        "vehicles": aspects < LANDSCAPE,
    }
    kind = next((kind for kind, fits in tests.items() if fits.mean() >= AGREEMENT), "other")
    return Shapes(len(sides), unreadable, height, width, float(np.median(aspects)), kind)
