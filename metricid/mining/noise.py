"""Labels that are probably wrong, from one embedding of each image.

An identity is represented by its center, the mean direction of its images. Two centers that are too alike are
probably one person under two names; an image that is nearer to the center of another identity than to its own
probably has the wrong name; an image that is near to nobody is probably broken. All three are lists for a
person to look at: a model that confuses two people lists them, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metricid.mining.guard import alike_pairs
from metricid.mining.neighbours import CHUNK, EXACT_UP_TO, find_neighbours
from metricid.mining.topk import CELLS_CPU, CELLS_OTHER, ROWS_CPU, ROWS_OTHER, hide

__all__ = [
    "GAP",
    "Comparison",
    "SuspectImages",
    "compare_images",
    "far_images",
    "identity_sums",
    "pick_suspects",
    "suspect_images",
    "suspect_pairs",
    "unit_rows",
]

GAP = 0.2  # docs/suspects.md says what it finds
FAR_SHARE = 0.01
_ROUNDING = 2**-11  # of a cosine in a table of neighbours, near 1


@dataclass(frozen=True)
class Comparison:
    """Each image beside its own identity and beside the nearest other one; all on the CPU.

    Attributes:
        own: [N] float32 cosine to the center of the other images of its identity; NaN where it has none.
        other: [N] int64 the identity, not its own, whose center is nearest; -1 where there is none.
        cosine: [N] float32 cosine to that center; minus infinity where there is none.
    """

    own: Tensor
    other: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class SuspectImages:
    """Images of a list, the most suspect first; all on the CPU.

    Attributes:
        rows: [S] int64, rows of the embeddings.
        own: [S] float32 cosine to the rest of their own identity.
        other: [S] int64 the other identity.
        cosine: [S] float32 cosine to it.
    """

    rows: Tensor
    own: Tensor
    other: Tensor
    cosine: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def suspect_images(
    embeddings: Tensor,
    labels: Tensor,
    *,
    apart: Tensor | None = None,
    gap: float = GAP,
    identities: int | None = None,
    device: torch.device | str | None = None,
    advance: Callable[[int], Any] | None = None,
) -> SuspectImages:
    """Images that are far from their own identity and near another: probably wrong labels.

    An image is listed if its cosine to the center of another identity exceeds that to the center of the
    other images of its own by more than `gap`. The only image of an identity has nothing to be far from and
    is never listed; `suspect_pairs` finds it if it resembles somebody. Time is O(N x C x D); memory beyond
    the embeddings is one vector per identity, three numbers per image and a block of scores.

    Args:
        embeddings: [N, D], any float dtype, any length, on any device; they are not copied as a whole.
        labels: [N] int64 in [0, C), on any device.
        apart: [S, 2] pairs of identities that are probably one, from `suspect_pairs` or `alike_pairs`;
            neither counts as another identity for the images of the other, which all of them would resemble.
        gap: difference of the two cosines above which an image is listed, in [0, 2).
        identities: C; largest label + 1 if None.
        device: where the scores are computed; that of the embeddings if None.
        advance: is told of so many images more that are done.

    Returns:
        The images, the largest difference first; of equal ones the smaller row.

    Raises:
        ValueError: shapes disagree, a label is outside [0, C), a gap outside its range, or a value is not
            finite.

    Example:
        >>> vectors = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0, 1], [0.1, 1], [1, 0]])
        >>> found = suspect_images(vectors, torch.tensor([0, 0, 0, 1, 1, 0]))
        >>> found.rows.tolist(), found.other.tolist()
        ([2], [1])
    """
    if not 0 <= gap < 2:
        raise ValueError(f"gap must be at least 0 and below 2, not {gap}")
    found = compare_images(
        embeddings, labels, apart=apart, identities=identities, device=device, advance=advance
    )
    return pick_suspects(found, gap)


def pick_suspects(found: Comparison, gap: float = GAP) -> SuspectImages:
    """The list of `suspect_images` from a comparison."""
    return _listed(found, found.cosine - found.own > gap, found.own - found.cosine)


def far_images(found: Comparison) -> SuspectImages:
    """Images that are far from everybody: probably broken, empty or of nobody in the set.

    The bar comes from the set itself: the cosine that 99% of the images exceed beside the nearest *other*
    identity. Listed are those that reach it neither there nor beside their own. Only images of identities
    with two or more are judged.

    Args:
        found: from `compare_images`.

    Returns:
        The images, the farthest first; of equally far ones the smaller row.
    """
    judged = ~found.own.isnan() & (found.other >= 0)
    if not bool(judged.any()):
        return _listed(found, judged, found.own)
    place = int(FAR_SHARE * int(judged.sum()))
    bar = found.cosine[judged].sort().values[place]
    nearest = torch.maximum(found.own, found.cosine)
    return _listed(found, judged & (nearest < bar), nearest)


def _listed(found: Comparison, chosen: Tensor, order: Tensor) -> SuspectImages:
    """The chosen [N], the smallest of an order [N] first."""
    rows = chosen.nonzero().squeeze(1)
    rows = rows[order[rows].argsort(stable=True)]
    return SuspectImages(rows, found.own[rows], found.other[rows], found.cosine[rows])


@torch.no_grad()
def compare_images(
    embeddings: Tensor,
    labels: Tensor,
    *,
    apart: Tensor | None = None,
    identities: int | None = None,
    device: torch.device | str | None = None,
    advance: Callable[[int], Any] | None = None,
) -> Comparison:
    """Each image's cosine to the rest of its own identity, and to the nearest other identity.

    Args and errors are those of `suspect_images`. Exact up to rounding.
    """
    place = torch.device(device) if device is not None else embeddings.device
    sums, counts = identity_sums(embeddings, labels, identities, device=place)
    labels, number, known = labels.to(place), len(counts), counts > 0
    hidden = None if bool(known.all()) else ~known
    centers = unit_rows(sums)
    pairs = None if apart is None else _Apart(apart.to(place), number)
    high = ROWS_CPU if place.type == "cpu" else ROWS_OTHER
    wide = max((CELLS_CPU if place.type == "cpu" else CELLS_OTHER) // high, 1)
    own, cosine = (torch.empty(len(labels)) for _ in range(2))
    other = torch.empty(len(labels), dtype=torch.int64)
    for first in range(0, len(labels), high):
        rows = slice(first, first + high)
        unit, mine = unit_rows(embeddings[rows].to(place)), labels[rows]
        rest = sums[mine] - unit
        near = (unit * unit_rows(rest)).sum(dim=1)
        own[rows] = near.masked_fill(counts[mine] < 2, torch.nan).cpu()
        best = unit.new_full((len(mine),), -torch.inf)
        who = torch.full_like(mine, -1)
        barred = None if pairs is None else pairs.of(mine)
        for left in range(0, number, wide):
            scores = unit @ centers[left : left + wide].T
            hide(scores, mine, left, hidden)
            if barred is not None:
                inside = (barred[1] >= left) & (barred[1] < left + wide)
                scores[barred[0][inside], barred[1][inside] - left] = -torch.inf
            value, column = scores.max(dim=1)
            better = value > best
            best, who = torch.where(better, value, best), torch.where(better, column + left, who)
        cosine[rows], other[rows] = best.cpu(), who.cpu()
        if advance is not None:
            advance(len(mine))
    return Comparison(own, other, cosine)


class _Apart:
    """For each identity those that do not count as others, in one list behind one another."""

    def __init__(self, pairs: Tensor, identities: int):
        if pairs.dim() != 2 or pairs.shape[1] != 2 or pairs.is_floating_point():
            raise ValueError(f"apart must be [S, 2] numbers of identities, not {tuple(pairs.shape)}")
        if len(pairs) and not (int(pairs.min()) >= 0 and int(pairs.max()) < identities):
            raise ValueError(f"apart names an identity outside [0, {identities})")
        both = torch.cat([pairs, pairs.flip(1)]).long()
        self._others = both[both[:, 0].argsort(stable=True), 1]
        self._counts = torch.bincount(both[:, 0], minlength=identities)
        self._starts = self._counts.cumsum(0) - self._counts

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cells (row, identity) that are barred for images of these labels [B]."""
        counts = self._counts[labels]
        rows = torch.arange(len(labels), device=labels.device).repeat_interleave(counts)
        ahead = (counts.cumsum(0) - counts)[rows]
        places = torch.arange(len(rows), device=labels.device) - ahead + self._starts[labels][rows]
        return rows, self._others[places]


