"""Rows of length 1, with few passes over the memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metricid.losses.distances import row_blocks

SHORTEST = 1e-12  # rows below are divided by it, as by PyTorch's `normalize`


def unit_rows(rows: Tensor) -> Tensor:
    """[B, D] scaled to length 1, but for rows near zero; first derivatives alone.

    PyTorch's `normalize` gives the same, but its backward makes several matrices of the size of the rows,
    where one is enough.
    """
    return _UnitRows.apply(rows)


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit = rows / lengths.clamp_min(SHORTEST)
        ctx.save_for_backward(unit, lengths)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        unit, lengths = ctx.saved_tensors
        result = torch.empty_like(unit)
        for part in row_blocks(unit, unit.shape[1]):
            slope, direction = slopes[0][part], unit[part]
            along = (slope * direction).sum(dim=1, keepdim=True)
            along.masked_fill_(lengths[part] < SHORTEST, 0)
            torch.addcmul(slope, direction, along, value=-1, out=result[part])
        return result.div_(lengths.clamp_min(SHORTEST))
