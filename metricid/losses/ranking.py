"""Losses that stand for a measure of the ranking, as pure functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metricid.losses.checks import no_autocast
from metricid.losses.matrices import Rows, compare, mean_over_anchors
from metricid.losses.shares import log_sum_and_shares, with_slopes


def ranked_list_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    boundary: float = 1.2,
    margin: float = 0.4,
    temperature: float = 10.0,
    positive_temperature: float = 0.0,
    balance: float = 0.5,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Ranked list loss (Wang et al., CVPR 2019).

    Per anchor (1 - balance) L_P + balance L_N: L_P is the mean of d - (boundary - margin) over the positives
    beyond that distance, L_N that of boundary - d over the negatives nearer than `boundary`. The means are
    weighted by exp(T (d - boundary + margin)) and exp(T (boundary - d)), T being the temperature of the
    positives or negatives; the weights are part of the gradient.

    Args:
        embeddings: [B, D], any float dtype; put on the unit sphere.
        labels: [B] int64, any values.
        boundary: alpha, the distance beyond which negatives are left alone.
        margin: m; positives within boundary - margin are left alone.
        temperature: of the negatives, at least 0.
        positive_temperature: of the positives, at least 0.
        balance: lambda in [0, 1], the share of the negatives.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over all anchors; a side without such pairs adds 0.

    Raises:
        ValueError: shapes disagree.
    """

    @torch.no_grad()
    def rows(values: Tensor, positive: Tensor, negative: Tensor, *_: Tensor | None) -> Rows:
        near, far = values - (boundary - margin), boundary - values
        pulled, by_near = _weighted_mean(near, positive & (near > 0), positive_temperature)
        pushed, by_far = _weighted_mean(far, negative & (far > 0), temperature)
        slopes = by_near.mul_(1 - balance).sub_(by_far, alpha=balance)
        return Rows((1 - balance) * pulled + balance * pushed, torch.ones_like(pulled), slopes)

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        return mean_over_anchors(pairs, "distance", rows)


def histogram_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    bins: int = 100,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Histogram loss (Ustinova and Lempitsky, NeurIPS 2016).

    The chance that a random negative pair is more similar than a random positive one: sum over r of h-_r
    (sum over q <= r of h+_q), with h+ and h- the histograms of the cosines of positive and negative pairs. A
    pair falls into its two next nodes by linear interpolation.

    Args:
        embeddings: [B, D], any float dtype; put on the unit sphere.
        labels: [B] int64, any values.
        bins: intervals between -1 and 1; the histogram has one node more.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar; 0 with a graph if there is no positive or no negative pair.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        cosines = pairs.dots()
        with torch.no_grad():
            place = ((cosines + 1) * (bins / 2)).nan_to_num_().clamp_(0, bins)
            node = place.floor().clamp_(max=bins - 1).to(torch.int64)
            share = place.sub_(node)
            histograms, counts = [], []
            masks = pairs.masks()
            for mask in masks:
                held = share.new_zeros(bins + 1)
                held.scatter_add_(0, node.flatten(), (share.neg().add_(1) * mask).flatten())
                held.scatter_add_(0, node.flatten() + 1, (share * mask).flatten())
                counts.append(mask.sum().clamp_min(1).to(held.dtype))
                histograms.append(held / counts[-1])
            positive, negative = histograms
            nearer = positive.cumsum(0)
            value = (negative * nearer).sum()
            # A positive that moves to the next node leaves the running sum of its own; a negative that does
            # meets the positives of the next.
            step_p, step_n = -negative[:-1] / counts[0], positive[1:] / counts[1]
            slopes = torch.where(masks[0], step_p[node], step_n[node]) * (bins / 2)
            slopes.masked_fill_(~(masks[0] | masks[1]), 0)
        return with_slopes(cosines, value, slopes) + pairs.nan_or_zero()


def fast_ap_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    bins: int = 10,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """FastAP (Cakir et al., CVPR 2019): 1 minus average precision over a soft histogram of squared distances.

    Per anchor, with h+_j and h_j the mass of its positives and of all samples at node j of [0, 4], and H+, H
    their running sums: 1 - (sum over j of h+_j H+_j / H_j) / number of positives.

    Args:
        embeddings: [B, D], any float dtype; put on the unit sphere.
        labels: [B] int64, any values.
        bins: intervals of the histogram; it has one node more.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the anchors that have a positive; 0 with a graph where none has.

    Raises:
        ValueError: shapes disagree.
    """

    def rows(values: Tensor, positive: Tensor, negative: Tensor, *_: Tensor | None) -> Rows:
        place = ((2 - 2 * values) * (bins / 4)).clamp(0, bins)
        node = place.detach().nan_to_num().floor().clamp_(max=bins - 1).to(torch.int64)
        share = place - node
        held = []
        for mask in (positive, positive | negative):
            low, high = ((1 - share) * mask, share * mask)
            empty = values.new_zeros(len(values), bins + 1)
            held.append(empty.scatter_add(1, node, low).scatter_add(1, node + 1, high))
        running = [histogram.cumsum(dim=1) for histogram in held]
        some = running[1] > 0
        precision = running[0] / running[1].where(some, 1.0)
        count = positive.sum(dim=1)
        lost = 1 - (held[0] * precision).sum(dim=1) / count.clamp(min=1)
        return Rows(lost.where(count > 0, 0.0), count > 0)

    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        return mean_over_anchors(pairs, "dot", rows)


