"""Miners that choose among all triplets, each by itself; a pair counts once for each that it is in."""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from metricid.mining.inbatch import batch_all
from metricid.mining.miners.base import MINERS, Beside, Miner, at_least, check

_BLOCK = 1 << 22


class TripletSet(Miner):
    """A miner with a rule for single triplets."""

    def triplets(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The triplets that count, a few positives of each anchor at a time, as `batch_all` gives them.

        Yields:
            columns [A, S] int64 of positives, valid [A, S, N] bool.
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Tensor:
        weights = torch.zeros_like(sheet)
        for columns, valid in self.triplets(sheet, positive, negative, beside):
            weights += valid.sum(dim=1)
            weights.scatter_add_(1, columns, valid.sum(dim=2).to(weights.dtype))
        return weights


@MINERS.register("semi_hard_all")
class SemiHardAll(TripletSet):
    """All triplets whose negative is farther than the positive, by less than a margin.

    Args:
        margin: in the unit of the loss's distances; null for no limit. `triplet` gives it its own margin
            where none stands beside the name.
    """

    name: ClassVar[str] = "semi_hard_all"
    source: ClassVar[str] = "Schroff et al., CVPR 2015, section 3.2, all such negatives"

    def __init__(self, *, margin: float | None = 0.2):
        super().__init__(margin=margin)
        check(margin=at_least(margin, 0, "no limit"))
        self.margin = margin

    @torch.no_grad()
    def triplets(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for columns, valid in batch_all(positive, negative):
            near, far = sheet.gather(1, columns)[:, :, None], sheet[:, None, :]
            valid &= far > near
            if self.margin is not None:
                valid &= far < near + self.margin
            yield columns, valid


@MINERS.register("angular")
class Angular(TripletSet):
    """All triplets that are seen from the negative under a wide angle.

    With c the middle between anchor and positive, the angle is atan(d_ap / (2 d_nc)), that of the angular
    loss; it does not depend on the scale of the embeddings.

    Args:
        angle: in degrees, in (0, 90): triplets with a larger one count.
    """

    name: ClassVar[str] = "angular"
    source: ClassVar[str] = "Wang et al., ICCV 2017, eq. 4"
    takes_squares: ClassVar[bool] = False
    by_rows: ClassVar[bool] = False

    def __init__(self, *, angle: float = 20.0):
        super().__init__(angle=angle)
        check(angle=(0 < angle < 90, f"must lie in (0, 90) degrees, got {angle}"))
        self.angle = angle

    @torch.no_grad()
    def triplets(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        between = None if beside is None else beside.between
        steep = math.tan(math.radians(self.angle)) ** 2
        squares = sheet.square()
        for rows in _parts(sheet.shape[1]):
            across = squares[rows] if between is None else between(rows).square()
            for columns, valid in batch_all(positive[:, rows], negative):
                near = squares[:, rows].gather(1, columns)[:, :, None]
                # Four times the squared length of the median at the negative: 2 a^2 + 2 b^2 - c^2.
                median = across[columns].add_(squares[:, None, :]).mul_(2).sub_(near).clamp_min_(0)
                valid &= near > steep * median
                yield columns + rows.start, valid


def _parts(size: int) -> Iterator[slice]:
    """Candidates whose distances to all others are held at once."""
    step = max(1, _BLOCK // size)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
