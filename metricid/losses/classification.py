"""Binary cross-entropy and focal loss over a linear classifier."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options, compute_dtype, no_autocast
from metricid.losses.linear import (
    LinearHead,
    as_multi_hot,
    check_per_class,
    check_targets,
    linear_logits,
    optional_tensor,
)
from metricid.losses.margins import positive, within
from metricid.losses.regression import expand_mask

FocalForm = Literal["multiclass", "binary"]


def binary_loss(
    embeddings: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    positive_weight: float = 1.0,
) -> Tensor:
    """Binary cross-entropy of each class by itself: several labels may be true at once.

    With z = W x + b: mean over samples and classes of -(p t log sigmoid(z) + (1 - t) log(1 - sigmoid(z))).

    Args:
        embeddings: [B, D], any float dtype.
        targets: [B, C] float in [0, 1]; or [B] int64 in [0, C), one class against all others.
        weight: [C, D].
        bias: [C] or None.
        mask: bool [B, C] or a shape that broadcasts to it; the mean is over the entries where it is True.
        positive_weight: p.

    Returns:
        Scalar, in nats; 0 with a graph where no entry counts.

    Raises:
        ValueError: shapes disagree, or a target is out of range.
    """
    check_targets(embeddings, targets, weight, distribution=False)
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        logits = linear_logits(embeddings, weight, bias)
        truth = as_multi_hot(targets, len(weight), dtype)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        if positive_weight != 1:
            losses = losses * (1 + (positive_weight - 1) * truth)
        if mask is None:
            return losses.mean()
        counted = expand_mask(mask, losses.shape)
        return (losses * counted).sum() / counted.sum().clamp_min(1)


def focal_terms(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p with p the softmax of the own class: [B] from logits [B, C], labels [B] int64."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    return -_rest(log_p, gamma) * log_p


def binary_focal_terms(logits: Tensor, truth: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p with p the sigmoid of what is true: [B, C] from logits and truth in {0, 1}."""
    log_p = F.logsigmoid(torch.where(truth > 0.5, logits, -logits))
    return -_rest(log_p, gamma) * log_p


