"""Losses for classes of very different sizes."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options, compute_dtype, no_autocast
from metricid.losses.classification import binary_focal_terms, focal_terms
from metricid.losses.exact import exact_tensor
from metricid.losses.heads import MarginHead
from metricid.losses.linear import (
    LinearHead,
    as_multi_hot,
    check_per_class,
    check_targets,
    count_rules,
    linear_logits,
)
from metricid.losses.margins import positive, within
from metricid.losses.margins_adaptive import ClassMargin

Base = Literal["softmax", "sigmoid", "focal", "sigmoid_focal"]


def effective_weights(class_counts: Sequence[int], beta: float) -> list[float]:
    """(1 - beta) / (1 - beta^n) for each class, scaled to a mean of 1 (Cui et al., CVPR 2019, section 4).

    Args:
        class_counts: n, all at least 1.
        beta: in [0, 1); 0 weighs all classes alike, towards 1 by 1 / n.

    Example:
        >>> effective_weights([1, 1, 1], 0.9)
        [1.0, 1.0, 1.0]
    """
    # expm1 and log1p: for beta near 1 and small n, 1 - beta^n would lose its digits.
    raw = [1.0 if beta == 0 else (1 - beta) / -math.expm1(n * math.log1p(beta - 1)) for n in class_counts]
    total = sum(raw)
    return [len(raw) * value / total for value in raw]


def ldam_margins(class_counts: Sequence[int], largest: float) -> list[float]:
    """C n^(-1/4), C such that the smallest class has `largest` (Cao et al., NeurIPS 2019, section 3.2)."""
    smallest = min(class_counts)
    return [largest * (smallest / count) ** 0.25 for count in class_counts]


def class_balanced_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    class_weights: Tensor,
    *,
    base: Base = "softmax",
    gamma: float = 2.0,
) -> Tensor:
    """A classification loss weighted by the effective number of each class (Cui et al., section 4).

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C).
        weight: [C, D].
        bias: [C] or None.
        class_weights: [C], as of `effective_weights`.
        base: 'softmax' cross-entropy, 'sigmoid' cross-entropy summed over classes, or their focal forms
            'focal' and 'sigmoid_focal'.
        gamma: of the focal forms.

    Returns:
        Scalar, mean over the batch of weight times loss, in nats.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    if labels.is_floating_point():
        raise ValueError("class-balanced loss takes int64 labels [B]")
    check_targets(embeddings, labels, weight, distribution=False)
    check_per_class("class_weights", class_weights, len(weight))
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        logits = linear_logits(embeddings, weight, bias)
        if base in ("softmax", "focal"):
            losses = focal_terms(logits, labels, gamma if base == "focal" else 0.0)
        else:
            truth = as_multi_hot(labels, len(weight), dtype)
            terms = binary_focal_terms(logits, truth, gamma if base == "sigmoid_focal" else 0.0)
            losses = terms.sum(dim=1)
        return (class_weights[labels].to(dtype) * losses).mean()


