"""Softmax cross-entropy: a linear classifier over the training identities."""

from typing import ClassVar

from torch import Tensor

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.functional import softmax_loss
from metricid.losses.linear import LinearHead, optional_tensor


@LOSSES.register("softmax")
class SoftmaxCrossEntropy(LinearHead):
    """Classifies the training identities by a linear layer; `functional.softmax_loss` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
        bias: add a learned bias per class. Off by default: a class's prior says nothing about an unseen
            identity.
        class_weights: a factor for each class.
    """

    formula: ClassVar[str] = "-sum_c q_c log softmax(W x + b)_c, q_c = (1 - eps) [c = y] + eps / C"
    use: ClassVar[str] = "the plain start for any labelled data; re-ID beside triplet"
    source: ClassVar[str] = "Szegedy et al., CVPR 2016"
    per_class: ClassVar[tuple[str, ...]] = ("class_weights",)
    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        label_smoothing: float = 0.0,
        bias: bool = False,
        class_weights: list[float] | None = None,
    ):
        super().__init__(num_classes, embedding_dim, bias=bias)
        check_options(
            label_smoothing=(0 <= label_smoothing < 1, f"must lie in [0, 1), got {label_smoothing}"),
            class_weights=(
                class_weights is None or all(0 <= value < float("inf") for value in class_weights),
                "must all be at least 0",
            ),
        )
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", optional_tensor(class_weights), persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C), or targets [B, C]."""
        return softmax_loss(
            embeddings,
            labels,
            self.weight,
            self.bias,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
        )
