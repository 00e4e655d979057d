"""Losses that compare the samples of a batch with each other, as pure functions."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metricid.losses.checks import check_batch, compute_dtype, no_autocast
from metricid.mining import batch_all, batch_hard, pair_masks, semi_hard

TripletMiner = Literal["batch_hard", "batch_all", "semi_hard"]
TripletReduction = Literal["mean", "mean_nonzero"]
ContrastiveForm = Literal["hadsell", "linear"]
ContrastiveReduction = Literal["mean", "mean_nonzero", "pairs"]


def pairwise_distances(embeddings: Tensor, *, squared: bool = False) -> Tensor:
    """Euclidean distances between all rows, right also where rows nearly coincide.

    The product behind |x|^2 + |y|^2 - 2 x.y runs in float64 on centered rows: in float32 (or TF32) the
    cancellation would turn small distances into noise. Rows nearer to each other than float32 can tell (by
    3.4e-7 of the smaller of their distances from the mean of the batch) have distance 0 and there the
    subgradient 0; any other pair has the full gradient of unit length (`squared` fades with the distance
    instead). Apple GPUs have no float64: there the product is float32 and the limit 7.8e-3, so that nearly
    equal rows count as equal.

    Args:
        embeddings: [B, D], any float dtype.
        squared: return d^2 and not d.

    Returns:
        [B, B], float32 (float64 for float64 input).
    """
    with no_autocast(embeddings):
        return _Distances.apply(embeddings.to(compute_dtype(embeddings)), squared)


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float | None = 0.3,
    miner: TripletMiner = "batch_hard",
    normalize: bool = False,
    squared: bool = False,
    reduction: TripletReduction = "mean",
) -> Tensor:
    """Keeps positives nearer than negatives by a margin (Schroff et al., CVPR 2015, eq. 2).

    max(0, d_ap - d_an + margin), or without a margin log(1 + exp(d_ap - d_an)) (Hermans et al., arXiv
    1703.07737, section 2), over the triplets of the miner: one per anchor (their eq. 5, 'batch_hard'), all
    (their eq. 6, 'batch_all') or one per pair ('semi_hard').

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: in the unit of the distances; None for the soft margin.
        miner: which triplets count.
        normalize: put the embeddings on the unit sphere first.
        squared: compare squared distances, as FaceNet does.
        reduction: 'mean' over the triplets of the miner, or over those with a loss above 0.

    Returns:
        Scalar; 0 with a graph, and zero gradients, when there is no triplet. Where all embeddings are equal
        the loss is the margin and the gradient 0, as no direction is better than another; embeddings that are
        merely close get the full gradient, unless `squared`.

    Raises:
        ValueError: shapes disagree.
    """
    check_batch(embeddings, labels)
    with no_autocast(embeddings):
        x = embeddings.to(compute_dtype(embeddings))
        if normalize:
            x = F.normalize(x, dim=1)
        positive, negative = pair_masks(labels)
        if miner == "batch_all":
            distances = pairwise_distances(x, squared=squared)
            total, slopes, nonzero = _all_triplets(distances.detach(), positive, negative, margin)
            count = nonzero if reduction == "mean_nonzero" else (positive.sum(1) * negative.sum(1)).sum()
            return _WithSlopes.apply(distances, total, slopes) / count.clamp_min(1) + _nan_or_zero(x)
        if miner == "batch_hard":
            triplets = batch_hard(pairwise_distances(x.detach(), squared=True), positive, negative)
            near = _distances(x, x[triplets.positive[:, 0]], squared)[:, None]
            far = _distances(x, x[triplets.negative[:, 0]], squared)[:, None]
        else:
            distances = pairwise_distances(x, squared=squared)
            triplets = semi_hard(distances, positive, negative, margin)
            near, far = distances.gather(1, triplets.positive), distances.gather(1, triplets.negative)
        losses = _hinge(near - far, margin).masked_fill(~triplets.valid, 0)
        counted = triplets.valid & (losses > 0) if reduction == "mean_nonzero" else triplets.valid
        return losses.sum() / counted.sum().clamp_min(1) + _nan_or_zero(x)


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    form: ContrastiveForm = "hadsell",
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    normalize: bool = True,
    reduction: ContrastiveReduction = "mean_nonzero",
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

    Returns:
        Scalar; a kind of pair that the batch lacks adds 0, with a graph.

    Raises:
        ValueError: shapes disagree.
    """
    check_batch(embeddings, labels)
    with no_autocast(embeddings):
        x = embeddings.to(compute_dtype(embeddings))
        if normalize:
            x = F.normalize(x, dim=1)
        distances = pairwise_distances(x)
        positive, negative = pair_masks(labels)
        value, slopes = _all_pairs(
            distances.detach(), positive, negative, form, positive_margin, negative_margin, reduction
        )
        return _WithSlopes.apply(distances, value, slopes) + _nan_or_zero(x)


