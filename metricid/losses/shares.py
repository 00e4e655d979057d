"""Masked sums of exponentials of the rows of a sheet, and values with the slopes computed beside them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def as_numbers(mask: Tensor, dtype: torch.dtype, weights: Tensor | None = None) -> Tensor:
    """1, or the weight, and 0 for a mask; on a CPU bool with float takes ten times as long as float alone."""
    numbers = mask.view(torch.uint8).to(dtype)
    return numbers if weights is None else numbers.mul_(weights)


def any_in_row(mask: Tensor) -> Tensor:
    """`mask.any(dim=1)`, which takes 18 times as long on a CPU; False without columns."""
    return mask.view(torch.uint8).amax(dim=1) > 0 if mask.shape[1] else mask.any(dim=1)


def log_sum_exp(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """log sum exp over the masked entries of each row [R, M]; if none, hugely negative, but finite.

    An entry with a weight counts as so many.
    """
    with torch.no_grad():
        total, shares = log_sum_and_shares(values, mask, weights)
    return _WithSlopes.apply(values, total, shares)


def log_sum_and_shares(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`log_sum_exp` [R] outside of the graph, and its slopes: a softmax over the masked entries [R, M].

    The softmax gives the sum, too: on a CPU exp by itself takes ten times as long where it underflows.
    """
    # Half of it, so that nothing that is added makes it infinite; any value is lost in it.
    lowest = torch.finfo(values.dtype).min / 2
    logits = torch.add(values, as_numbers(~mask, values.dtype), alpha=lowest)
    if weights is not None:
        logits += weights.clamp_min(torch.finfo(weights.dtype).tiny).log_()
    top, shares = logits.amax(dim=1), logits.softmax(dim=1)
    total = top - shares.amax(dim=1).log_()
    some = top > lowest / 2
    if shares.device.type == "cpu" and some.all():
        return total, shares
    return total, shares.mul_(some.to(shares.dtype)[:, None])  # 0 in a row without any


def log_share_of(
    values: Tensor, total: Tensor, shares: Tensor, part: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """How much of a sum of exponentials comes from a part of its entries.

    Args:
        values: [R, M].
        total: [R], from `log_sum_and_shares`.
        shares: [R, M], from there.
        part: [R, M] bool, some of the entries that were summed.
        weights: [R, M], as they were summed with.

    Returns:
        log of the part's share [R], 0 where the part is empty; its slopes [R, M], which mean nothing there;
        whether the part has entries [R].
    """
    known = any_in_row(part)
    # Where the host need not wait to know that no share has underflowed, they serve the part, too.
    if values.device.type == "cpu":
        inside = as_numbers(part, values.dtype).mul_(shares)
        share = inside.sum(dim=1).masked_fill_(~known, 1.0)
        if len(share) and share.amin() > torch.finfo(values.dtype).tiny ** 0.5:
            return share.log(), inside.div_(share[:, None]).sub_(shares), known
    within, inside = log_sum_and_shares(values, part, weights)
    return (within - total).where(known, 0.0), inside.sub_(shares), known


def with_slopes(sheet: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    """A value, or one of each row, that was computed from a sheet outside of the graph, with its slopes."""
    return _WithSlopes.apply(sheet, value, slopes)


class _WithSlopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sheet: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        g = gradients[0]
        return (g if g.ndim == 0 else g[:, None]) * slopes, None, None
