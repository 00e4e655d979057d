"""Distances of chosen pairs of rows, without keeping the rows of each pair."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metricid.losses.distances import pull_of, row_blocks


def pair_distances(
    x: Tensor, y: Tensor | None, rows: Tensor | None, columns: Tensor, squared: bool
) -> Tensor:
    """Distances of rows of x to rows of y; the subgradient at distance 0 is 0.

    Args:
        x: [B, D], float32 or float64.
        y: [M, D] alike; None for `x`.
        rows: [A, T] int64, rows of x; None for row a in all of `columns[a]`.
        columns: [A, T] int64, rows of y.
        squared: return d^2 and not d.

    Returns:
        [A, T].
    """
    return _PairDistances.apply(x, y, rows, columns, squared)


class _PairDistances(torch.autograd.Function):
    """Backward computes the differences again, some at a time, and needs no more than the rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, rows: Tensor | None, columns: Tensor, squared: bool
    ) -> Tensor:
        distances = x.new_empty(columns.shape)
        for part, gap in _gaps(x, y, rows, columns):
            torch.linalg.vector_norm(gap, dim=2, out=distances[part])
        ctx.squared = squared
        ctx.save_for_backward(x, y, rows, columns, distances)
        return distances.square() if squared else distances.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, y, rows, columns, distances = ctx.saved_tensors
        pull = pull_of(slopes[0], distances, ctx.squared)
        dx = torch.zeros_like(x)
        dy = dx if y is None else torch.zeros_like(y) if ctx.needs_input_grad[1] else None
        for part, gap in _gaps(x, y, rows, columns):
            gap *= pull[part][:, :, None]
            if rows is None:
                dx[part] += gap.sum(dim=1)
            else:
                dx.index_add_(0, rows[part].flatten(), gap.flatten(0, 1))
            if dy is not None:
                dy.index_add_(0, columns[part].flatten(), gap.flatten(0, 1), alpha=-1)
        return dx, None if y is None else dy, None, None, None


def _gaps(
    x: Tensor, y: Tensor | None, rows: Tensor | None, columns: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """x_i - y_j of pairs, [A, T, D], some of A at a time."""
    for part in row_blocks(columns, columns.shape[1] * x.shape[1]):
        near = x[part, None] if rows is None else x[rows[part]]
        yield part, near - (x if y is None else y)[columns[part]]
