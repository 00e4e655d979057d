"""ArcFace: softmax over cosines with an additive angular margin."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.functional import arcface_loss


@LOSSES.register("arcface")
class ArcFace(nn.Module):
    """Additive angular margin head; `functional.arcface_loss` has the formula.

    The gradient is the exact one. The authors' own code passes the margin straight through (slope s instead
    of s sin(theta + m) / sin(theta)), so that a training is comparable to theirs in the values of the loss
    only.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m in radians, in [0, pi).
        scale: s.
        easy_margin: apply the margin to targets with cos(theta) > 0 only.
        sub_centers: K directions per class, the nearest of which counts (for noisy labels; the paper uses 3).
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
    """

    pairwise: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.5,
        scale: float = 64.0,
        easy_margin: bool = False,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        check_options(
            num_classes=(num_classes >= 1, f"must be at least 1, got {num_classes}"),
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
            margin=(0 <= margin < math.pi, f"must lie in [0, pi) radians, got {margin}"),
            scale=(0 < scale < math.inf, f"must be positive, got {scale}"),
            sub_centers=(sub_centers >= 1, f"must be at least 1, got {sub_centers}"),
            label_smoothing=(0 <= label_smoothing < 1, f"must lie in [0, 1), got {label_smoothing}"),
        )
        self.margin = margin
        self.scale = scale
        self.easy_margin = easy_margin
        self.sub_centers = sub_centers
        self.label_smoothing = label_smoothing
        # Only directions matter to the loss, but the shorter a row, the farther a step turns it: short rows,
        # as in the authors' code, let the head follow the first epochs.
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centers, embedding_dim))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return arcface_loss(
            embeddings,
            labels,
            self.weight,
            margin=self.margin,
            scale=self.scale,
            easy_margin=self.easy_margin,
            sub_centers=self.sub_centers,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        rows, dim = self.weight.shape
        return (
            f"num_classes={rows // self.sub_centers}, embedding_dim={dim}, margin={self.margin}, "
            f"scale={self.scale}, easy_margin={self.easy_margin}, sub_centers={self.sub_centers}, "
            f"label_smoothing={self.label_smoothing}"
        )