def smooth_ap_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.01,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Smooth-AP (Brown et al., ECCV 2020): 1 minus average precision with ranks of sigmoids.

    Per anchor and positive p, with s the cosines, the rank among all samples is 1 + sum over j != p of
    sigmoid((s_j - s_p) / temperature), and R+(p) that among the positives; the loss is 1 minus the mean over
    p of R+(p) / R(p). The authors' code also counts the anchor among its own positives; pass the batch as its
    own references for that.

    Args:
        embeddings: [B, D], any float dtype; put on the unit sphere.
        labels: [B] int64, any values, any number of samples of each.
        temperature: > 0.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the anchors that have a positive; 0 with a graph where none has.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        slots = pairs.most_positives()

        def rows(values: Tensor, positive: Tensor, negative: Tensor, *_: Tensor | None) -> Rows:
            real, above = _beaten(values, positive, negative, slots, temperature)
            # A sample is not above itself: sigmoid(0) = 1/2 leaves both sums again.
            everywhere = 0.5 + above.sum(dim=2)
            among = 0.5 + (above * positive[:, None, :]).sum(dim=2)
            count = positive.sum(dim=1)
            precision = (among / everywhere).where(real, 0.0).sum(dim=1) / count.clamp(min=1)
            return Rows((1 - precision).where(count > 0, 0.0), count > 0)

        return mean_over_anchors(pairs, "dot", rows, width=slots)


def recall_at_k_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: float = 0.01,
    rank_temperature: float = 1.0,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    with_batch: bool = False,
) -> Tensor:
    """Recall@k surrogate (Patel et al., CVPR 2022): 1 minus recall in the first k, averaged over several k.

    Per anchor and positive p the rank r_p is that of `smooth_ap_loss`; recall at k is the mean over the
    positives of sigmoid((k - r_p) / rank_temperature).

    Args:
        embeddings: [B, D], any float dtype; put on the unit sphere.
        labels: [B] int64, any values.
        ks: values of k; those of the paper's large batches. k beyond the batch adds no gradient.
        temperature: of the comparison of two cosines, > 0.
        rank_temperature: of the comparison of a rank with k, > 0.
        references: [M, D] that the batch is compared with; None for the batch itself without self-pairs.
        reference_labels: [M] int64.
        with_batch: as `compare` has it.

    Returns:
        Scalar, mean over the anchors that have a positive; 0 with a graph where none has.

    Raises:
        ValueError: shapes disagree.
    """
    with no_autocast(embeddings):
        pairs = compare(
            embeddings, labels, references, reference_labels, with_batch=with_batch, normalize=True
        )
        slots = pairs.most_positives()
        limits = torch.tensor(list(ks), dtype=pairs.x.dtype, device=pairs.x.device)

        def rows(values: Tensor, positive: Tensor, negative: Tensor, *_: Tensor | None) -> Rows:
            real, above = _beaten(values, positive, negative, slots, temperature)
            ranks = 0.5 + above.sum(dim=2)
            found = torch.sigmoid((limits - ranks[:, :, None]) / rank_temperature).mean(dim=2)
            count = positive.sum(dim=1)
            recall = found.where(real, 0.0).sum(dim=1) / count.clamp(min=1)
            return Rows((1 - recall).where(count > 0, 0.0), count > 0)

        return mean_over_anchors(pairs, "dot", rows, width=slots)


def _weighted_mean(values: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean of each row over a mask, weighted by exp(temperature * value), and its slopes; 0 if empty."""
    _, weights = log_sum_and_shares(temperature * values, mask)
    mean = (weights * values).sum(dim=1)
    return mean, (values - mean[:, None]).mul_(temperature).add_(1).mul_(weights)


def _beaten(
    values: Tensor, positive: Tensor, negative: Tensor, slots: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """By how much each sample stands above each positive.

    Returns:
        real [R, T] bool, whether there is a T-th positive, and [R, T, M] sigmoids, 0 for samples that take no
        part and 1/2 for the positive itself.
    """
    marks, columns = positive.to(torch.uint8).topk(slots, dim=1)
    gaps = (values[:, None, :] - values.gather(1, columns)[:, :, None]) / temperature
    return marks.bool(), gaps.sigmoid() * (positive | negative)[:, None, :]
