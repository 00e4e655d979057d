"""Losses that choose the positives among the other samples by a softmax over similarities."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.losses.checks import no_autocast
from metricid.losses.matrices import Pairs, Rows, compare, mean_over_anchors
from metricid.losses.mined import MinerChoice, keep, miner_of
from metricid.losses.shares import as_numbers, log_share_of, log_sum_and_shares

SupConForm = Literal["out", "in"]
NCAForm = Literal["log", "probability"]


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    form: SupConForm = "out",
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020).

    For an anchor i with positives P(i), z the embeddings on the unit sphere, t the temperature and
    q_ip = exp(z_i.z_p / t) / sum over a != i of exp(z_i.z_a / t): 'out' is
    -1/|P(i)| sum over p in P(i) of log q_ip (eq. 2), 'in' is -log(1/|P(i)| sum over p of q_ip) (eq. 3).
    The paper sums over anchors; here it is their mean, over the anchors that have a positive.

    Args:
        embeddings: [B, D], any float dtype; arithmetic is float32 (float64 for float64 input).
        labels: [B] int64.
        temperature: > 0.
        form: where the mean over the positives stands; the paper finds 'out' the better one.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar; 0 with a graph where no sample has a positive.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """

    @torch.no_grad()
    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        logits = values / temperature
        total, shares = log_sum_and_shares(logits, positive | negative, weights)
        near = as_numbers(positive, logits.dtype, weights)
        found = near.sum(dim=1)
        known = found > 0
        count = found.where(known, 1)
        if form == "out":
            lost = total - logits.mul_(near).sum(dim=1) / count
            wanted = near.div_(count[:, None])
        else:
            nearest, wanted = log_sum_and_shares(logits, positive, weights)
            lost = total - nearest + count.log()
        slopes = shares.sub_(wanted).mul_((known.to(total.dtype) / temperature)[:, None])
        return Rows(lost.where(known, 0.0), known, slopes)

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        return mean_over_anchors(keep(pairs, miner_of(miner)), "dot", rows)


def ntxent_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Normalised temperature-scaled cross-entropy, or InfoNCE (Chen et al., ICML 2020, eq. 1).

    For each positive pair (i, p), z on the unit sphere: -log( exp(z_i.z_p / t) / (exp(z_i.z_p / t) + sum over
    the negatives n of i of exp(z_i.z_n / t)) ). With two views of each image, which have a label of their
    own, that is the paper's loss; other positives of i, which the paper does not have, stay out of the
    denominator.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        temperature: t > 0; the paper's best on ImageNet is 0.1.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the positive pairs, in nats; 0 with a graph where there is none.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """

    @torch.no_grad()
    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        logits = values / temperature
        losses, near, far, counted = _among_negatives(logits, logits, positive, negative, weights)
        return Rows(losses, counted, near.add_(far).div_(temperature))

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        return mean_over_anchors(keep(pairs, miner_of(miner)), "dot", rows)


