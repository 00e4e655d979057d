"""Miners that choose pairs, or weigh them: a matrix that says how often each pair counts."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from metricid.mining.miners.base import MINERS, Beside, Measure, Miner, at_least, check

_SLACK = 1e-6  # 0.1 * 30 is 3 pairs and not 4, whatever the rounding of 0.1


@MINERS.register("batch_all")
class BatchAll(Miner):
    """All pairs, and so all triplets: as no miner at all."""

    name: ClassVar[str] = "batch_all"
    source: ClassVar[str] = "Hermans et al., arXiv 1703.07737, eq. 6"

    def __init__(self) -> None:
        super().__init__()

    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Tensor:
        return (positive | negative).to(sheet.dtype)


@MINERS.register("hard_top_k")
class HardTopK(Miner):
    """Of each anchor the farthest positives and the nearest negatives.

    One of each is `batch_hard`; more are a compromise between that and all, where labels are noisy.

    Args:
        positives: how many; null for all.
        negatives: how many; null for all.
    """

    name: ClassVar[str] = "hard_top_k"
    source: ClassVar[str] = "Hermans et al., arXiv 1703.07737, eq. 5, with k in place of 1"

    def __init__(self, *, positives: int | None = 1, negatives: int | None = 10):
        super().__init__(positives=positives, negatives=negatives)
        check(positives=at_least(positives, 1, "all"), negatives=at_least(negatives, 1, "all"))
        self.positives, self.negatives = positives, negatives

    @torch.no_grad()
    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Tensor:
        weights = torch.zeros_like(sheet)
        for mask, count, sign in ((positive, self.positives, 1), (negative, self.negatives, -1)):
            if count is None or count >= sheet.shape[1]:
                weights += mask
                continue
            columns = (sign * sheet).masked_fill(~mask, -torch.inf).topk(count, dim=1).indices
            weights.scatter_add_(1, columns, mask.gather(1, columns).to(weights.dtype))
        return weights


@MINERS.register("multi_similarity")
class MultiSimilarity(Miner):
    """Positives less similar than the nearest negative plus a slack, and the other way round.

    Args:
        epsilon: the slack, in cosines.
    """

    name: ClassVar[str] = "multi_similarity"
    source: ClassVar[str] = "Wang et al., CVPR 2019, eq. 11 and 12"
    measure: ClassVar[Measure] = "cosine"

    def __init__(self, *, epsilon: float = 0.1):
        super().__init__(epsilon=epsilon)
        check(epsilon=at_least(epsilon, 0))
        self.epsilon = epsilon

    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Tensor:
        near, far = multi_similarity(sheet, positive, negative, self.epsilon)
        return (near | far).to(sheet.dtype)


@torch.no_grad()
def multi_similarity(
    cosines: Tensor, positive: Tensor, negative: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Positives with s - epsilon below the largest negative, negatives with s + epsilon above the smallest
    positive (Wang et al., CVPR 2019, eq. 11 and 12).

    Args:
        cosines: [A, N].
        positive: [A, N] bool.
        negative: [A, N] bool.
        epsilon: slack.

    Returns:
        The two masks with what is selected of each; nothing where the anchor lacks the other kind.
    """
    nearest = cosines.masked_fill(~negative, -torch.inf).amax(dim=1, keepdim=True)
    farthest = cosines.masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)
    return positive & (cosines - epsilon < nearest), negative & (cosines + epsilon > farthest)


@MINERS.register("hdc")
class HardPercentile(Miner):
    """Of all positive pairs of the batch a share of the farthest, of all negative pairs one of the nearest.

    The choice is among the pairs of all anchors together: an anchor without hard pairs has none. Pairs
    exactly as hard as the last one chosen are chosen, too.

    Args:
        share: in (0, 1]; the paper's three levels take 1, 0.5 and 0.2.
    """

    name: ClassVar[str] = "hdc"
    source: ClassVar[str] = "Yuan et al., ICCV 2017 (hard-aware deeply cascaded embedding)"
    by_rows: ClassVar[bool] = False

    def __init__(self, *, share: float = 0.5):
        super().__init__(share=share)
        check(share=(0 < share <= 1, f"must lie in (0, 1], got {share}"))
        self.share = share

    @torch.no_grad()
    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Tensor:
        chosen = negative & (sheet <= _limit(sheet, negative, self.share, largest=False))
        chosen |= positive & (sheet >= _limit(sheet, positive, self.share, largest=True))
        return chosen.to(sheet.dtype)


def _limit(values: Tensor, mask: Tensor, share: float, *, largest: bool) -> Tensor:
    """The last of the ceil(share * count) smallest, or largest, masked values; any where there is none."""
    return (_selected if values.device.type == "cpu" else _sorted)(values, mask, share, largest)


def _selected(values: Tensor, mask: Tensor, share: float, largest: bool) -> Tensor:
    values = values.float() if values.dtype == torch.bfloat16 else values  # which NumPy does not know
    # PyTorch's own selection and kthvalue hold places of all the values, eight bytes for each.
    among = values.numpy()[mask.numpy()]
    if not len(among):
        return values.new_zeros(())
    wanted = max(1, math.ceil(share * len(among) - _SLACK))
    place = len(among) - wanted if largest else wanted - 1
    among.partition(place)
    return values.new_tensor(among[place])


def _sorted(values: Tensor, mask: Tensor, share: float, largest: bool) -> Tensor:
    """As `_selected`, but the host does not wait to know how many there are."""
    left_out = -torch.inf if largest else torch.inf
    ordered = values.masked_fill(~mask, left_out).flatten().sort(descending=largest).values
    count = mask.sum().to(torch.float32 if values.device.type == "mps" else torch.float64)
    wanted = (count * share - _SLACK).ceil().long().clamp(min=1)
    return ordered.gather(0, wanted[None] - 1)[0]


@MINERS.register("adaptive_weights")
class AdaptiveWeights(Miner):
    """All pairs of an anchor, its far positives and near negatives more than others.

    A positive's weight is proportional to exp(d / t), a negative's to exp(-d / t). The weights of an anchor's
    positives average 1, and so do those of its negatives. They carry no gradient.

    Args:
        temperature: t, in the unit of the loss's distances; a small one comes near `batch_hard`.
    """

    name: ClassVar[str] = "adaptive_weights"
    source: ClassVar[str] = "Ristani and Tomasi, CVPR 2018, eq. 6"

    def __init__(self, *, temperature: float = 1.0):
        super().__init__(temperature=temperature)
        check(temperature=(0 < temperature < math.inf, f"must be positive, got {temperature}"))
        self.temperature = temperature

    @torch.no_grad()
    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Tensor:
        weights = torch.zeros_like(sheet)
        lowest = torch.finfo(sheet.dtype).min / 2
        for mask, sign in ((positive, 1), (negative, -1)):
            shares = (sign / self.temperature * sheet).masked_fill(~mask, lowest).softmax(dim=1)
            weights += shares.mul_(mask).mul_(mask.sum(dim=1, keepdim=True))
        return weights