def _rest(log_p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma, accurate near p = 1 and with a finite slope there for gamma < 1 too."""
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma


def focal_loss(
    embeddings: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    form: FocalForm = "multiclass",
    gamma: float = 2.0,
    alpha: float | Tensor | None = None,
) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log p_t (Lin et al., ICCV 2017, eq. 5): samples that are right count little.

    Args:
        embeddings: [B, D], any float dtype.
        targets: [B] int64 in [0, C); for 'binary' also [B, C] float, each 0 or 1.
        weight: [C, D].
        bias: [C] or None.
        mask: for 'binary', bool [B, C] or a shape that broadcasts to it: only where it is True counts.
        form: 'multiclass', p the softmax of the own class; or 'binary', p the sigmoid of each class by
            itself, summed over classes.
        gamma: 0 is cross-entropy.
        alpha: a number weighs what is true by alpha and (binary) what is false by 1 - alpha; [C] gives each
            class its factor; None is 1 everywhere.

    Returns:
        Scalar, mean over the batch, in nats. The paper divides by the number of its positive anchors, which
        for one label a sample is the same. With a mask each sample has the sum over its classes that count,
        and the mean is over the samples with at least one; 0 with a graph where there is none.

    Raises:
        ValueError: shapes disagree, or a target is out of range.
    """
    if form == "multiclass" and targets.is_floating_point():
        raise ValueError("multiclass focal loss takes int64 labels [B]: use form='binary' for targets [B, C]")
    if form == "multiclass" and mask is not None:
        raise ValueError("mask is for form='binary': leave out the samples that should not count")
    check_targets(embeddings, targets, weight, distribution=False)
    if isinstance(alpha, Tensor):
        check_per_class("alpha", alpha, len(weight))
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        logits = linear_logits(embeddings, weight, bias)
        if form == "multiclass":
            losses = focal_terms(logits, targets, gamma)
            factor = alpha[targets].to(dtype) if isinstance(alpha, Tensor) else alpha
            return (losses if factor is None else factor * losses).mean()
        truth = as_multi_hot(targets, len(weight), dtype)
        losses = binary_focal_terms(logits, truth, gamma)
        if isinstance(alpha, Tensor):
            losses = alpha.to(dtype) * losses
        elif alpha is not None:
            # Not two plain numbers: torch.where would round them to the default dtype.
            true, false = truth.new_full((), alpha), truth.new_full((), 1 - alpha)
            losses = torch.where(truth > 0.5, true, false) * losses
        if mask is None:
            return losses.sum(dim=1).mean()
        counted = expand_mask(mask, losses.shape)
        return (losses * counted).sum() / counted.any(dim=1).sum().clamp_min(1)


@LOSSES.register("binary_cross_entropy")
class BinaryCrossEntropy(LinearHead):
    """One yes-or-no classifier per class; `classification.binary_loss` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        positive_weight: factor on the classes that are true, for labels that are rarely so.
        bias: add a learned bias per class.
    """

    formula: ClassVar[str] = (
        "mean over classes of -(w t log sigmoid(z) + (1 - t) log(1 - sigmoid(z))), z = W x + b"
    )
    use: ClassVar[str] = "attributes; several labels on one image"
    source: ClassVar[str] = "Bishop, 2006, section 4.3.2"

    def __init__(
        self, num_classes: int, embedding_dim: int, *, positive_weight: float = 1.0, bias: bool = True
    ):
        super().__init__(num_classes, embedding_dim, bias=bias)
        check_options(positive_weight=positive(positive_weight))
        self.positive_weight = positive_weight

    def forward(self, embeddings: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C), or targets [B, C] and a mask."""
        return binary_loss(
            embeddings, labels, self.weight, self.bias, mask, positive_weight=self.positive_weight
        )


@LOSSES.register("focal")
class FocalLoss(LinearHead):
    """Cross-entropy that looks away from what is right already; `classification.focal_loss` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        form: 'multiclass' (softmax) or 'binary' (a sigmoid per class, several labels on one image).
        gamma: how far it looks away; 0 is cross-entropy.
        alpha: weight of what is true, or a list with a factor for each class; null for 1. The paper takes
            0.25, for 'binary'.
        bias: add a learned bias per class.
        prior: the probability that 'binary' starts from at every class, by the bias; the paper takes 0.01.
            Null starts at 1/2.
    """

    formula: ClassVar[str] = "-alpha_t (1 - p_t)^gamma log p_t"
    use: ClassVar[str] = "many easy samples, few hard ones; rare attributes"
    source: ClassVar[str] = "Lin et al., ICCV 2017"
    per_class: ClassVar[tuple[str, ...]] = ("alpha",)
    class_alpha: Tensor | None

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        form: Literal["multiclass", "binary"] = "multiclass",
        gamma: float = 2.0,
        alpha: float | list[float] | None = None,
        bias: bool = True,
        prior: float | None = None,
    ):
        super().__init__(num_classes, embedding_dim, bias=bias)
        values = alpha if isinstance(alpha, (list, tuple)) else [] if alpha is None else [alpha]
        top = math.inf if form == "multiclass" or isinstance(alpha, (list, tuple)) else 1.0
        check_options(
            form=(form in ("multiclass", "binary"), f"must be 'multiclass' or 'binary', got {form!r}"),
            gamma=within(gamma, 0, math.inf),
            alpha=(
                all(0 <= value <= top for value in values),
                f"must be at least 0, and a number for 'binary' at most 1, got {alpha}",
            ),
            prior=(
                prior is None or (0 < prior < 1 and form == "binary" and bias),
                f"must lie in (0, 1), and needs form: binary and a bias, got {prior}",
            ),
        )
        self.form: FocalForm = form
        self.gamma = gamma
        self.alpha = None if isinstance(alpha, (list, tuple)) else alpha
        of_classes = optional_tensor(alpha) if isinstance(alpha, (list, tuple)) else None
        self.register_buffer("class_alpha", of_classes, persistent=False)
        if prior is not None and self.bias is not None:
            nn.init.constant_(self.bias, math.log(prior / (1 - prior)))

    def forward(self, embeddings: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C), or 'binary' targets [B, C]."""
        alpha = self.alpha if self.class_alpha is None else self.class_alpha
        return focal_loss(
            embeddings, labels, self.weight, self.bias, mask, form=self.form, gamma=self.gamma, alpha=alpha
        )
