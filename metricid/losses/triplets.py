"""Losses over triplets, as pure functions; `tuples` has those over larger groups."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.losses.checks import no_autocast
from metricid.losses.gaps import pair_distances
from metricid.losses.matrices import Pairs, Rows, compare, mean_over_anchors
from metricid.losses.mined import MinerChoice, choose, keep, miner_of, triplets_of
from metricid.losses.shares import as_numbers, with_slopes
from metricid.mining.inbatch import Triplets, batch_all
from metricid.mining.miners import MINERS, BatchAll, BatchHard, TripletSet, build_miner
from metricid.mining.miners.base import Tally

TripletReduction = Literal["mean", "mean_nonzero"]


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float | None = 0.3,
    miner: MinerChoice = "batch_hard",
    normalize: bool = False,
    squared: bool = False,
    swap: bool = False,
    reduction: TripletReduction = "mean",
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Keeps positives nearer than negatives by a margin (Schroff et al., CVPR 2015, section 3.1).

    max(0, d_ap - d_an + margin), or without a margin log(1 + exp(d_ap - d_an)) (Hermans et al., arXiv
    1703.07737, section 2), over the triplets of the miner: one per anchor (their eq. 5, 'batch_hard'), all
    (their eq. 6, 'batch_all'), one per pair ('semi_hard'), and so on; of a miner that weighs pairs, all
    triplets of two such pairs, each as often as the product of their weights. With `swap` the negative stands
    at min(d_an, d_pn) (Balntas et al., BMVC 2016); the miner looks at d_an alone.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
        margin: in the unit of the distances; None for the soft margin.
        miner: which triplets count; one that has a margin takes this one where it is given by name alone. The
            tally of a `BatchAll` counts the triplets with a loss.
        normalize: put the embeddings on the unit sphere first.
        squared: compare squared distances, as FaceNet does.
        swap: compare with the nearer of anchor and positive.
        reduction: 'mean' over the triplets of the miner, or over those with a loss above 0.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar; 0 with a graph, and zero gradients, when there is no triplet. Where all embeddings are equal
        the loss is the margin and the gradient 0, as no direction is better than another; embeddings that are
        merely close get the full gradient, unless `squared`.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        chosen = build_miner(with_margin(miner, margin))
        tally = chosen.tally if isinstance(chosen, BatchAll) else None
        chosen = None if tally is not None else chosen
        if chosen is None or not chosen.in_triplets:
            if chosen is not None and not isinstance(chosen, TripletSet):
                pairs, chosen = keep(pairs, chosen, squared=squared), None
            if chosen is None and margin is not None and not swap:
                return _all_hinges(pairs, margin, squared, reduction, tally)
            return _all_in_blocks(pairs, chosen, margin, squared, swap, reduction, tally)
        if chosen.single:
            triplets = choose(pairs, chosen, squared=True)
            sides = torch.cat([triplets.positive, triplets.negative], dim=1)
            near, far = pairs.distances_to(sides, squared=squared).split(1, dim=1)
        else:
            distances = pairs.distances(squared=squared)
            triplets = choose(pairs, chosen, squared=squared, sheet=distances.detach())
            near, far = distances.gather(1, triplets.positive), distances.gather(1, triplets.negative)
        if swap:
            across = pair_distances(pairs.y, None, triplets.positive, triplets.negative, squared)
            far = torch.minimum(far, across)
        losses = hinge(near - far, margin).masked_fill(~triplets.valid, 0)
        counted = triplets.valid & (losses > 0) if reduction == "mean_nonzero" else triplets.valid
        return losses.sum() / counted.sum().clamp_min(1) + pairs.nan_or_zero()


def weighted_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    normalize: bool = False,
    miner: MinerChoice = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Weighted-regularised triplet loss of AGW (Ye et al., TPAMI 2021).

    Per anchor log(1 + exp(sum_p w_p d_p - sum_n w_n d_n)), with w_p the softmax of the distances to its
    positives and w_n that of minus the distances to its negatives: all pairs count, hard ones most, and there
    is no margin to choose. The weights are part of the gradient, as in the authors' code.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64, any values.
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

    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        lowest = -torch.finfo(values.dtype).max
        near, far = values, -values
        if weights is not None:
            times = weights.clamp_min(torch.finfo(values.dtype).tiny).log()
            near, far = near + times, far + times
        near = (near.masked_fill(~positive, lowest).softmax(dim=1) * values).sum(dim=1)
        far = (far.masked_fill(~negative, lowest).softmax(dim=1) * values).sum(dim=1)
        known = positive.any(dim=1) & negative.any(dim=1)
        return Rows(F.softplus(near - far).where(known, 0.0), known)

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=normalize
        )
        return mean_over_anchors(keep(pairs, miner_of(miner)), "distance", rows)


def with_margin(choice: MinerChoice, margin: float | None) -> MinerChoice:
    """The choice of a miner, with the margin of the loss where it has one and none was given."""
    if not isinstance(choice, str | Mapping):
        return choice
    options: dict[str, Any] = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.get("name")
    if name in MINERS.names() and "margin" in inspect.signature(MINERS.get(name)).parameters:
        options.setdefault("margin", margin)
    return options


def hardest(pairs: Pairs) -> Triplets:
    """The hardest triplet of each anchor, found some rows at a time."""
    return choose(pairs, BatchHard(), squared=True)


def hinge(gap: Tensor, margin: float | None) -> Tensor:
    """max(0, gap + margin), or log(1 + e^gap) for the soft margin."""
    return F.softplus(gap) if margin is None else F.relu(gap + margin)


def _all_hinges(
    pairs: Pairs, margin: float, squared: bool, reduction: TripletReduction, tally: Tally | None
) -> Tensor:
    """All triplets of a hinge, in O(M log P) for an anchor with P positives, by sorting and prefix sums.

    A triplet has a loss if d_n < d_p + margin. The thresholds of an anchor's positives, in order, cut its
    negatives into bins; sums over bins give for each positive the number and the sum of the nearer negatives,
    and the bin of a negative the number of positives that it violates. A tally takes the number of triplets
    with a loss.
    """
    slots = pairs.most_positives()
    found = torch.zeros((), dtype=_wide(pairs.x), device=pairs.x.device)

    def rows(
        values: Tensor, positive: Tensor, negative: Tensor, _: Tensor | None, weights: Tensor | None
    ) -> Rows:
        with torch.no_grad():
            result, active = _hinges_of_rows(values, positive, negative, weights, slots, margin, reduction)
            found.add_(active.sum())
            return result

    loss = mean_over_anchors(pairs, "squared" if squared else "distance", rows, width=2)
    if tally is not None:
        tally.add(found)
    return loss


def _hinges_of_rows(
    values: Tensor,
    positive: Tensor,
    negative: Tensor,
    weights: Tensor | None,
    slots: int,
    margin: float,
    reduction: TripletReduction,
) -> tuple[Rows, Tensor]:
    """The rows, and how many triplets of each positive slot have a loss [R, P]."""
    wide = _wide(values)
    thresholds, columns = values.masked_fill(~positive, torch.inf).topk(slots, dim=1, largest=False)
    thresholds = thresholds + margin
    real = thresholds.isfinite()
    bins = torch.searchsorted(thresholds, values, right=True)  # how many thresholds are at most d_n
    edge = thresholds.shape[1]
    bins = bins.masked_fill_(~negative, edge)
    times = as_numbers(negative, wide, weights)
    far = values.to(wide).masked_fill(~negative, 0)
    counts = torch.zeros(len(values), edge + 1, dtype=wide, device=values.device)
    sums = counts.clone()
    counts.scatter_add_(1, bins, times)
    sums.scatter_add_(1, bins, far if weights is None else far.mul_(times))
    counts, sums = (t[:, :edge].cumsum(dim=1).masked_fill_(~real, 0) for t in (counts, sums))
    by_positive = counts * thresholds.masked_fill(~real, 0) - sums
    if weights is None:
        violated = (real.sum(dim=1, keepdim=True) - bins).clamp_min_(0).masked_fill_(~negative, 0)
        slopes = -violated.to(values.dtype)
    else:
        own = weights.gather(1, columns).to(wide).masked_fill_(~real, 0)
        by_positive, counts = by_positive * own, counts * own
        # Of the positives from a bin on, all of whose thresholds a negative of that bin is below.
        beyond = torch.cat([own.flip(1).cumsum(dim=1).flip(1), torch.zeros_like(own[:, :1])], dim=1)
        slopes = beyond.gather(1, bins).mul_(times).neg_().to(values.dtype)
    losses = by_positive.sum(dim=1).to(values.dtype)
    slopes.scatter_add_(1, columns, counts.to(values.dtype))
    if reduction == "mean_nonzero":
        counted = counts.sum(dim=1)
    elif weights is None:
        counted = positive.sum(dim=1) * negative.sum(dim=1)
    else:
        counted = own.sum(dim=1) * times.sum(dim=1)
    return Rows(losses, counted, slopes), counts


def _all_in_blocks(
    pairs: Pairs,
    miner: TripletSet | None,
    margin: float | None,
    squared: bool,
    swap: bool,
    reduction: TripletReduction,
    tally: Tally | None,
) -> Tensor:
    """All triplets of the soft margin, with a swap or of a miner, a few positives of each anchor at a time.

    The slopes are summed while the blocks pass, so that backward needs one [B, M] sheet, with a swap one
    [M, M] sheet more for the distances among references, and not a B^3 graph. A tally takes the number of
    triplets with a loss.
    """
    distances, weights = pairs.distances(squared=squared), pairs.weights
    fixed = distances.detach()
    across = (distances if pairs.own else pairs.between(squared=squared)) if swap else None
    positive, negative = pairs.masks()
    total = fixed.new_zeros(())
    count, nonzero = (torch.zeros((), dtype=_wide(fixed), device=fixed.device) for _ in range(2))
    slopes = torch.zeros_like(fixed)
    across_slopes = None if across is None else torch.zeros_like(across)
    if miner is None:
        blocks = batch_all(positive, negative)
    else:
        blocks = triplets_of(pairs, miner, fixed, squared=squared)
    for columns, valid in blocks:
        far = fixed[:, None, :]
        nearer = None
        if across is not None:
            beside = across.detach()[columns]
            nearer = beside < far
            far = torch.where(nearer, beside, far)
        gaps = fixed.gather(1, columns)[:, :, None] - far
        losses = hinge(gaps, margin).masked_fill_(~valid, 0)
        slope = (losses > 0).to(gaps.dtype) if margin is not None else gaps.sigmoid_().mul_(valid)
        times = valid
        if weights is not None:
            times = weights.gather(1, columns)[:, :, None] * weights[:, None, :] * valid
            losses, slope, active = losses * times, slope * times, (losses > 0) * times
        else:
            active = losses > 0
        total += losses.sum()
        nonzero += active.sum()
        if miner is not None or weights is not None:
            count += times.sum()
        slopes.scatter_add_(1, columns, slope.sum(dim=2))
        if nearer is not None and across_slopes is not None:
            across_slopes.index_add_(0, columns.flatten(), (slope * nearer).flatten(0, 1), alpha=-1)
            slope = slope.masked_fill_(nearer, 0)
        slopes -= slope.sum(dim=1)
    if miner is None and weights is None:
        count += (positive.sum(1) * negative.sum(1)).sum()
    if tally is not None:
        tally.add(nonzero)
    count = count if reduction == "mean" else nonzero
    count = count.where(count > 0, 1).to(fixed.dtype)
    if across is not None and across_slopes is not None:
        if pairs.own:
            slopes += across_slopes
        else:
            total, shared = with_slopes(distances, total, slopes), across_slopes
            total = total + with_slopes(across, torch.zeros_like(total), shared)
            return total / count + pairs.nan_or_zero()
    return with_slopes(distances, total, slopes) / count + pairs.nan_or_zero()


def _wide(values: Tensor) -> torch.dtype:
    """For sums of many, and their differences."""
    return values.dtype if values.device.type == "mps" else torch.float64
