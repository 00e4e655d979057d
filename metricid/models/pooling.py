"""From a feature map to a vector."""

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """Generalised-mean pooling with a learned exponent (Radenovic et al., TPAMI 2019, eq. 3).

    `(mean_x max(x, eps)^p)^(1/p)`: p = 1 is the average, p -> infinity the maximum. Arithmetic is float32.

    Args:
        p: the exponent to start from.
        eps: values below are raised to it, so that the power is defined.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, x_BCN: Tensor) -> Tensor:
        """Pools `[B, C, N]` (N positions) to `[B, C]` in the dtype of the input."""
        with torch.autocast(x_BCN.device.type, enabled=False):
            powered = x_BCN.float().clamp(min=self.eps).pow(self.p.float())
            return powered.mean(dim=-1).pow(1.0 / self.p.float()).to(x_BCN.dtype)


class Average(nn.Module):
    """The mean over positions."""

    def forward(self, x_BCN: Tensor) -> Tensor:
        """Pools `[B, C, N]` to `[B, C]`."""
        return x_BCN.mean(dim=-1)
