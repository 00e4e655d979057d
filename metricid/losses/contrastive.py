"""Contrastive loss over all pairs of the batch."""

from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.pairs import ContrastiveForm, ContrastiveReduction, contrastive_loss


@LOSSES.register("contrastive")
class ContrastiveLoss(nn.Module):
    """Pulls positives together, pushes negatives away; `functional.contrastive_loss` has the formula.

    Args:
        form: 'hadsell' is the paper's squared form with its factor 1/2, 'linear' the unsquared one.
        positive_margin: distance below which a positive pair is left alone.
        negative_margin: distance beyond which a negative pair is left alone.
        normalize: True puts the embeddings on the unit sphere, on which a margin of 1 means an angle of 60
            degrees; False compares them raw, and the margin must then suit their scale.
        reduction: 'mean_nonzero' averages positive and negative pairs apart, each over those with a loss
            above 0, and adds the two: negatives keep their weight when most are already far. 'mean' counts
            the zeros too; 'pairs' is one mean over all pairs.
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        *,
        form: Literal["hadsell", "linear"] = "hadsell",
        positive_margin: float = 0.0,
        negative_margin: float = 1.0,
        normalize: bool = True,
        reduction: Literal["mean", "mean_nonzero", "pairs"] = "mean_nonzero",
    ):
        super().__init__()
        forms, reductions = get_args(ContrastiveForm), get_args(ContrastiveReduction)
        check_options(
            form=(form in forms, f"must be one of {forms}, got {form!r}"),
            positive_margin=(
                0 <= positive_margin < float("inf"),
                f"must be at least 0, got {positive_margin}",
            ),
            negative_margin=(
                0 < negative_margin < float("inf"),
                f"must be positive, got {negative_margin}",
            ),
            reduction=(reduction in reductions, f"must be one of {reductions}, got {reduction!r}"),
        )
        self.form: ContrastiveForm = form
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.normalize = normalize
        self.reduction: ContrastiveReduction = reduction

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of embeddings [B, D] with labels [B] int64."""
        return contrastive_loss(
            embeddings,
            labels,
            form=self.form,
            positive_margin=self.positive_margin,
            negative_margin=self.negative_margin,
            normalize=self.normalize,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"form={self.form}, positive_margin={self.positive_margin}, "
            f"negative_margin={self.negative_margin}, normalize={self.normalize}, reduction={self.reduction}"
        )
