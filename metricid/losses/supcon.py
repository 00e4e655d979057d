"""Losses that pick positives among the other samples of the batch by a softmax."""

from typing import ClassVar, Literal, get_args

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.mined import MinerOption, may_mine
from metricid.losses.pairwise import PairwiseLoss, not_negative, one_of, positive
from metricid.losses.softmax_pairs import (
    NCAForm,
    SupConForm,
    nca_loss,
    npair_loss,
    ntxent_loss,
    supcon_loss,
    tuplet_margin_loss,
)


@LOSSES.register("supcon")
class SupConLoss(PairwiseLoss):
    """Makes each positive more similar than all other samples; `functional.supcon_loss` has the formula.

    Args:
        temperature: divides the cosines; smaller looks harder at the nearest negatives.
        form: 'out' takes the mean over the positives of the logarithms, 'in' the logarithm of the mean, which
            is content when one positive is near.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "pair"
    formula: ClassVar[str] = "-mean_p log(exp(s_ap / t) / sum_j exp(s_aj / t)), j over all other samples"
    use: ClassVar[str] = "beside softmax or alone in large batches; smoother than triplet"
    source: ClassVar[str] = "Khosla et al., NeurIPS 2020"
    function = staticmethod(supcon_loss)

    def __init__(
        self, *, temperature: float = 0.1, form: Literal["out", "in"] = "out", miner: MinerOption = None
    ):
        super().__init__(temperature=temperature, form=form, miner=miner)
        check_options(
            temperature=positive(temperature), form=one_of(form, get_args(SupConForm)), miner=may_mine(miner)
        )


@LOSSES.register("ntxent")
class NTXentLoss(PairwiseLoss):
    """Each positive against all negatives (also InfoNCE); `functional.ntxent_loss` has the formula.

    Args:
        temperature: divides the cosines; smaller looks harder at the nearest negatives.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "pair"
    formula: ClassVar[str] = "-log(exp(s_ap / t) / (exp(s_ap / t) + sum_n exp(s_an / t)))"
    use: ClassVar[str] = "two views of each image, without labels; or one positive per anchor"
    source: ClassVar[str] = "Chen et al., ICML 2020 (SimCLR)"
    function = staticmethod(ntxent_loss)

    def __init__(self, *, temperature: float = 0.1, miner: MinerOption = None):
        super().__init__(temperature=temperature, miner=miner)
        check_options(temperature=positive(temperature), miner=may_mine(miner))


@LOSSES.register("nca")
class NCALoss(PairwiseLoss):
    """Chance that a soft nearest neighbour has the right label; `functional.nca_loss` has the formula.

    Args:
        scale: of the squared distances; larger looks at nearer neighbours.
        form: 'log' is the log-likelihood, 'probability' the expected error.
        normalize: put the embeddings on the unit sphere; take a scale of 10 or so then.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "pair"
    formula: ClassVar[str] = "-log(sum_p exp(-c d_ap^2) / sum_j exp(-c d_aj^2)), j over all other samples"
    use: ClassVar[str] = "classification by nearest neighbours; classes that may form several clusters"
    source: ClassVar[str] = "Goldberger et al., NeurIPS 2004"
    function = staticmethod(nca_loss)

    def __init__(
        self,
        *,
        scale: float = 1.0,
        form: Literal["log", "probability"] = "log",
        normalize: bool = False,
        miner: MinerOption = None,
    ):
        super().__init__(scale=scale, form=form, normalize=normalize, miner=miner)
        check_options(scale=positive(scale), form=one_of(form, get_args(NCAForm)), miner=may_mine(miner))


@LOSSES.register("npair")
class NPairLoss(PairwiseLoss):
    """One pair of each class against the pairs of the others; `functional.npair_loss` has the formula.

    Args:
        l2: weight of the mean squared length of the embeddings, which are not normalised.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "tuple"
    formula: ClassVar[str] = "log(1 + sum_k exp(x_c.y_k - x_c.y_c)), one pair (x, y) of each class"
    use: ClassVar[str] = "two images of each identity per batch"
    source: ClassVar[str] = "Sohn, NeurIPS 2016"
    function = staticmethod(npair_loss)

    def __init__(self, *, l2: float = 0.0, miner: MinerOption = None):
        super().__init__(l2=l2, miner=miner)
        check_options(l2=not_negative(l2), miner=may_mine(miner))


@LOSSES.register("tuplet_margin")
class TupletMarginLoss(PairwiseLoss):
    """Each positive, with a slack, against all negatives; `functional.tuplet_margin_loss` has the formula.

    Args:
        margin: in degrees; a positive within it is not pulled further, which protects against noisy labels.
        scale: of the cosines.
        variance_weight: of the intra-pair variance term, which evens out the pairs of one kind; 0 leaves it
            out.
        variance_slack: relative slack of that term.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "tuple"
    formula: ClassVar[str] = "log(1 + sum_n exp(s (cos theta_an - cos(theta_ap - margin))))"
    use: ClassVar[str] = "fine-grained classes and noisy positives"
    source: ClassVar[str] = "Yu and Tao, ICCV 2019"
    function = staticmethod(tuplet_margin_loss)

    def __init__(
        self,
        *,
        margin: float = 5.73,
        scale: float = 64.0,
        variance_weight: float = 0.0,
        variance_slack: float = 0.01,
        miner: MinerOption = None,
    ):
        super().__init__(
            margin=margin,
            scale=scale,
            variance_weight=variance_weight,
            variance_slack=variance_slack,
            miner=miner,
        )
        check_options(
            margin=(0 <= margin < 90, f"must lie in [0, 90) degrees, got {margin}"),
            scale=positive(scale),
            variance_weight=not_negative(variance_weight),
            variance_slack=(0 <= variance_slack < 1, f"must lie in [0, 1), got {variance_slack}"),
            miner=may_mine(miner),
        )
