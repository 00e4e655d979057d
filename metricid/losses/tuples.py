"""Losses over groups of more than three samples, as pure functions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.losses.checks import no_autocast
from metricid.losses.distances import row_blocks
from metricid.losses.gaps import pair_distances
from metricid.losses.matrices import Pairs, Rows, compare, mean_over_anchors
from metricid.losses.mined import MinerChoice, keep, miner_of
from metricid.losses.shares import log_sum_and_shares, log_sum_exp, with_slopes
from metricid.losses.triplets import hardest, hinge


def quadruplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    second_margin: float = 0.5,
    normalize: bool = True,
    squared: bool = True,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Quadruplet loss on the hardest quadruplet of each anchor (Chen et al., CVPR 2017).

    max(0, d_ap - d_an + margin) + max(0, d_ap - d_kl + second_margin): p is the farthest positive and n the
    nearest negative of the anchor a; (k, l) is the nearest pair of two classes that are both not a's, which
    asks that any two classes lie farther apart than the samples of one. The paper learns the metric and sets
    the margins from the batch's mean distances, with weights 1 and 0.5; here they are fixed.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: against the anchor's own negative.
        second_margin: against pairs of other classes; smaller, as that push is the auxiliary one.
        normalize: put the embeddings on the unit sphere first.
        squared: compare squared distances, as the paper does.
        references: [M, D] that the batch is compared with, and among which k and l are found; None for the
            batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the anchors with a positive and a negative; where no pair of two further classes
        exists, the second term is 0. 0 with a graph where there is no anchor.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        y, classes = pairs.y, pairs.other_labels
        with torch.no_grad():
            triplets = hardest(pairs)
            across = pairs.between(squared=True)
            across.masked_fill_(classes[:, None] == classes[None, :], torch.inf)
            # The nearest pair of all serves every anchor but those of its two classes, which get their own.
            first = _nearest(across)
            excluded = classes[first]
            ends = torch.stack([first, *(_nearest(_without(across, classes, label)) for label in excluded)])
            which = torch.where(labels == excluded[0], 1, torch.where(labels == excluded[1], 2, 0))
            k, l_ = ends[which].unbind(dim=1)
            exists = across[k, l_].isfinite() & (classes[k] != labels) & (classes[l_] != labels)
        valid = triplets.valid[:, 0]
        sides = torch.cat([triplets.positive, triplets.negative], dim=1)
        near, far = pairs.distances_to(sides, squared=squared).unbind(dim=1)
        own = hinge(near - far, margin)
        other = hinge(near - pair_distances(y, None, k[:, None], l_[:, None], squared)[:, 0], second_margin)
        losses = (own + other.where(exists, 0.0)).where(valid, 0.0)
        return losses.sum() / valid.sum().clamp_min(1) + pairs.nan_or_zero()


def lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    normalize: bool = False,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Lifted structured embedding (Song et al., CVPR 2016, eq. 4).

    For each positive pair J_ij = log(sum over negatives k of i of exp(margin - d_ik) + sum over negatives l
    of j of exp(margin - d_jl)) + d_ij; the loss is half the mean of max(0, J_ij)^2.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: alpha.
        normalize: put the embeddings on the unit sphere first.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; the negatives of a reference j are then those of
            the batch. None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the positive pairs with a negative; 0 with a graph where there is none.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        pairs = keep(pairs, miner_of(miner))
        distances, weights = pairs.distances(), pairs.weights
        positive, negative = pairs.masks()
        of_anchor = log_sum_exp(margin - distances, negative, weights)
        of_partner, has_partner = of_anchor, negative.any(dim=1)
        if not pairs.own:
            turned = None if weights is None else weights.T
            of_partner = log_sum_exp(margin - distances.T, negative.T, turned)
            has_partner = negative.any(dim=0)
        known = positive & (negative.any(dim=1)[:, None] | has_partner[None, :])
        marks, columns = known.to(torch.uint8).topk(pairs.most_positives(), dim=1)
        real = marks.bool()
        pushed = torch.logaddexp(of_anchor[:, None], of_partner[columns]).where(real, 0.0)
        losses = F.relu(pushed + distances.gather(1, columns)).square().where(real, 0.0)
        count = real.sum()
        if weights is not None:
            times = weights.gather(1, columns).where(real, 0.0)
            losses, count = losses * times, times.sum()
        return 0.5 * losses.sum() / count.where(count > 0, 1) + pairs.nan_or_zero()


def generalized_lifted_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    normalize: bool = False,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Lifted loss over all positives of an anchor at once (Hermans et al., arXiv 1703.07737, section 2).

    Per anchor max(0, log sum over positives p of exp(d_ap) + log sum over negatives n of exp(margin - d_an)).

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: in the unit of the distances.
        normalize: put the embeddings on the unit sphere first.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the anchors with a positive and a negative; 0 with a graph where none has.

    Raises:
        ValueError: shapes disagree.
    """

    @torch.no_grad()
    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        known = positive.any(dim=1) & negative.any(dim=1)
        near, pulled = log_sum_and_shares(values, positive, weights)
        far, pushed = log_sum_and_shares(margin - values, negative, weights)
        losses = F.relu((near + far).where(known, 0.0))
        return Rows(losses, known, pulled.sub_(pushed).mul_((losses > 0)[:, None]))

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        return mean_over_anchors(keep(pairs, miner_of(miner)), "distance", rows)