@torch.no_grad()
def suspect_pairs(
    embeddings: Tensor,
    labels: Tensor,
    guard: float,
    *,
    neighbours: int = 50,
    exact_up_to: int = EXACT_UP_TO,
    identities: int | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of identities whose centers are too alike: probably one person under two names.

    Args:
        embeddings: [N, D], any float dtype, any length.
        labels: [N] int64 in [0, C).
        guard: cosine of two centers above which a pair is listed, in (-1, 1).
        neighbours: at most so many others of each identity are looked at.
        exact_up_to: as in `find_neighbours`.
        identities: C; largest label + 1 if None.
        device: where the search runs; that of the embeddings if None.

    Returns:
        pairs [S, 2] int64, the smaller number first, and cosines [S] float32, on the CPU; the most alike
        first, of equally alike ones in the order of the numbers.

    Raises:
        ValueError: as in `suspect_images`, or a guard outside its range.
    """
    if not -1 < guard < 1:
        raise ValueError(f"guard must be above -1 and below 1, not {guard}")
    sums, _ = identity_sums(embeddings, labels, identities, device=device)
    table = find_neighbours(sums, neighbours, exact_up_to=exact_up_to)
    pairs, _ = alike_pairs(table, guard - _ROUNDING)
    cosine = torch.empty(len(pairs))
    for start in range(0, len(pairs), CHUNK):
        part = pairs[start : start + CHUNK].to(sums.device)
        both = unit_rows(sums[part[:, 0]]) * unit_rows(sums[part[:, 1]])
        cosine[start : start + CHUNK] = both.sum(dim=1).cpu()
    pairs, cosine = pairs[cosine > guard], cosine[cosine > guard]
    order = (pairs[:, 0] * max(len(sums), 1) + pairs[:, 1]).argsort()
    order = order[cosine[order].argsort(descending=True, stable=True)]
    return pairs[order], cosine[order]


def identity_sums(
    embeddings: Tensor,
    labels: Tensor,
    identities: int | None = None,
    *,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the images of each identity, scaled to length 1 first.

    Args:
        embeddings: [N, D], any float dtype.
        labels: [N] int64 in [0, C).
        identities: C; largest label + 1 if None.
        device: of the result; that of the embeddings if None.

    Returns:
        sums [C, D] float32, zeros for an identity without images, and counts [C] int64.

    Raises:
        ValueError: shapes disagree, a label is outside [0, C), or a value is not finite.
    """
    place = torch.device(device) if device is not None else embeddings.device
    if embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be an [N, D] float matrix, not {tuple(embeddings.shape)} {embeddings.dtype}"
        )
    if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{len(embeddings)} embeddings need as many int64 labels, "
            f"not {tuple(labels.shape)} {labels.dtype}"
        )
    largest = int(labels.max()) if len(labels) else -1
    number = largest + 1 if identities is None else identities
    if len(labels) and (int(labels.min()) < 0 or largest >= number):
        raise ValueError(f"labels must be in [0, {number}), found {int(labels.min())} to {largest}")
    home = labels.to(place)
    sums = torch.zeros(number, embeddings.shape[1], device=place)
    for part, to in zip(embeddings.split(CHUNK), home.split(CHUNK), strict=True):
        sums.index_add_(0, to, unit_rows(part.to(place)))
    if not bool(sums.isfinite().all()):
        raise ValueError("an embedding holds a value that is not finite; has the training diverged?")
    return sums, torch.bincount(home, minlength=number)


def unit_rows(vectors: Tensor) -> Tensor:
    """[n, D] float32 rows of length 1; rows of zeros stay."""
    wide = vectors.float()
    # Of the largest value first: squares of very long vectors would overflow.
    wide = wide / wide.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    return wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-12)
