"""Losses over groups of samples larger than a triplet."""

from typing import ClassVar

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.mined import MinerOption, may_mine, no_miner
from metricid.losses.pairwise import PairwiseLoss, not_negative, positive
from metricid.losses.tuples import (
    angular_loss,
    generalized_lifted_loss,
    lifted_structure_loss,
    quadruplet_loss,
)


@LOSSES.register("quadruplet")
class QuadrupletLoss(PairwiseLoss):
    """Triplet, and a push against pairs of other classes; `functional.quadruplet_loss` has the formula.

    Args:
        margin: against the anchor's own negative.
        second_margin: against the nearest pair of two other classes.
        normalize: put the embeddings on the unit sphere first.
        squared: compare squared distances, as the paper does.
        miner: always null: it finds the hardest quadruplets by itself.
    """

    kind: ClassVar[str] = "tuple"
    formula: ClassVar[str] = "max(0, d_ap - d_an + margin) + max(0, d_ap - d_kl + second_margin)"
    use: ClassVar[str] = "re-ID, where triplets leave the spread of a class too large to generalise"
    source: ClassVar[str] = "Chen et al., CVPR 2017"
    grows_squared: ClassVar[bool] = True
    function = staticmethod(quadruplet_loss)

    def __init__(
        self,
        *,
        margin: float = 1.0,
        second_margin: float = 0.5,
        normalize: bool = True,
        squared: bool = True,
        miner: MinerOption = None,
    ):
        super().__init__(margin=margin, second_margin=second_margin, normalize=normalize, squared=squared)
        check_options(
            margin=not_negative(margin),
            second_margin=not_negative(second_margin),
            miner=no_miner(miner, "finds its hardest quadruplets by itself"),
        )


@LOSSES.register("lifted_structure")
class LiftedStructureLoss(PairwiseLoss):
    """Each positive pair against all negatives of both; `functional.lifted_structure_loss` has the formula.

    Args:
        margin: in the unit of the distances.
        normalize: put the embeddings on the unit sphere first.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "tuple"
    formula: ClassVar[str] = (
        "max(0, log(sum_k exp(margin - d_ik) + sum_l exp(margin - d_jl)) + d_ij)^2 / 2, (i, j) positive"
    )
    use: ClassVar[str] = "retrieval; every negative of the batch takes part in every positive pair"
    source: ClassVar[str] = "Song et al., CVPR 2016"
    function = staticmethod(lifted_structure_loss)

    def __init__(self, *, margin: float = 1.0, normalize: bool = False, miner: MinerOption = None):
        super().__init__(margin=margin, normalize=normalize, miner=miner)
        check_options(margin=positive(margin), miner=may_mine(miner))


@LOSSES.register("generalized_lifted")
class GeneralizedLiftedLoss(PairwiseLoss):
    """Lifted over all positives of an anchor; `functional.generalized_lifted_loss` has the formula.

    Args:
        margin: in the unit of the distances.
        normalize: put the embeddings on the unit sphere first.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "tuple"
    formula: ClassVar[str] = "max(0, log sum_p exp(d_ap) + log sum_n exp(margin - d_an))"
    use: ClassVar[str] = "re-ID with the PK sampler; a smooth form of the hardest triplet"
    source: ClassVar[str] = "Hermans et al., arXiv 1703.07737"
    function = staticmethod(generalized_lifted_loss)

    def __init__(self, *, margin: float = 1.0, normalize: bool = False, miner: MinerOption = None):
        super().__init__(margin=margin, normalize=normalize, miner=miner)
        check_options(margin=positive(margin), miner=may_mine(miner))


@LOSSES.register("angular")
class AngularLoss(PairwiseLoss):
    """Bounds the angle at the negative of each triangle; `functional.angular_loss` has the formula.

    Args:
        alpha: in degrees, at most 65; smaller asks for more.
        normalize: put the embeddings on the unit sphere first.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "tuple"
    formula: ClassVar[str] = "log(1 + sum_n exp(4 t (x_a + x_p).x_n - 2 (1 + t) x_a.x_p)), t = tan(alpha)^2"
    use: ClassVar[str] = "classes of very different spread: an angle does not depend on the scale"
    source: ClassVar[str] = "Wang et al., ICCV 2017"
    grows_squared: ClassVar[bool] = True
    function = staticmethod(angular_loss)

    def __init__(self, *, alpha: float = 45.0, normalize: bool = True, miner: MinerOption = None):
        super().__init__(alpha=alpha, normalize=normalize, miner=miner)
        check_options(
            alpha=(0 < alpha <= 65, f"must lie in (0, 65] degrees, got {alpha}"), miner=may_mine(miner)
        )