def nca_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    scale: float = 1.0,
    form: NCAForm = "log",
    normalize: bool = False,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Neighbourhood components analysis (Goldberger et al., NeurIPS 2004).

    With p_ij the softmax over j != i of -scale |x_i - x_j|^2, and p_i the sum of p_ij over the positives of
    i, that is, the chance that a random neighbour has the right label: 'log' is -log p_i (the paper's second
    objective), 'probability' 1 - p_i (its first).

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        scale: of the squared distances; 1 in the paper, whose transformation learns the scale.
        form: 'log' or 'probability'.
        normalize: put the embeddings on the unit sphere; take a scale of 10 or so then.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the anchors that have a positive; 0 with a graph where none has.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """

    @torch.no_grad()
    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        logits = -scale * values
        every, share = log_sum_and_shares(logits, positive | negative, weights)
        right, slopes, known = log_share_of(logits, every, share, positive, weights)
        lost = -right
        steep = scale * known.to(lost.dtype)
        steep = steep if form == "log" else steep * torch.exp(-lost)
        return Rows(lost if form == "log" else -torch.expm1(-lost), known, slopes.mul_(steep[:, None]))

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        return mean_over_anchors(keep(pairs, miner_of(miner)), "squared", rows)


def npair_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    l2: float = 0.0,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Multi-class N-pair loss (Sohn, NeurIPS 2016).

    One pair (x_c, y_c) of each class c: log(1 + sum over the other classes k of exp(x_c.y_k - x_c.y_c)), on
    raw embeddings. x_c is the first sample of its class in the batch and y_c the second; classes with one
    sample take no part. With references all samples of the batch are anchors, and y_c is the first reference
    of its class.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        l2: weight of the mean squared length of the x_c and y_c; the paper keeps the lengths small so instead
            of normalising, which would bound the logits.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the anchors; 0 with a graph where there is no pair.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    with no_autocast(embeddings):
        pairs = compare(embeddings, labels, references, reference_labels, with_batch=with_batch)
        place, size = _places(pairs.other_labels)
        chosen = place == (1 if pairs.without_self else 0)
        if pairs.without_self:
            anchors = ((place == 0) & (size > 1))[: len(labels)]
        else:
            anchors = torch.isin(pairs.labels, pairs.other_labels)
        used = chosen & torch.isin(pairs.other_labels, pairs.labels)
        # A class of the references without an anchor is a negative of all.
        (i, real), (j, there) = _first(anchors), _first(chosen)
        few = Pairs(
            *(pairs.x[i], pairs.y[j], pairs.labels[i], pairs.other_labels[j]), own=False, used=(real, there)
        )

        @torch.no_grad()
        def rows(
            values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
        ) -> Rows:
            losses, near, far, counted = _among_negatives(values, values, positive, negative, weights)
            return Rows(losses, counted, near.add_(far))

        loss = mean_over_anchors(keep(few, miner_of(miner)), "dot", rows) + pairs.nan_or_zero()
        if l2:
            for side, taken in ((pairs.x, anchors), (pairs.y, used)):
                lengths = side.square().sum(dim=1).where(taken, 0.0)
                loss = loss + 0.5 * l2 * lengths.sum() / taken.sum().clamp(min=1)
        return loss


def tuplet_margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 5.73,
    scale: float = 64.0,
    variance_weight: float = 0.0,
    variance_slack: float = 0.01,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Tuplet margin loss with the intra-pair variance loss (Yu and Tao, ICCV 2019).

    For each positive pair (a, p), theta the angles: log(1 + sum over the negatives n of a of
    exp(s (cos theta_an - cos(theta_ap - margin)))). The variance term, with e the slack, is the mean of
    relu((1 - e) m_p - cos theta_ap)^2 over the positive pairs plus that of relu(cos theta_an - (1 + e) m_n)^2
    over the negative ones, m_p and m_n being their mean cosines.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: in degrees, in [0, 90): slack that a positive gets, so that no pair is pulled without end.
        scale: s.
        variance_weight: of the variance term; 0 leaves it out.
        variance_slack: e in [0, 1).
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the positive pairs; 0 with a graph where there is none.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    angle = math.radians(margin)

    @torch.no_grad()
    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        # Below 1 - c^2 of every representable c but +-1, where the exact slope would be infinite.
        smallest = torch.finfo(values.dtype).eps ** 2
        square = (1 - values) * (1 + values)
        sine = square.clamp_min(smallest).sqrt_()
        slack = math.cos(angle) * values + math.sin(angle) * sine
        losses, near, far, counted = _among_negatives(
            scale * slack, scale * values, positive, negative, weights
        )
        steep = math.cos(angle) - math.sin(angle) * (values / sine).masked_fill_(square < smallest, 0)
        return Rows(losses, counted, near.mul_(steep).add_(far).mul_(scale))

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        pairs = keep(pairs, miner_of(miner))
        loss = mean_over_anchors(pairs, "dot", rows)
        return loss + variance_weight * _pair_variance(pairs, variance_slack) if variance_weight else loss


def _among_negatives(
    near: Tensor, far: Tensor, positive: Tensor, negative: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy of each positive's logit against the logits of the row's negatives.

    Returns:
        Sums over the positives [R], slopes in `near` and in `far` [R, M], and the number of positives [R].
    """
    total, share = log_sum_and_shares(far, negative, weights)
    gaps = total[:, None] - near
    pulled = as_numbers(positive, gaps.dtype, weights)
    losses = F.softplus(gaps).mul_(pulled).sum(dim=1)
    missed = gaps.sigmoid_().mul_(pulled)
    far_slopes = share.mul_(missed.sum(dim=1, keepdim=True))
    return losses, missed.neg_(), far_slopes, pulled.sum(dim=1)


def _pair_variance(pairs: Pairs, slack: float) -> Tensor:
    cosines = pairs.dots()
    total = cosines.new_zeros(())
    for mask, sign in zip(pairs.masks(), (1, -1), strict=True):
        times = as_numbers(mask, cosines.dtype, pairs.weights)
        count = times.sum()
        count = count.where(count > 0, 1)
        mean = (cosines * times).sum() / count
        excess = F.relu(sign * ((1 - sign * slack) * mean - cosines))
        total = total + (excess.square() * times).sum() / count
    return total


def _places(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample, how many of its class come before it, and how many its class has."""
    ascending, order = labels.sort(stable=True)
    first, after = (torch.searchsorted(ascending, labels, right=right) for right in (False, True))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(labels), device=labels.device))
    return place - first, after - first


def _first(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where a mask [N] is true: places in order, and which of them are real; none fewer than one.

    On the CPU they are as many as are real; elsewhere all, as the host would wait to know their number.
    """
    size = max(1, int(mask.sum())) if mask.device.type == "cpu" else len(mask)
    places = (~mask).to(torch.uint8).sort(stable=True).indices[:size]
    return places, mask[places]
