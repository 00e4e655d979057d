"""Miners that choose triplets: columns of a positive and a negative for each anchor."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metricid.mining.inbatch import Triplets, batch_hard, positive_slots, semi_hard
from metricid.mining.miners.base import MINERS, Beside, Measure, Mined, Miner, at_least, check


@MINERS.register("batch_hard")
class BatchHard(Miner):
    """Of each anchor the farthest positive with the nearest negative."""

    name: ClassVar[str] = "batch_hard"
    source: ClassVar[str] = "Hermans et al., arXiv 1703.07737, eq. 5"
    single = True
    in_triplets = True

    def __init__(self) -> None:
        super().__init__()

    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Triplets:
        return batch_hard(sheet, positive, negative)


@MINERS.register("semi_hard")
class SemiHard(Miner):
    """Of each positive pair the nearest negative that is farther than the positive (FaceNet).

    Args:
        margin: it must also be nearer than the positive's distance plus this; null for no such limit. In the
            unit of the loss's distances; the paper's is 0.2, of squared distances. `triplet` gives it its own
            margin where none stands beside the name.
    """

    name: ClassVar[str] = "semi_hard"
    source: ClassVar[str] = "Schroff et al., CVPR 2015, section 3.2"
    in_triplets = True

    def __init__(self, *, margin: float | None = 0.2):
        super().__init__(margin=margin)
        check(margin=at_least(margin, 0, "no limit"))
        self.margin = margin

    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Triplets:
        return semi_hard(sheet, positive, negative, self.margin)


@MINERS.register("easy_positive")
class EasyPositive(Miner):
    """Of each anchor the nearest positive, so that a class may keep several clusters.

    Args:
        negatives: 'semi_hard' takes the nearest negative beyond that positive (EPSHN, the paper's best),
            'hard' the nearest of all (EPHN), 'all' every negative (EP).
    """

    name: ClassVar[str] = "easy_positive"
    source: ClassVar[str] = "Xuan et al., WACV 2020"

    def __init__(self, *, negatives: Literal["semi_hard", "hard", "all"] = "semi_hard"):
        super().__init__(negatives=negatives)
        known = ("semi_hard", "hard", "all")
        check(negatives=(negatives in known, f"must be one of {known}, got {negatives!r}"))
        self.negatives = negatives
        self.in_triplets = self.single = negatives != "all"

    @torch.no_grad()
    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Mined:
        near = sheet.masked_fill(~positive, torch.inf)
        nearest = near.argmin(dim=1, keepdim=True)
        has_positive = positive.any(dim=1, keepdim=True)
        if self.negatives == "all":
            weights = negative.to(sheet.dtype)
            return weights.scatter_add_(1, nearest, has_positive.to(sheet.dtype))
        usable = negative
        if self.negatives == "semi_hard":
            usable = negative & (sheet > sheet.gather(1, nearest))
        chosen = sheet.masked_fill(~usable, torch.inf).argmin(dim=1, keepdim=True)
        return Triplets(nearest, chosen, has_positive & usable.any(dim=1, keepdim=True))


@MINERS.register("distance_weighted")
class DistanceWeighted(Miner):
    """Of each positive pair a negative drawn so that all distances are equally likely.

    Args:
        cutoff: smaller distances are drawn as this one is, which bounds the variance of the gradient.
        limit: farther negatives are drawn only where an anchor has no nearer one; null for no limit. 1.4 is
            the authors' code's: beyond it the losses are 0.
    """

    name: ClassVar[str] = "distance_weighted"
    source: ClassVar[str] = "Wu et al., ICCV 2017, eq. 2 and 3"
    measure: ClassVar[Measure] = "sphere"
    takes_squares: ClassVar[bool] = False
    in_triplets = True

    def __init__(self, *, cutoff: float = 0.5, limit: float | None = 1.4):
        super().__init__(cutoff=cutoff, limit=limit)
        fits = limit is None or cutoff < limit
        check(
            cutoff=(0 < cutoff < 2, f"must lie in (0, 2), got {cutoff}"),
            limit=(fits, f"must be above the cutoff, or null for no limit, got {limit}"),
        )
        self.cutoff, self.limit = cutoff, limit

    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Triplets:
        if beside is None or beside.dim is None:
            raise ValueError("distance_weighted needs the width of the embeddings: pass Beside(dim=...)")
        limits: dict[str, Any] = {"cutoff": self.cutoff, "limit": self.limit}
        return distance_weighted(sheet, positive, negative, beside.dim, **limits)


@torch.no_grad()
def distance_weighted(
    distances: Tensor,
    positive: Tensor,
    negative: Tensor,
    dim: int,
    *,
    cutoff: float = 0.5,
    limit: float | None = 1.4,
    generator: torch.Generator | None = None,
) -> Triplets:
    """For each (anchor, positive) pair a negative drawn with a chance proportional to 1 / q(d).

    q(d) ~ d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2) is the density of the distances of random points of the unit
    sphere (Wu et al., ICCV 2017, eq. 2); draws are with replacement, as in the authors' code. Everything is
    in logarithms, and relative to the most likely negative of the anchor, so that no D over- or underflows.

    Args:
        distances: [A, N] between unit vectors.
        positive: [A, N] bool.
        negative: [A, N] bool.
        dim: D.
        cutoff: smaller distances count as this one.
        limit: negatives from here on are drawn only where there is no nearer one, all alike; None: no limit.
        generator: of the draws, on the device of `distances`; None for PyTorch's own, whose state
            checkpoints hold.

    Returns:
        T = the largest number of positives of one anchor on the CPU, N elsewhere.
    """
    columns, paired = positive_slots(positive, negative)
    d = distances.clamp(min=cutoff)
    log_inverse = (2.0 - dim) * d.log() - 0.5 * (dim - 3.0) * (1 - 0.25 * d.square()).clamp_min(1e-8).log()
    usable = negative
    if limit is not None:
        near = negative & (distances < limit)
        # Where no negative is near enough all of them are equally likely.
        usable = near | (negative & ~near.any(dim=1, keepdim=True))
        log_inverse = log_inverse.where(near, 0.0)
    log_inverse = log_inverse - log_inverse.masked_fill(~usable, -torch.inf).amax(dim=1, keepdim=True)
    weights = log_inverse.exp().where(usable, 0.0)
    weights = weights.where(usable.any(dim=1, keepdim=True), 1.0).nan_to_num(nan=1.0)
    if not columns.shape[1]:
        return Triplets(columns, columns, paired)
    drawn = torch.multinomial(weights, columns.shape[1], replacement=True, generator=generator)
    return Triplets(columns, drawn, paired)
