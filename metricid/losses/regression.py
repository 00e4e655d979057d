"""Losses of predicted numbers, with masks for missing values.

Each maps (prediction, target, mask or None) to a scalar: the mean over the values that count. `TASKS` knows
them, and those for masks in `dice`, by name.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from metricid.losses.checks import check_options, compute_dtype, no_autocast
from metricid.registry import Registry

TASKS = Registry("task loss", key="loss")


def mse_loss(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error, (p - t)^2 (Gauss 1809).

    Args:
        prediction: any shape, any float dtype.
        target: the same shape, float.
        mask: bool, True where the target is known; the same shape, or one that broadcasts to it, such as
            [B, 1]. What stands at a missing value, also NaN, touches neither value nor gradient.

    Returns:
        Scalar; 0 with a graph where no value counts.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    with no_autocast(prediction):
        gap, mask = _gap(prediction, target, mask)
        return _mean(gap.square(), mask)


def mae_loss(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error, |p - t| (Laplace 1774), with the subgradient 0 at p = t.

    Args:
        prediction: any shape, any float dtype.
        target: the same shape, float.
        mask: as in `mse_loss`.

    Returns:
        Scalar; 0 with a graph where no value counts.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    with no_autocast(prediction):
        gap, mask = _gap(prediction, target, mask)
        return _mean(gap.abs(), mask)


def huber_loss(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, delta: float = 1.0
) -> Tensor:
    """Squared near 0, linear beyond delta (Huber, Annals of Mathematical Statistics 1964).

    1/2 g^2 where |g| <= delta, else delta (|g| - delta / 2), with g = p - t.

    Args:
        prediction: any shape, any float dtype.
        target: the same shape, float.
        mask: as in `mse_loss`.
        delta: > 0, in units of the target.

    Returns:
        Scalar; 0 with a graph where no value counts.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    with no_autocast(prediction):
        gap, mask = _gap(prediction, target, mask)
        return _mean(huber(gap, delta), mask)


def smooth_l1_loss(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, beta: float = 1.0
) -> Tensor:
    """Huber loss divided by its threshold (Girshick, ICCV 2015, eq. 3, where beta = 1).

    g^2 / (2 beta) where |g| <= beta, else |g| - beta / 2: the slope far away is 1 for any beta.

    Args:
        prediction: any shape, any float dtype.
        target: the same shape, float.
        mask: as in `mse_loss`.
        beta: > 0, in units of the target.

    Returns:
        Scalar; 0 with a graph where no value counts.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    return huber_loss(prediction, target, mask, delta=beta) / beta


def huber(gap: Tensor, delta: float) -> Tensor:
    """The Huber function of each entry."""
    near = gap.clamp(-delta, delta)
    return near * (gap - 0.5 * near)


def _gap(prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """prediction - target, 0 and without a gradient where the mask is False; the mask at full shape."""
    if not prediction.is_floating_point() or not target.is_floating_point():
        raise ValueError(
            f"prediction and target must be float tensors, got {prediction.dtype} and {target.dtype}"
        )
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {list(prediction.shape)} and target {list(target.shape)} differ in shape"
        )
    if prediction.device != target.device:
        raise ValueError(f"prediction is on {prediction.device}, target on {target.device}: move one of them")
    dtype = compute_dtype(prediction, target)
    p, t = prediction.to(dtype), target.to(dtype)
    if mask is None:
        return p - t, None
    full = expand_mask(mask, target.shape)
    return p.masked_fill(~full, 0) - t.masked_fill(~full, 0), full


def expand_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """A bool mask at its full shape.

    Raises:
        ValueError: not bool, or a shape that does not broadcast.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor, True where a value counts, got {mask.dtype}")
    try:
        return mask.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"mask {list(mask.shape)} does not broadcast to {list(shape)}") from error


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    count = values.numel() if mask is None else mask.sum().clamp_min(1)
    return values.sum() / (max(count, 1) if isinstance(count, int) else count)


@TASKS.register("mse")
class MSELoss(nn.Module):
    """Mean squared error of a number; `mse_loss` has the formula."""

    kind: ClassVar[str] = "regression"
    formula: ClassVar[str] = "(p - t)^2"
    use: ClassVar[str] = "a number with noise of even size and no outliers"
    source: ClassVar[str] = "Gauss, Theoria motus 1809"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean over the values that `mask` lets count; all three have the same shape."""
        return mse_loss(prediction, target, mask)


@TASKS.register("mae")
class MAELoss(nn.Module):
    """Mean absolute error of a number; `mae_loss` has the formula."""

    kind: ClassVar[str] = "regression"
    formula: ClassVar[str] = "|p - t|"
    use: ClassVar[str] = "a number with outliers; learns the median"
    source: ClassVar[str] = "Laplace 1774"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean over the values that `mask` lets count; all three have the same shape."""
        return mae_loss(prediction, target, mask)


@TASKS.register("smooth_l1")
class SmoothL1Loss(nn.Module):
    """Squared near 0, absolute beyond beta; `smooth_l1_loss` has the formula.

    Args:
        beta: where it turns linear, in units of the target.
    """

    kind: ClassVar[str] = "regression"
    formula: ClassVar[str] = "g^2 / (2 beta) if |g| <= beta else |g| - beta / 2, g = p - t"
    use: ClassVar[str] = "a number such as age; the weight does not depend on beta"
    source: ClassVar[str] = "Girshick, ICCV 2015, eq. 3"

    def __init__(self, *, beta: float = 1.0):
        super().__init__()
        check_options(beta=(0 < beta < math.inf, f"must be positive, got {beta}"))
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean over the values that `mask` lets count; all three have the same shape."""
        return smooth_l1_loss(prediction, target, mask, beta=self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta}"


@TASKS.register("huber")
class HuberLoss(nn.Module):
    """Squared near 0, linear beyond delta; `huber_loss` has the formula.

    Args:
        delta: where it turns linear, in units of the target.
    """

    kind: ClassVar[str] = "regression"
    formula: ClassVar[str] = "1/2 g^2 if |g| <= delta else delta (|g| - delta / 2), g = p - t"
    use: ClassVar[str] = "as mse, but an outlier pulls no more than delta"
    source: ClassVar[str] = "Huber, Annals of Mathematical Statistics 1964"

    def __init__(self, *, delta: float = 1.0):
        super().__init__()
        check_options(delta=(0 < delta < math.inf, f"must be positive, got {delta}"))
        self.delta = delta

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean over the values that `mask` lets count; all three have the same shape."""
        return huber_loss(prediction, target, mask, delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