def angular_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 45.0,
    normalize: bool = True,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Angular loss over all negatives of each positive pair (Wang et al., ICCV 2017).

    For a positive pair (a, p), with t = tan(alpha)^2: log(1 + sum over negatives n of exp(4 t (x_a + x_p).x_n
    - 2 (1 + t) x_a.x_p)): the angle at n of the triangle that the pair makes with it stays below alpha.

    The sum over n of exp(4 t x_a.x_n) exp(4 t x_p.x_n) is the product of two matrices, so that no B^3 tensor
    is made. Each row is scaled by its largest exponent; two rows without a common large entry would underflow
    in float32 beyond alpha = 65 on the unit sphere, hence the limit.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        alpha: in degrees, in (0, 65]; the paper takes 36 to 55, mostly 45.
        normalize: put the embeddings on the unit sphere first; raw ones should not be much longer than 1.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; then [M, M] matrices are made, too. None for the
            batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the positive pairs with a negative; 0 with a graph where there is none.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        pairs = keep(pairs, miner_of(miner))
        t = math.tan(math.radians(alpha)) ** 2
        dots = pairs.dots()
        across = dots if pairs.own else pairs.y @ pairs.y.T
        value, slopes, across_slopes = _angular(pairs, dots.detach(), across.detach(), t)
        loss = with_slopes(dots, value, slopes)
        if across_slopes is not None:
            loss = loss + with_slopes(across, torch.zeros_like(value), across_slopes)
        return loss + pairs.nan_or_zero()


@torch.no_grad()
def _angular(pairs: Pairs, dots: Tensor, across: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss, its slopes in the products [B, M], and in those among other references [M, M]."""
    classes, slots = pairs.other_labels, pairs.most_positives()
    shared = pairs.own and pairs.weights is None  # a miner chooses the negatives of the anchor alone
    top, scaled = _scaled(dots, pairs.labels, classes, t, pairs.weights)
    top_y, scaled_y = (top, scaled) if shared else _scaled(across, classes, classes, t)
    slopes = torch.zeros_like(scaled)
    slopes_y = slopes if shared else torch.zeros_like(scaled_y)
    few = 8 * slots <= len(classes)  # then the sums of the positives cost less than those of all pairs
    total, pulls, count = dots.new_zeros(()), [], dots.new_zeros(())
    for rows in row_blocks(dots, len(classes), slots if few else 1):
        positive, negative = pairs.masks(rows)
        known = (positive & negative.any(dim=1, keepdim=True)).to(torch.uint8)
        real, columns = known.topk(slots, dim=1)
        if pairs.weights is not None:
            real = real * pairs.weights[rows].gather(1, columns)
        own = scaled[rows]
        partners = scaled_y[columns] if few else None
        sums = (own @ scaled_y.T).gather(1, columns) if partners is None else _rows_dot(partners, own)
        sums.clamp_min_(torch.finfo(sums.dtype).tiny)
        gaps = sums.log().add_(top[rows, None]).add_(top_y[columns])
        gaps.sub_(dots[rows].gather(1, columns), alpha=2 * (1 + t))
        total += F.softplus(gaps).mul_(real).sum()
        count += real.sum()
        pull = gaps.sigmoid_().mul_(real)
        pulls.append((rows, columns, pull))
        weights = pull / sums
        if partners is None:
            sheet = torch.zeros_like(own).scatter_(1, columns, weights)
            slopes[rows] += sheet @ scaled_y
            slopes_y.addmm_(sheet.T, own)
        else:
            slopes[rows] += torch.bmm(weights[:, None, :], partners)[:, 0]
            slopes_y.index_add_(0, columns.flatten(), (weights[:, :, None] * own[:, None, :]).flatten(0, 1))
    count = count.where(count > 0, 1)
    slopes.mul_(scaled).mul_(4 * t / count)
    for rows, columns, pull in pulls:
        slopes[rows].scatter_add_(1, columns, pull.mul_(-2 * (1 + t) / count))
    across_slopes = None if shared else slopes_y.mul_(scaled_y).mul_(4 * t / count)
    return total / count, slopes, across_slopes


def _rows_dot(partners: Tensor, rows: Tensor) -> Tensor:
    """[R, S, M] times [R, M], summed over M."""
    return torch.bmm(partners, rows[:, :, None])[:, :, 0]


def _scaled(
    dots: Tensor, labels: Tensor, others: Tensor, t: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Of each row the largest exponent 4 t x.n over its negatives (0 if none), and exp relative to it.

    With weights exp is multiplied with them, and where they are 0 there is no negative.
    """
    top, scaled = dots.new_empty(len(dots)), torch.empty_like(dots)
    for rows in row_blocks(dots, len(others)):
        exponents = 4 * t * dots[rows]
        other = labels[rows, None] != others[None, :]
        if weights is not None:
            other &= weights[rows] > 0
        largest = exponents.masked_fill(~other, -torch.inf).amax(dim=1)
        top[rows] = largest.where(largest.isfinite(), 0.0)
        scaled[rows] = exponents.sub_(top[rows, None]).exp_().masked_fill_(~other, 0)
        if weights is not None:
            scaled[rows] *= weights[rows]
    return top, scaled


def _nearest(distances: Tensor) -> Tensor:
    """Row and column of the smallest entry, [2]."""
    place = distances.argmin()
    columns = distances.shape[1]
    return torch.stack([place // columns, place % columns])


def _without(distances: Tensor, classes: Tensor, label: Tensor) -> Tensor:
    touched = classes == label
    return distances.masked_fill(touched[:, None] | touched[None, :], torch.inf)
