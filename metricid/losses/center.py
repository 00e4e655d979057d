"""Center loss: embeddings drawn to the center of their class."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.functional import center_loss, center_steps


@LOSSES.register("center")
class CenterLoss(nn.Module):
    """Pulls each embedding towards the center of its class; use beside a softmax loss.

    `functional.center_loss` has the formula. The centers follow in one of two ways:

    - 'gradient': they are parameters, trained by the optimiser with everything else.
    - 'alpha': the paper's own rule (Wen et al., ECCV 2016, eq. 4 and algorithm 1). They are a buffer which no
      optimiser and no forward pass touches; call `update_centers` once after each step, as
      `Objective.after_step` does.

    Args:
        num_classes: C.
        embedding_dim: D.
        update: how the centers move.
        alpha: step of the rule 'alpha', in (0, 1]; unused by 'gradient'.
        init_std: the centers start as normal noise of this spread.
    """

    pairwise: ClassVar[bool] = False
    no_weight_decay: ClassVar[tuple[str, ...]] = ("centers",)
    centers: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        update: Literal["gradient", "alpha"] = "gradient",
        alpha: float = 0.5,
        init_std: float = 0.01,
    ):
        super().__init__()
        check_options(
            num_classes=(num_classes >= 1, f"must be at least 1, got {num_classes}"),
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
            update=(update in ("gradient", "alpha"), f"must be 'gradient' or 'alpha', got {update!r}"),
            alpha=(0 < alpha <= 1, f"must lie in (0, 1], got {alpha}"),
            init_std=(0 <= init_std < float("inf"), f"must be at least 0, got {init_std}"),
        )
        self.update = update
        self.alpha = alpha
        centers = torch.randn(num_classes, embedding_dim) * init_std
        if update == "gradient":
            self.centers = nn.Parameter(centers)
        else:
            self.register_buffer("centers", centers)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return center_loss(embeddings, labels, self.centers)

    @torch.no_grad()
    def update_centers(self, embeddings: Tensor, labels: Tensor) -> None:
        """Moves the centers of the classes in the batch by alpha times the paper's delta.

        With several ranks give the joined batch to each, so that all hold the same centers.

        Args:
            embeddings: [B, D], any float dtype.
            labels: [B] int64 in [0, C).

        Raises:
            ValueError: the centers are trained by the optimiser, or the batch does not fit.
        """
        if self.update != "alpha":
            raise ValueError("the centers belong to the optimiser: build CenterLoss with update='alpha'")
        steps = center_steps(embeddings, labels, self.centers)
        self.centers.index_add_(0, labels, steps, alpha=self.alpha)

    def extra_repr(self) -> str:
        classes, dim = self.centers.shape
        rule = self.update if self.update == "gradient" else f"alpha, alpha={self.alpha}"
        return f"num_classes={classes}, embedding_dim={dim}, update={rule}"
