"""Pairs of identities that are probably one: too alike to be told apart by force."""

import torch
from torch import Tensor

from metricid.mining.neighbours import Neighbours

__all__ = ["alike_pairs"]


def alike_pairs(table: Neighbours, guard: float) -> tuple[Tensor, Tensor]:
    """The pairs of identities in a table whose similarity is above a guard.

    A pair stands in the list when it is in the table from either side. Similarities are those that the table
    holds, rounded to 16 bits (0.0005 near 1).

    Args:
        table: neighbours of each identity.
        guard: cosine.

    Returns:
        pairs [S, 2] int64, the smaller number first, similarity [S] float32; the most alike pair first,
        of equally alike ones in the order of the numbers.
    """
    row, column = ((table.similarity.float() > guard) & (table.ids >= 0)).nonzero(as_tuple=True)
    other = table.ids[row, column].long()
    value = table.similarity[row, column].float()
    low, high = torch.minimum(row, other), torch.maximum(row, other)
    keys, place = torch.unique(low * len(table.ids) + high, return_inverse=True)
    best = torch.full((len(keys),), -torch.inf).scatter_reduce(0, place, value, "amax")
    best, order = best.sort(descending=True, stable=True)
    keys = keys[order]
    number = max(len(table.ids), 1)
    return torch.stack([keys // number, keys % number], dim=1), best
