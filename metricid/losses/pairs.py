"""Losses over positive and negative pairs, as pure functions."""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.losses.checks import no_autocast
from metricid.losses.matrices import Rows, compare, mean_over_anchors
from metricid.losses.mined import MinerChoice, keep, miner_of
from metricid.losses.shares import any_in_row, as_numbers, log_sum_and_shares
from metricid.mining.miners import distance_weighted, multi_similarity

ContrastiveForm = Literal["hadsell", "linear"]
ContrastiveReduction = Literal["mean", "mean_nonzero", "pairs"]
MarginNegatives = Literal["all", "distance_weighted"]


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    form: ContrastiveForm = "hadsell",
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    normalize: bool = True,
    reduction: ContrastiveReduction = "mean_nonzero",
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Pulls positives together and pushes negatives beyond a margin, over all pairs of the batch.

    With p = max(0, d - positive_margin) for a positive pair and n = max(0, negative_margin - d) for a
    negative one: 'hadsell' is p^2 / 2 and n^2 / 2 (Hadsell et al., CVPR 2006, eq. 4, where positive_margin =
    0); 'linear' is p and n.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        form: 'hadsell' (squared) or 'linear'.
        positive_margin: distance below which a positive pair is near enough.
        negative_margin: distance beyond which a negative pair is far enough.
        normalize: put the embeddings on the unit sphere first, where distances lie in [0, 2].
        reduction: 'mean_nonzero' is the mean over positive pairs with a loss above 0 plus the mean over such
            negative pairs; 'mean' counts the zeros too; 'pairs' is one mean over all pairs, positive or
            negative, in which the few positives of a batch of many classes weigh little.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar; a kind of pair that the batch lacks adds 0, with a graph.

    Raises:
        ValueError: shapes disagree.
    """

    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        margins = positive_margin, negative_margin
        return _contrast(values, positive, negative, weights, form, *margins, reduction)

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        return mean_over_anchors(keep(pairs, miner_of(miner)), "distance", rows)


def snr_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    reduction: ContrastiveReduction = "mean_nonzero",
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Contrastive loss on the signal-to-noise distance (Yuan et al., CVPR 2019).

    d_ij = var(x_i - x_j) / var(x_i), the variances over the D features: noise over signal of the anchor i. It
    is not symmetric, and 2 for independent embeddings of equal variance. The loss is max(0, d -
    positive_margin) for a positive pair and max(0, negative_margin - d) for a negative one. The paper adds a
    term that keeps the mean of the features at zero: combine with a zero-mean regulariser for that.

    Args:
        embeddings: [B, D], any float dtype, D >= 2; not normalised.
        labels: [B] int64, any values.
        positive_margin: distance below which a positive pair is near enough.
        negative_margin: distance beyond which a negative pair is far enough.
        reduction: as in `contrastive_loss`.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar; a kind of pair that the batch lacks adds 0, with a graph.

    Raises:
        ValueError: shapes disagree.
    """

    @torch.no_grad()
    def rows(
        values: Tensor,
        positive: Tensor,
        negative: Tensor,
        signal: Tensor | None,
        weights: Tensor | None,
    ) -> Rows:
        assert signal is not None
        ratio = values / signal[:, None]
        margins = positive_margin, negative_margin
        found = _contrast(ratio, positive, negative, weights, "linear", *margins, reduction)
        assert found.slopes is not None
        ratio *= found.slopes / -signal[:, None]
        near, far = (ratio * as_numbers(mask, ratio.dtype) for mask in (positive, negative))
        in_signal = _by_kind(near, far, reduction)
        return Rows(found.losses, found.counted, found.slopes / signal[:, None], in_signal)

    with no_autocast(embeddings):
        pairs = compare(embeddings, labels, references, reference_labels, with_batch=with_batch)
        x = pairs.x - pairs.x.mean(dim=1, keepdim=True)
        y = x if pairs.own else pairs.y - pairs.y.mean(dim=1, keepdim=True)
        even = replace(keep(pairs, miner_of(miner)), x=x, y=y)
        # An embedding whose features are all equal has no signal: its distances are huge, but finite.
        signal = x.square().sum(dim=1).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
        return mean_over_anchors(even, "squared", rows, given=signal)


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Multi-similarity loss with its selection of pairs (Wang et al., CVPR 2019).

    Per anchor, s the cosines: log(1 + sum over positives of exp(-alpha (s - base))) / alpha + log(1 + sum
    over negatives of exp(beta (s - base))) / beta. A positive is used if s - epsilon is below the anchor's
    largest negative, a negative if s + epsilon is above its smallest positive.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        alpha: sharpness for the positives.
        beta: sharpness for the negatives.
        base: cosine around which the pairs are weighted (lambda in the paper).
        epsilon: slack of the selection, among the pairs of a miner if there is one; None uses all pairs.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over all anchors, also those without a pair, as in the paper.

    Raises:
        ValueError: shapes disagree.
    """

    @torch.no_grad()
    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        if epsilon is not None:
            positive, negative = multi_similarity(values, positive, negative, epsilon)
        near, pulled = log_sum_and_shares(alpha * (base - values), positive, weights)
        far, pushed = log_sum_and_shares(beta * (values - base), negative, weights)
        losses = F.softplus(near) / alpha + F.softplus(far) / beta
        slopes = pushed.mul_(far.sigmoid()[:, None]).sub_(pulled.mul_(near.sigmoid()[:, None]))
        return Rows(losses, torch.ones_like(losses), slopes)

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        return mean_over_anchors(keep(pairs, miner_of(miner)), "dot", rows)


def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.4,
    scale: float = 80.0,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Circle loss over pairs (Sun et al., CVPR 2020).

    Per anchor, with cosines s_p and s_n and weights a_p = max(0, 1 + m - s_p) and a_n = max(0, s_n + m) that
    get no gradient: log(1 + sum_n exp(scale a_n (s_n - m)) sum_p exp(-scale a_p (s_p - 1 + m))).

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: m. The paper takes 0.4 and scale 80 for retrieval with pairs, 0.25 and 128 for re-ID, 0.25 and
            256 for faces.
        scale: gamma.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the anchors that have a positive and a negative; 0 with a graph where none has.

    Raises:
        ValueError: shapes disagree.
    """

    @torch.no_grad()
    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        pull = (1 + margin - values).relu_().mul_(-scale)
        push = (values + margin).relu_().mul_(scale)
        near, pulled = log_sum_and_shares(pull * (values - 1 + margin), positive, weights)
        far, pushed = log_sum_and_shares(push * (values - margin), negative, weights)
        known = any_in_row(positive) & any_in_row(negative)
        gap = (near + far).where(known, 0.0)
        slopes = pulled.mul_(pull).addcmul_(pushed, push).mul_((gap.sigmoid() * known)[:, None])
        return Rows(F.softplus(gap).where(known, 0.0), known, slopes)

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        return mean_over_anchors(keep(pairs, miner_of(miner)), "dot", rows)