def balanced_softmax_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_counts: Tensor,
    *,
    tau: float = 1.0,
) -> Tensor:
    """Cross-entropy of z + tau log n: what is learned is free of the class sizes.

    tau = 1 is balanced softmax (Ren et al., NeurIPS 2020, eq. 4); any tau, logit adjustment (Menon et al.,
    ICLR 2021, eq. 10), which writes frequencies for counts: a constant that the softmax does not see.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C), or targets [B, C] float whose rows sum to 1.
        weight: [C, D].
        bias: [C] or None.
        log_counts: [C], log of the number of training images of each class.
        tau: strength.

    Returns:
        Scalar, mean over the batch, in nats.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_targets(embeddings, labels, weight, distribution=True)
    check_per_class("log_counts", log_counts, len(weight))
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        logits = linear_logits(embeddings, weight, bias) + tau * log_counts.to(dtype)
        return F.cross_entropy(logits, labels.to(dtype) if labels.is_floating_point() else labels)


@LOSSES.register("class_balanced")
class ClassBalanced(LinearHead):
    """Weighs classes by their effective number of images; `imbalance.class_balanced_loss` has the formula.

    Args:
        class_counts: the number of training images of each of the C classes.
        embedding_dim: D.
        beta: in [0, 1): 0 leaves all classes alike, towards 1 a class weighs one over its count.
        base: 'softmax', 'sigmoid' (a classifier per class), 'focal' (of the softmax) or 'sigmoid_focal'.
        gamma: of the focal forms.
        bias: add a learned bias per class.
    """

    formula: ClassVar[str] = "(1 - beta) / (1 - beta^n_y) L(W x + b, y)"
    use: ClassVar[str] = "a long tail of small classes"
    source: ClassVar[str] = "Cui et al., CVPR 2019"
    class_weights: Tensor

    def __init__(
        self,
        class_counts: list[int],
        embedding_dim: int,
        *,
        beta: float = 0.999,
        base: Literal["softmax", "sigmoid", "focal", "sigmoid_focal"] = "softmax",
        gamma: float = 2.0,
        bias: bool = True,
    ):
        bases = ("softmax", "sigmoid", "focal", "sigmoid_focal")
        check_options(
            beta=(0 <= beta < 1, f"must lie in [0, 1), got {beta}"),
            base=(base in bases, f"must be one of {bases}, got {base!r}"),
            gamma=within(gamma, 0, math.inf),
            **count_rules(class_counts),
        )
        super().__init__(len(class_counts), embedding_dim, bias=bias)
        self.beta = beta
        self.base: Base = base
        self.gamma = gamma
        weights = exact_tensor(effective_weights(class_counts, beta))
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return class_balanced_loss(
            embeddings,
            labels,
            self.weight,
            self.bias,
            self.class_weights,
            base=self.base,
            gamma=self.gamma,
        )


@LOSSES.register("balanced_softmax")
class BalancedSoftmax(LinearHead):
    """Softmax that takes the class sizes out of what is learned; also known as logit adjustment.

    `imbalance.balanced_softmax_loss` has the formula.

    Args:
        class_counts: the number of training images of each of the C classes.
        embedding_dim: D.
        tau: strength; 1 is balanced softmax.
        bias: add a learned bias per class.
    """

    formula: ClassVar[str] = "softmax cross-entropy of W x + b + tau log n"
    use: ClassVar[str] = "a long tail of small classes, all of which matter alike"
    source: ClassVar[str] = "Ren et al., NeurIPS 2020; Menon et al., ICLR 2021"
    log_counts: Tensor

    def __init__(self, class_counts: list[int], embedding_dim: int, *, tau: float = 1.0, bias: bool = True):
        check_options(tau=within(tau, 0, math.inf), **count_rules(class_counts))
        super().__init__(len(class_counts), embedding_dim, bias=bias)
        self.tau = tau
        logs = exact_tensor([math.log(count) for count in class_counts])
        self.register_buffer("log_counts", logs, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C), or targets [B, C]."""
        return balanced_softmax_loss(
            embeddings, labels, self.weight, self.bias, self.log_counts, tau=self.tau
        )


@LOSSES.register("ldam")
class LDAM(MarginHead):
    """Softmax over cosines with a margin that is larger for smaller classes.

    The paper trains it plainly first and turns to class weights late; that schedule is not part of it.

    Args:
        class_counts: the number of training images of each of the C classes.
        embedding_dim: D.
        largest_margin: margin of the smallest class; others have it times (n_smallest / n)^(1/4).
        scale: s.
    """

    kind: ClassVar[str] = "classification"
    formula: ClassVar[str] = "softmax of s (cos(theta_y) - C n_y^(-1/4)) against s cos(theta_c)"
    use: ClassVar[str] = "a long tail of small classes, embeddings compared by cosine"
    source: ClassVar[str] = "Cao et al., NeurIPS 2019"

    def __init__(
        self,
        class_counts: list[int],
        embedding_dim: int,
        *,
        largest_margin: float = 0.5,
        scale: float = 30.0,
    ):
        check_options(
            largest_margin=positive(largest_margin), scale=positive(scale), **count_rules(class_counts)
        )
        rule = ClassMargin("cos", ldam_margins(class_counts, largest_margin), scale)
        super().__init__(len(class_counts), embedding_dim, rule)
