"""Contrastive losses over all pairs of the batch."""

from typing import ClassVar, Literal, get_args

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.mined import MinerOption, may_mine
from metricid.losses.pairs import (
    ContrastiveForm,
    ContrastiveReduction,
    contrastive_loss,
    snr_contrastive_loss,
)
from metricid.losses.pairwise import PairwiseLoss, not_negative, one_of, positive


@LOSSES.register("contrastive")
class ContrastiveLoss(PairwiseLoss):
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
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "pair"
    formula: ClassVar[str] = "max(0, d_p - positive_margin)^2 / 2 + max(0, negative_margin - d_n)^2 / 2"
    use: ClassVar[str] = "a fixed distance should separate, as in verification with one threshold"
    source: ClassVar[str] = "Hadsell et al., CVPR 2006"
    function = staticmethod(contrastive_loss)

    def __init__(
        self,
        *,
        form: Literal["hadsell", "linear"] = "hadsell",
        positive_margin: float = 0.0,
        negative_margin: float = 1.0,
        normalize: bool = True,
        reduction: Literal["mean", "mean_nonzero", "pairs"] = "mean_nonzero",
        miner: MinerOption = None,
    ):
        super().__init__(
            form=form,
            positive_margin=positive_margin,
            negative_margin=negative_margin,
            normalize=normalize,
            reduction=reduction,
            miner=miner,
        )
        check_options(
            form=one_of(form, get_args(ContrastiveForm)),
            positive_margin=not_negative(positive_margin),
            negative_margin=positive(negative_margin),
            reduction=one_of(reduction, get_args(ContrastiveReduction)),
            miner=may_mine(miner),
        )


@LOSSES.register("snr_contrastive")
class SNRContrastiveLoss(PairwiseLoss):
    """Contrastive on noise over signal; `functional.snr_contrastive_loss` has the formula.

    Args:
        positive_margin: distance below which a positive pair is left alone.
        negative_margin: distance beyond which a negative pair is left alone; independent embeddings of equal
            variance are at 2.
        reduction: as in `ContrastiveLoss`.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "pair"
    formula: ClassVar[str] = "contrastive, linear, on d_ij = var(x_i - x_j) / var(x_i)"
    use: ClassVar[str] = "raw embeddings whose scale should not matter; beside a zero-mean regulariser"
    source: ClassVar[str] = "Yuan et al., CVPR 2019"
    function = staticmethod(snr_contrastive_loss)

    def __init__(
        self,
        *,
        positive_margin: float = 0.0,
        negative_margin: float = 1.0,
        reduction: Literal["mean", "mean_nonzero", "pairs"] = "mean_nonzero",
        miner: MinerOption = None,
    ):
        super().__init__(
            positive_margin=positive_margin,
            negative_margin=negative_margin,
            reduction=reduction,
            miner=miner,
        )
        check_options(
            positive_margin=not_negative(positive_margin),
            negative_margin=positive(negative_margin),
            reduction=one_of(reduction, get_args(ContrastiveReduction)),
            miner=may_mine(miner),
        )