def distance_margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    beta: Tensor,
    *,
    margin: float = 0.2,
    nu: float = 0.0,
    negatives: MarginNegatives = "distance_weighted",
    normalize: bool = True,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Margin loss around a learned boundary, with distance-weighted sampling (Wu et al., ICCV 2017).

    max(0, margin + d - beta) for a positive pair, max(0, margin + beta - d) for a negative one, beta being
    that of the anchor; the sum over the number of pairs with a loss above 0. 'distance_weighted' draws as
    many negatives for an anchor as it has positives, with replacement, with a chance proportional to 1 / q(d)
    where q is the density of distances on the sphere. As in the authors' code d is cut off at 0.5 from below,
    and negatives beyond 1.4 are drawn only where there is no nearer one. Draws come from PyTorch's default
    generator.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values; [0, C) if beta has C > 1 entries.
        beta: [1] for all, or [C] one for each class; its gradient is computed.
        margin: half the width of the band around beta.
        nu: weight of beta itself, summed over the anchors, over the same number of pairs; without it a
            learned beta follows the balance of positives and negatives.
        negatives: 'distance_weighted', or 'all', as a miner of its own asks for.
        normalize: put the embeddings on the unit sphere first, which 'distance_weighted' supposes.
        miner: which pairs count, and how often; None for all, once.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar; 0 with a graph where no pair has a loss.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        own = (beta.expand(len(labels)) if len(beta) == 1 else beta[labels]).to(pairs.x.dtype)
        dim = embeddings.shape[1]

        def rows(
            values: Tensor,
            positive: Tensor,
            negative: Tensor,
            given: Tensor | None,
            weights: Tensor | None,
        ) -> Rows:
            assert given is not None
            pulled = as_numbers(positive, values.dtype, weights)
            if negatives == "distance_weighted":
                drawn = _draw(values.detach(), positive, negative, dim)
            else:
                drawn = as_numbers(negative, values.dtype, weights)
            near = F.relu(margin + values - given[:, None]) * pulled
            far = F.relu(margin + given[:, None] - values) * drawn
            active = ((near > 0) * pulled).sum(dim=1) + ((far > 0) * drawn).sum(dim=1)
            involved = positive.any(dim=1) | (drawn > 0).any(dim=1)
            return Rows(near.sum(dim=1) + far.sum(dim=1) + nu * given * involved, active)

        return mean_over_anchors(keep(pairs, miner_of(miner)), "distance", rows, given=own)


@torch.no_grad()
def _draw(distances: Tensor, positive: Tensor, negative: Tensor, dim: int) -> Tensor:
    """How often each negative is drawn, [R, M]: as many draws for an anchor as it has positives."""
    drawn = distance_weighted(distances, positive, negative, dim)
    return torch.zeros_like(distances).scatter_add_(1, drawn.negative, drawn.valid.to(distances.dtype))


@torch.no_grad()
def _contrast(
    distances: Tensor,
    positive: Tensor,
    negative: Tensor,
    weights: Tensor | None,
    form: ContrastiveForm,
    positive_margin: float,
    negative_margin: float,
    reduction: ContrastiveReduction,
) -> Rows:
    """The contrastive losses of some rows, with their slopes in each distance."""
    kinds = as_numbers(positive, distances.dtype), as_numbers(negative, distances.dtype)
    near = (distances - positive_margin).relu_().mul_(kinds[0])
    far = (negative_margin - distances).relu_().mul_(kinds[1])
    active = near.sign(), far.sign()
    counted = active if reduction == "mean_nonzero" else kinds
    if form == "hadsell":
        losses, slopes = (near.square().mul_(0.5), far.square().mul_(0.5)), (near, far)
    else:
        losses, slopes = (near, far), active
    if weights is not None:
        losses, slopes, counted = (
            (first * weights, second * weights) for first, second in (losses, slopes, counted)
        )
    return Rows(_by_kind(*losses, reduction), _by_kind(*counted, reduction), slopes[0] - slopes[1])


def _by_kind(near: Tensor, far: Tensor, reduction: ContrastiveReduction) -> Tensor:
    """Sums of the rows of positives and of negatives, [R, 2]; [R] where the two share one mean."""
    near, far = near.sum(dim=1), far.sum(dim=1)
    return near + far if reduction == "pairs" else torch.stack([near, far], dim=1)
