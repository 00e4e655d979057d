"""Losses over triplets found inside the batch."""

from typing import Any, ClassVar, Literal, get_args

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.mined import MinerOption, may_mine
from metricid.losses.pairwise import PairwiseLoss, one_of
from metricid.losses.triplets import TripletReduction, triplet_loss, weighted_triplet_loss, with_margin
from metricid.mining.miners import BatchAll


@LOSSES.register("triplet")
class TripletLoss(PairwiseLoss):
    """Keeps each positive nearer than a negative by a margin; `functional.triplet_loss` has the formula.

    Batches need several images of each identity: use the PK sampler.

    Args:
        margin: in the unit of the distances; None for the soft margin log(1 + e^gap), which never stops
            pulling.
        normalize: False compares raw embeddings, as the strong re-ID baselines do on the features before the
            neck (Luo et al., CVPRW 2019): the network then also learns the scale against which the margin
            stands. Use True where the vectors are compared by cosine later and nothing else fixes their
            scale; distances then lie in [0, 2].
        squared: compare squared distances, as FaceNet does on normalised embeddings. Their gradient fades as
            the samples approach each other, which makes a collapse to one point harder to leave.
        swap: compare the negative with the anchor or the positive, whichever is nearer to it.
        reduction: 'mean' over the mined triplets, or 'mean_nonzero' over those with a loss above 0, whose
            gradient does not fade as the triplets become easy.
        miner: which triplets of the batch count, by name or as {name: ..., option: ...}; null is batch_all.
            One that has a margin takes that of the loss, unless it is given its own.
    """

    kind: ClassVar[str] = "tuple"
    formula: ClassVar[str] = "max(0, d_ap - d_an + margin), or log(1 + exp(d_ap - d_an)) without a margin"
    use: ClassVar[str] = "re-ID, beside softmax; few images per identity"
    source: ClassVar[str] = "Schroff et al., CVPR 2015; Hermans et al., arXiv 1703.07737"
    function = staticmethod(triplet_loss)

    def __init__(
        self,
        *,
        margin: float | None = 0.3,
        normalize: bool = False,
        squared: bool = False,
        swap: bool = False,
        reduction: Literal["mean", "mean_nonzero"] = "mean",
        miner: MinerOption = "batch_hard",
    ):
        super().__init__(
            margin=margin,
            normalize=normalize,
            squared=squared,
            swap=swap,
            reduction=reduction,
            miner=with_margin(miner, margin),
        )
        check_options(
            margin=(
                margin is None or 0 <= margin < float("inf"),
                f"must be at least 0, or null for the soft margin, got {margin}",
            ),
            reduction=one_of(reduction, get_args(TripletReduction)),
            miner=may_mine(miner),
        )
        self.miner = self.miner or BatchAll()  # its tally is told of the triplets with a loss

    @property
    def arguments(self) -> dict[str, Any]:
        """The options, and the miner."""
        return {**self.options, "miner": self.miner}


@LOSSES.register("weighted_triplet")
class WeightedTripletLoss(PairwiseLoss):
    """All triplets of an anchor in one soft margin; `functional.weighted_triplet_loss` has the formula.

    Args:
        normalize: put the embeddings on the unit sphere first; the authors compare raw features.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "tuple"
    formula: ClassVar[str] = "log(1 + exp(sum_p w_p d_ap - sum_n w_n d_an)), w = softmax of d_ap, of -d_an"
    use: ClassVar[str] = "re-ID, in place of the hardest triplets where labels are noisy; no margin to tune"
    source: ClassVar[str] = "Ye et al., TPAMI 2021 (AGW)"
    function = staticmethod(weighted_triplet_loss)

    def __init__(self, *, normalize: bool = False, miner: MinerOption = None):
        super().__init__(normalize=normalize, miner=miner)
        check_options(miner=may_mine(miner))
