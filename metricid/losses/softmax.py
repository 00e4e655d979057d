"""Softmax cross-entropy: a linear classifier over the training identities."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.functional import softmax_loss


@LOSSES.register("softmax")
class SoftmaxCrossEntropy(nn.Module):
    """Classifies the training identities by a linear layer; `functional.softmax_loss` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
        bias: add a learned bias per class. Off by default: a class's prior says nothing about an unseen
            identity.
    """

    pairwise: ClassVar[bool] = False

    def __init__(
        self, num_classes: int, embedding_dim: int, *, label_smoothing: float = 0.0, bias: bool = False
    ):
        super().__init__()
        check_options(
            num_classes=(num_classes >= 1, f"must be at least 1, got {num_classes}"),
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
            label_smoothing=(0 <= label_smoothing < 1, f"must lie in [0, 1), got {label_smoothing}"),
        )
        self.label_smoothing = label_smoothing
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None
        nn.init.uniform_(self.weight, -1 / math.sqrt(embedding_dim), 1 / math.sqrt(embedding_dim))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return softmax_loss(embeddings, labels, self.weight, self.bias, label_smoothing=self.label_smoothing)

    def extra_repr(self) -> str:
        classes, dim = self.weight.shape
        return f"num_classes={classes}, embedding_dim={dim}, label_smoothing={self.label_smoothing}"
