"""Losses that weigh the pairs of an anchor by how hard they are."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_batch, check_options
from metricid.losses.mined import MinerOption, may_mine
from metricid.losses.pairs import MarginNegatives, circle_loss, distance_margin_loss, multi_similarity_loss
from metricid.losses.pairwise import PairwiseLoss, not_negative, one_of, positive


@LOSSES.register("multi_similarity")
class MultiSimilarityLoss(PairwiseLoss):
    """Selects the informative pairs, then weighs them; `functional.multi_similarity_loss` has the formula.

    Args:
        alpha: sharpness for the positives.
        beta: sharpness for the negatives.
        base: cosine around which the pairs are weighted.
        epsilon: slack of the selection; None uses all pairs.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "pair"
    formula: ClassVar[str] = (
        "log(1 + sum_p exp(-alpha (s_ap - base))) / alpha + log(1 + sum_n exp(beta (s_an - base))) / beta"
    )
    use: ClassVar[str] = "retrieval with a few images per class; a strong default among pair losses"
    source: ClassVar[str] = "Wang et al., CVPR 2019"
    function = staticmethod(multi_similarity_loss)

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = 0.1,
        miner: MinerOption = None,
    ):
        super().__init__(alpha=alpha, beta=beta, base=base, epsilon=epsilon, miner=miner)
        check_options(
            alpha=positive(alpha),
            beta=positive(beta),
            base=(-1 <= base <= 1, f"must be a cosine in [-1, 1], got {base}"),
            epsilon=(
                epsilon is None or 0 <= epsilon < float("inf"),
                f"must be at least 0, or null for all pairs, got {epsilon}",
            ),
            miner=may_mine(miner),
        )


@LOSSES.register("circle")
class CircleLoss(PairwiseLoss):
    """Pulls each cosine by its distance from the optimum; `functional.circle_loss` has the formula.

    Args:
        margin: the paper takes 0.4 for retrieval, 0.25 for faces and re-ID.
        scale: the paper takes 80 for retrieval, 128 for re-ID, 256 for faces.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for all.
    """

    kind: ClassVar[str] = "pair"
    formula: ClassVar[str] = (
        "log(1 + sum_n exp(scale a_n (s_n - m)) sum_p exp(-scale a_p (s_p - 1 + m))), "
        "a_p = max(0, 1 + m - s_p), a_n = max(0, s_n + m)"
    )
    use: ClassVar[str] = "retrieval and re-ID with pairs, where positives and negatives progress unevenly"
    source: ClassVar[str] = "Sun et al., CVPR 2020"
    function = staticmethod(circle_loss)

    def __init__(self, *, margin: float = 0.4, scale: float = 80.0, miner: MinerOption = None):
        super().__init__(margin=margin, scale=scale, miner=miner)
        check_options(
            margin=(0 <= margin < 1, f"must lie in [0, 1), got {margin}"),
            scale=positive(scale),
            miner=may_mine(miner),
        )


@LOSSES.register("margin")
class MarginLoss(PairwiseLoss):
    """A learned boundary between positives and negatives; `functional.distance_margin_loss` has the formula.

    Args:
        margin: half the width of the band around the boundary.
        beta: boundary at the start, in the unit of the distances.
        learn_beta: train it with the network.
        per_class: one boundary for each class; labels must then lie in [0, num_classes).
        nu: weight that keeps the boundaries small.
        negatives: 'distance_weighted' draws as many negatives as an anchor has positives, from all distances
            alike; 'all' uses every negative.
        normalize: put the embeddings on the unit sphere first, which 'distance_weighted' supposes.
        miner: which pairs of the batch count, by name or as {name: ..., option: ...}; null for none.
            It takes the place of the draw, with negatives: all.
        num_classes: needed with `per_class`.

    Attributes:
        beta: [1] or [num_classes], float32.
    """

    kind: ClassVar[str] = "pair"
    formula: ClassVar[str] = "max(0, margin + d_p - beta) + max(0, margin + beta - d_n), beta learned"
    use: ClassVar[str] = "retrieval with many classes; negatives of all distances instead of the hardest"
    source: ClassVar[str] = "Wu et al., ICCV 2017"
    function = staticmethod(distance_margin_loss)
    beta: Tensor

    def __init__(
        self,
        *,
        margin: float = 0.2,
        beta: float = 1.2,
        learn_beta: bool = True,
        per_class: bool = False,
        nu: float = 0.0,
        negatives: Literal["distance_weighted", "all"] = "distance_weighted",
        normalize: bool = True,
        miner: MinerOption = None,
        num_classes: int | None = None,
    ):
        super().__init__(margin=margin, nu=nu, negatives=negatives, normalize=normalize, miner=miner)
        check_options(
            margin=not_negative(margin),
            beta=positive(beta),
            per_class=(
                not per_class or num_classes is not None,
                "needs num_classes, the number of identities",
            ),
            nu=not_negative(nu),
            negatives=(
                one_of(negatives, get_args(MarginNegatives))
                if miner is None or negatives == "all"
                else (False, "must be 'all' beside a miner, which chooses them")
            ),
            miner=may_mine(miner),
            normalize=(
                normalize or negatives == "all",
                "must be true for distance_weighted negatives, whose density is that of the unit sphere",
            ),
        )
        start = torch.full((num_classes if per_class and num_classes else 1,), float(beta))
        if learn_beta:
            self.beta = nn.Parameter(start)
        else:
            self.register_buffer("beta", start)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        *,
        with_batch: bool = False,
    ) -> Tensor:
        """As in `PairwiseLoss`, with the boundary of each anchor's class."""
        check_batch(embeddings, labels, num_classes=len(self.beta) if len(self.beta) > 1 else None)
        return distance_margin_loss(
            embeddings,
            labels,
            self.beta,
            references=references,
            reference_labels=reference_labels,
            with_batch=with_batch,
            **self.arguments,
        )
