"""Triplet loss with triplets mined inside the batch."""

from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.pairs import TripletMiner, TripletReduction, triplet_loss


@LOSSES.register("triplet")
class TripletLoss(nn.Module):
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
        reduction: 'mean' over the mined triplets, or 'mean_nonzero' over those with a loss above 0, whose
            gradient does not fade as the triplets become easy.
        miner: 'batch_hard' (farthest positive and nearest negative of each anchor), 'batch_all' (all
            triplets) or 'semi_hard' (per pair, the nearest negative beyond the positive, inside the margin).
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        *,
        margin: float | None = 0.3,
        normalize: bool = False,
        squared: bool = False,
        reduction: Literal["mean", "mean_nonzero"] = "mean",
        miner: Literal["batch_hard", "batch_all", "semi_hard"] = "batch_hard",
    ):
        super().__init__()
        miners, reductions = get_args(TripletMiner), get_args(TripletReduction)
        check_options(
            margin=(
                margin is None or 0 <= margin < float("inf"),
                f"must be at least 0, or null for the soft margin, got {margin}",
            ),
            reduction=(reduction in reductions, f"must be one of {reductions}, got {reduction!r}"),
            miner=(miner in miners, f"must be one of {miners}, got {miner!r}"),
        )
        self.margin = margin
        self.normalize = normalize
        self.squared = squared
        self.reduction: TripletReduction = reduction
        self.miner: TripletMiner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of embeddings [B, D] with labels [B] int64."""
        return triplet_loss(
            embeddings,
            labels,
            margin=self.margin,
            miner=self.miner,
            normalize=self.normalize,
            squared=self.squared,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, miner={self.miner}, normalize={self.normalize}, squared={self.squared}, "
            f"reduction={self.reduction}"
        )
