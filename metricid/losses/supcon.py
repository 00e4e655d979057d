"""Supervised contrastive loss: every positive against all others of the batch."""

from typing import ClassVar

from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.pairs import supcon_loss


@LOSSES.register("supcon")
class SupConLoss(nn.Module):
    """Makes each positive more similar than all other samples; `functional.supcon_loss` has the formula.

    Args:
        temperature: divides the cosines; smaller looks harder at the nearest negatives.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 0.1):
        super().__init__()
        check_options(temperature=(0 < temperature < float("inf"), f"must be positive, got {temperature}"))
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of embeddings [B, D] with labels [B] int64."""
        return supcon_loss(embeddings, labels, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
