"""Losses over groups of more than three samples, as pure functions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.losses.checks import no_autocast
from metricid.losses.matrices import Rows, compare, log_sum_and_shares, log_sum_exp, mean_over_anchors
from metricid.losses.triplets import hardest, hinge, row_distances


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

    Returns:
        Scalar, mean over the anchors with a positive and a negative; where no pair of two further classes
        exists, the second term is 0. 0 with a graph where there is no anchor.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(embeddings, labels, references, reference_labels, normalize=normalize)
        x, y, classes = pairs.x, pairs.y, pairs.other_labels
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
        near = row_distances(x, y[triplets.positive[:, 0]], squared)
        own = hinge(near - row_distances(x, y[triplets.negative[:, 0]], squared), margin)
        other = hinge(near - row_distances(y[k], y[l_], squared), second_margin)
        losses = (own + other.where(exists, 0.0)).where(valid, 0.0)
        return losses.sum() / valid.sum().clamp_min(1) + pairs.nan_or_zero()


def lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    normalize: bool = False,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
) -> Tensor:
    """Lifted structured embedding (Song et al., CVPR 2016, eq. 4).

    For each positive pair J_ij = log(sum over negatives k of i of exp(margin - d_ik) + sum over negatives l
    of j of exp(margin - d_jl)) + d_ij; the loss is half the mean of max(0, J_ij)^2.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: alpha.
        normalize: put the embeddings on the unit sphere first.
        references: [M, D] that the batch is compared with; the negatives of a reference j are then those of
            the batch. None for the batch itself without self-pairs.
        reference_labels: [M] int64.

    Returns:
        Scalar, mean over the positive pairs with a negative; 0 with a graph where there is none.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(embeddings, labels, references, reference_labels, normalize=normalize)
        distances = pairs.distances()
        positive, negative = pairs.masks()
        of_anchor = log_sum_exp(margin - distances, negative)
        of_partner = of_anchor if pairs.own else log_sum_exp(margin - distances.T, negative.T)
        known = positive & (negative.any(dim=1)[:, None] | negative.any(dim=0)[None, :])
        pushed = torch.logaddexp(of_anchor[:, None], of_partner[None, :])
        losses = F.relu(pushed.where(known, 0.0) + distances).square().where(known, 0.0)
        return 0.5 * losses.sum() / known.sum().clamp_min(1) + pairs.nan_or_zero()


def generalized_lifted_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    normalize: bool = False,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
) -> Tensor:
    """Lifted loss over all positives of an anchor at once (Hermans et al., arXiv 1703.07737, section 2).

    Per anchor max(0, log sum over positives p of exp(d_ap) + log sum over negatives n of exp(margin - d_an)).

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: in the unit of the distances.
        normalize: put the embeddings on the unit sphere first.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.

    Returns:
        Scalar, mean over the anchors with a positive and a negative; 0 with a graph where none has.

    Raises:
        ValueError: shapes disagree.
    """

    @torch.no_grad()
    def rows(values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None) -> Rows:
        known = positive.any(dim=1) & negative.any(dim=1)
        near, pulled = log_sum_and_shares(values, positive)
        far, pushed = log_sum_and_shares(margin - values, negative)
        losses = F.relu((near + far).where(known, 0.0))
        return Rows(losses, known, pulled.sub_(pushed).mul_((losses > 0)[:, None]))

    with no_autocast(embeddings):
        pairs = compare(embeddings, labels, references, reference_labels, normalize=normalize)
        return mean_over_anchors(pairs, "distance", rows)


def angular_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 45.0,
    normalize: bool = True,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
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
        references: [M, D] that the batch is compared with; then [M, M] matrices are made, too. None for the
            batch itself without self-pairs.
        reference_labels: [M] int64.

    Returns:
        Scalar, mean over the positive pairs with a negative; 0 with a graph where there is none.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(embeddings, labels, references, reference_labels, normalize=normalize)
        t = math.tan(math.radians(alpha)) ** 2
        dots = pairs.dots()
        positive, negative = pairs.masks()
        top, scaled = _scaled(4 * t * dots, negative)
        if pairs.own:
            top_y, scaled_y = top, scaled
        else:
            classes = pairs.other_labels
            top_y, scaled_y = _scaled(4 * t * (pairs.y @ pairs.y.T), classes[:, None] != classes[None, :])
        known = positive & negative.any(dim=1, keepdim=True)
        smallest = torch.finfo(dots.dtype).tiny
        pushed = (scaled @ scaled_y.T).clamp_min(smallest).log() + top[:, None] + top_y[None, :]
        losses = F.softplus(pushed - 2 * (1 + t) * dots).where(known, 0.0)
        return losses.sum() / known.sum().clamp_min(1) + pairs.nan_or_zero()


def _scaled(exponents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Largest masked exponent of each row (0 if none), and exp of the others relative to it."""
    top = exponents.detach().masked_fill(~mask, -torch.inf).amax(dim=1)
    top = top.where(top.isfinite(), 0.0)
    return top, (exponents - top[:, None]).masked_fill(~mask, -torch.inf).exp()


def _nearest(distances: Tensor) -> Tensor:
    """Row and column of the smallest entry, [2]."""
    place = distances.argmin()
    columns = distances.shape[1]
    return torch.stack([place // columns, place % columns])


def _without(distances: Tensor, classes: Tensor, label: Tensor) -> Tensor:
    touched = classes == label
    return distances.masked_fill(touched[:, None] | touched[None, :], torch.inf)
