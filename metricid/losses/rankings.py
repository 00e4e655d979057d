"""Losses that stand for a measure of the ranking."""

from typing import ClassVar

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.mined import MinerOption, no_miner
from metricid.losses.pairwise import PairwiseLoss, not_negative, positive
from metricid.losses.ranking import (
    fast_ap_loss,
    histogram_loss,
    ranked_list_loss,
    recall_at_k_loss,
    smooth_ap_loss,
)


@LOSSES.register("ranked_list")
class RankedListLoss(PairwiseLoss):
    """Keeps positives inside a ball and negatives outside it; `functional.ranked_list_loss` has the formula.

    Args:
        boundary: distance beyond which negatives are left alone.
        margin: positives within boundary - margin are left alone.
        temperature: how much more near negatives count; 10 in the paper.
        positive_temperature: how much more far positives count; 0 treats them alike.
        balance: share of the negatives in the loss.
        miner: always null: it selects and weighs its pairs by itself.
    """

    kind: ClassVar[str] = "ranking"
    formula: ClassVar[str] = (
        "(1 - l) mean_p max(0, d_p - (boundary - margin)) + l sum_n w_n max(0, boundary - d_n), "
        "w ~ exp(T (boundary - d_n))"
    )
    use: ClassVar[str] = "retrieval; keeps some spread inside a class instead of shrinking it to a point"
    source: ClassVar[str] = "Wang et al., CVPR 2019 (RLL)"
    function = staticmethod(ranked_list_loss)

    def __init__(
        self,
        *,
        boundary: float = 1.2,
        margin: float = 0.4,
        temperature: float = 10.0,
        positive_temperature: float = 0.0,
        balance: float = 0.5,
        miner: MinerOption = None,
    ):
        super().__init__(
            boundary=boundary,
            margin=margin,
            temperature=temperature,
            positive_temperature=positive_temperature,
            balance=balance,
        )
        check_options(
            boundary=(0 < boundary <= 2, f"must lie in (0, 2], got {boundary}"),
            margin=(0 <= margin <= boundary, f"must lie in [0, boundary], got {margin}"),
            temperature=not_negative(temperature),
            positive_temperature=not_negative(positive_temperature),
            balance=(0 <= balance <= 1, f"must lie in [0, 1], got {balance}"),
            miner=no_miner(miner, "selects and weighs its pairs by itself"),
        )


@LOSSES.register("histogram")
class HistogramLoss(PairwiseLoss):
    """Chance that a negative pair beats a positive one; `functional.histogram_loss` has the formula.

    Args:
        bins: intervals between -1 and 1.
        miner: always null: it is about the ranking of all pairs.
    """

    kind: ClassVar[str] = "ranking"
    formula: ClassVar[str] = "sum_r h-_r sum_{q <= r} h+_q, histograms of the cosines of the pairs"
    use: ClassVar[str] = "verification at one threshold for all; nothing to tune, needs large batches"
    source: ClassVar[str] = "Ustinova and Lempitsky, NeurIPS 2016"
    function = staticmethod(histogram_loss)

    def __init__(self, *, bins: int = 100, miner: MinerOption = None):
        super().__init__(bins=bins)
        check_options(
            bins=(bins >= 2, f"must be at least 2, got {bins}"),
            miner=no_miner(miner, "is about the ranking of all pairs"),
        )


@LOSSES.register("fast_ap")
class FastAPLoss(PairwiseLoss):
    """Average precision over a soft histogram; `functional.fast_ap_loss` has the formula.

    Args:
        bins: intervals of the squared distance in [0, 4].
        miner: always null: it is about the ranking of all pairs.
    """

    kind: ClassVar[str] = "ranking"
    formula: ClassVar[str] = "1 - sum_j h+_j H+_j / H_j / N+, soft histograms of the squared distances"
    use: ClassVar[str] = "retrieval judged by average precision; large batches"
    source: ClassVar[str] = "Cakir et al., CVPR 2019"
    function = staticmethod(fast_ap_loss)

    def __init__(self, *, bins: int = 10, miner: MinerOption = None):
        super().__init__(bins=bins)
        check_options(
            bins=(bins >= 2, f"must be at least 2, got {bins}"),
            miner=no_miner(miner, "is about the ranking of all pairs"),
        )


@LOSSES.register("smooth_ap")
class SmoothAPLoss(PairwiseLoss):
    """Average precision with soft ranks; `functional.smooth_ap_loss` has the formula.

    Args:
        temperature: of the comparison of two cosines.
        miner: always null: it is about the ranking of all pairs.
    """

    kind: ClassVar[str] = "ranking"
    formula: ClassVar[str] = "1 - mean_p R+(p) / R(p), R(p) = 1 + sum_j sigmoid((s_j - s_p) / t)"
    use: ClassVar[str] = "retrieval judged by average precision; large batches, or to finish a training"
    source: ClassVar[str] = "Brown et al., ECCV 2020"
    grows_squared: ClassVar[bool] = True
    function = staticmethod(smooth_ap_loss)

    def __init__(self, *, temperature: float = 0.01, miner: MinerOption = None):
        super().__init__(temperature=temperature)
        check_options(
            temperature=positive(temperature), miner=no_miner(miner, "is about the ranking of all pairs")
        )


@LOSSES.register("recall_at_k")
class RecallAtKLoss(PairwiseLoss):
    """Recall in the first k with soft ranks; `functional.recall_at_k_loss` has the formula.

    Args:
        ks: values of k that are averaged.
        temperature: of the comparison of two cosines.
        rank_temperature: of the comparison of a rank with k.
        miner: always null: it is about the ranking of all pairs.
    """

    kind: ClassVar[str] = "ranking"
    formula: ClassVar[str] = "1 - mean_k mean_p sigmoid((k - R(p)) / t'), R(p) as in smooth_ap"
    use: ClassVar[str] = "retrieval judged by recall at k; batches much larger than k"
    source: ClassVar[str] = "Patel et al., CVPR 2022"
    grows_squared: ClassVar[bool] = True
    function = staticmethod(recall_at_k_loss)

    def __init__(
        self,
        *,
        ks: tuple[int, ...] = (1, 2, 4, 8, 16),
        temperature: float = 0.01,
        rank_temperature: float = 1.0,
        miner: MinerOption = None,
    ):
        super().__init__(ks=tuple(ks), temperature=temperature, rank_temperature=rank_temperature)
        check_options(
            ks=(len(ks) > 0 and min(ks, default=0) >= 1, f"must be whole numbers from 1, got {ks}"),
            temperature=positive(temperature),
            rank_temperature=positive(rank_temperature),
            miner=no_miner(miner, "is about the ranking of all pairs"),
        )
