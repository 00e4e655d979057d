"""Which triplets of a batch to learn from, found on the dense distance matrix.

Anchors are the rows and candidates the columns of a matrix of distances; two masks of the same shape say
which columns are positives and which negatives of a row. The same code therefore serves a batch against
itself and a batch against a memory. Everything stays on the device and no value is read back to the host.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Triplets", "batch_all", "batch_hard", "pair_masks", "positive_slots", "semi_hard"]


class Triplets(NamedTuple):
    """T triplets for each of A anchors; the anchor is the row.

    Attributes:
        positive: [A, T] int64, columns of the positives.
        negative: [A, T] int64, columns of the negatives.
        valid: [A, T] bool; where False the two columns mean nothing and must not be counted.
    """

    positive: Tensor
    negative: Tensor
    valid: Tensor


def pair_masks(labels: Tensor, other_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Who is a positive and who a negative of whom.

    Args:
        labels: [A] int64, labels of the anchors.
        other_labels: [N] int64, labels of the candidates; None means the anchors themselves, and then a
            sample is no positive of itself. Self is known by its index, so a second copy of one image is a
            positive like any other.

    Returns:
        positive [A, N] bool, negative [A, N] bool.
    """
    same = labels[:, None] == (labels if other_labels is None else other_labels)[None, :]
    negative = ~same
    if other_labels is None:
        same.fill_diagonal_(False)
    return same, negative


@torch.no_grad()
def batch_hard(distances: Tensor, positive: Tensor, negative: Tensor) -> Triplets:
    """For each anchor its farthest positive and its nearest negative (Hermans et al., 2017, eq. 5).

    Of several at the same distance one is taken. An anchor that lacks a positive or a negative has no
    triplet.

    Args:
        distances: [A, N].
        positive: [A, N] bool.
        negative: [A, N] bool.

    Returns:
        One triplet for each anchor, T = 1.
    """
    farthest = distances.masked_fill(~positive, -torch.inf).argmax(dim=1, keepdim=True)
    nearest = distances.masked_fill(~negative, torch.inf).argmin(dim=1, keepdim=True)
    valid = positive.any(dim=1, keepdim=True) & negative.any(dim=1, keepdim=True)
    return Triplets(farthest, nearest, valid)


@torch.no_grad()
def semi_hard(distances: Tensor, positive: Tensor, negative: Tensor, margin: float | None = None) -> Triplets:
    """For each (anchor, positive) pair the hardest negative that is farther away than the positive.

    Schroff et al., CVPR 2015, section 3.2: the smallest d_an with d_ap < d_an, here also d_an < d_ap +
    margin, beyond which a hinge is zero. A pair for which no such negative exists has no triplet: the paper
    does not say what to do then, and taking the easiest negative instead, as some code does, brings back the
    collapse that semi-hard mining is there to avoid.

    Args:
        distances: [A, N].
        positive: [A, N] bool.
        negative: [A, N] bool.
        margin: in the unit of the distances; None sets no upper limit.

    Returns:
        T = the largest number of positives of one anchor on the CPU, N elsewhere (where counting would make
        the host wait).
    """
    columns, paired = positive_slots(positive, negative)
    to_positive = distances.gather(1, columns)
    ascending, order = distances.masked_fill(~negative, torch.inf).sort(dim=1)
    place = torch.searchsorted(ascending, to_positive, right=True).clamp_(max=distances.shape[1] - 1)
    to_negative = ascending.gather(1, place)
    valid = paired & (to_negative > to_positive) & to_negative.isfinite()
    if margin is not None:
        valid &= to_negative < to_positive + margin
    return Triplets(columns, order.gather(1, place), valid)


@torch.no_grad()
def batch_all(positive: Tensor, negative: Tensor, *, block: int = 1 << 22) -> Iterator[tuple[Tensor, Tensor]]:
    """Every valid triplet, in blocks that hold a few positives of each anchor against all columns.

    A cube of A x N x N is never made: at most `block` entries, or one A x N sheet, at a time.

    Args:
        positive: [A, N] bool.
        negative: [A, N] bool.
        block: entries of a block.

    Yields:
        columns [A, S] int64 of positives, valid [A, S, N] bool: whether (row a, column columns[a, s], column
        n) is a triplet.
    """
    columns, paired = positive_slots(positive, negative)
    size = max(1, block // negative.numel())
    for here, real in zip(columns.split(size, dim=1), paired.split(size, dim=1), strict=True):
        if here.shape[1]:
            yield here, real[:, :, None] & negative[:, None, :]


def positive_slots(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of each row's positives, packed to the left: columns [A, T], real [A, T].

    Rows without a negative get none, since no triplet starts there.
    """
    useful = positive & negative.any(dim=1, keepdim=True)
    real, columns = useful.to(torch.uint8).topk(_width(useful), dim=1)
    return columns, real.bool()


def _width(useful: Tensor) -> int:
    """Slots enough for every row: the largest count, or N where counting would make the host wait."""
    return int(useful.sum(dim=1).max()) if useful.device.type == "cpu" else useful.shape[1]