def supcon_loss(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020, eq. 2: the sum outside the logarithm).

    For an anchor i with positives P(i), z the embeddings on the unit sphere and t the temperature:
    -1/|P(i)| sum over p in P(i) of log(exp(z_i.z_p / t) / sum over a != i of exp(z_i.z_a / t)).
    The paper sums over anchors; here it is their mean, over the anchors that have a positive.

    Args:
        embeddings: [B, D], any float dtype; arithmetic is float32 (float64 for float64 input).
        labels: [B] int64.
        temperature: > 0.

    Returns:
        Scalar; 0 with a graph where no sample has a positive.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    check_batch(embeddings, labels)
    positive, _ = pair_masks(labels)
    with no_autocast(embeddings):
        z = F.normalize(embeddings.to(compute_dtype(embeddings)), dim=1)
        logits = z @ z.T / temperature
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        # A finite stand-in for minus infinity: a batch of one has no other sample to sum over.
        total = logits.masked_fill(itself, -torch.finfo(logits.dtype).max).logsumexp(dim=1, keepdim=True)
        count = positive.sum(dim=1)
        lost = ((total - logits) * positive).sum(dim=1) / count.clamp(min=1)
        return lost.where(count > 0, 0.0).sum() / (count > 0).sum().clamp(min=1) + _nan_or_zero(z)


def _nan_or_zero(x: Tensor) -> Tensor:
    """0 with a graph; NaN where an embedding is not finite, so that it shows even when nothing is counted."""
    return 0 * x.sum()


def _distances(x: Tensor, y: Tensor, squared: bool) -> Tensor:
    """Row by row; the subgradient at distance 0 is 0."""
    return (x - y).square().sum(dim=1) if squared else torch.linalg.vector_norm(x - y, dim=1)


def _hinge(gap: Tensor, margin: float | None) -> Tensor:
    return F.softplus(gap) if margin is None else F.relu(gap + margin)


class _Distances(torch.autograd.Function):
    """Distance matrix that keeps one [B, B] sheet for backward, and takes one matrix product there."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, squared: bool) -> Tensor:
        wide = torch.float32 if embeddings.device.type == "mps" else torch.float64  # no float64 on Apple GPUs
        x = embeddings.to(wide)
        x = x - x.mean(dim=0)
        norms = x.square().sum(dim=1)
        result = torch.addmm(norms[None, :], x, x.T, alpha=-2).add_(norms[:, None])
        rounding = 512 * torch.finfo(wide).eps * torch.minimum(norms[:, None], norms[None, :])
        result.masked_fill_(result <= rounding, 0)  # equal, but for rounding
        if not squared:
            result.sqrt_()
        result = result.to(embeddings.dtype)
        ctx.squared = squared
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, distances = ctx.saved_tensors
        (gradient,) = gradients
        pull = 2 * gradient if ctx.squared else (gradient / distances).masked_fill_(distances == 0, 0)
        pull = (pull + pull.T).to(x.dtype)
        return (pull.sum(dim=1, keepdim=True) * x - pull @ x).to(distances.dtype), None


def _all_triplets(
    distances: Tensor, positive: Tensor, negative: Tensor, margin: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the loss over all triplets, its slope in each distance, and the number of losses above 0.

    The slopes are summed while the blocks pass, so that backward needs one [B, B] sheet, not a B^3 graph.
    """
    total = distances.new_zeros(())
    nonzero = torch.zeros((), dtype=torch.int64, device=distances.device)
    slopes = torch.zeros_like(distances)
    for columns, valid in batch_all(positive, negative):
        gaps = distances.gather(1, columns)[:, :, None] - distances[:, None, :]
        losses = _hinge(gaps, margin).masked_fill_(~valid, 0)
        slope = (losses > 0).to(gaps.dtype) if margin is not None else gaps.sigmoid_().mul_(valid)
        total += losses.sum()
        nonzero += (losses > 0).sum()
        slopes.scatter_add_(1, columns, slope.sum(dim=2))
        slopes -= slope.sum(dim=1)
    return total, slopes, nonzero


def _all_pairs(
    distances: Tensor,
    positive: Tensor,
    negative: Tensor,
    form: ContrastiveForm,
    positive_margin: float,
    negative_margin: float,
    reduction: ContrastiveReduction,
) -> tuple[Tensor, Tensor]:
    """The contrastive loss of all pairs, and its slope in each distance."""
    gaps = torch.where(positive, distances - positive_margin, negative_margin - distances).relu_()
    gaps.masked_fill_(~(positive | negative), 0)
    counted = gaps > 0 if reduction == "mean_nonzero" else positive | negative
    kinds = (counted, counted) if reduction == "pairs" else (counted & positive, counted & negative)
    near, far = (kind.sum().clamp_min(1).to(gaps.dtype) for kind in kinds)
    slopes = torch.where(positive, 1 / near, -1 / far)
    slopes *= gaps if form == "hadsell" else gaps > 0
    value = gaps.mul_(slopes.abs()).sum()
    return (0.5 * value if form == "hadsell" else value), slopes


class _WithSlopes(torch.autograd.Function):
    """Gives a value that was computed outside of the graph the slopes that belong to it."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradients[0] * slopes, None, None
