"""Gradients of several terms that pull against each other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def project_conflicts(gradients: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """The sum of gradients, each without what opposes another (PCGrad: Yu et al., NeurIPS 2020, algorithm 1).

    For each i a copy g of g_i goes through the other j in a given order and loses what opposes g_j: where
    g . g_j < 0, g <- g - (g . g_j) / |g_j|^2 g_j. The originals are projected on, not their changed copies.
    Every copy is a combination of the K originals, so that all steps are done on their K x K products: no
    gradient is copied.

    Args:
        gradients: [K, P].
        orders: K orders, the i-th of the other K - 1 gradients; the paper draws them at random.

    Returns:
        [P].

    Example:
        >>> project_conflicts(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), [[1], [0]])
        tensor([0.5000, 1.5000])
    """
    # Products are taken in float32 by rows and then kept in float64 on the host: K is a handful.
    products = (gradients @ gradients.T).double().cpu()
    mix = torch.eye(len(gradients), dtype=torch.float64)
    for i, order in enumerate(orders):
        for j in order:
            along = mix[i] @ products[:, j]
            if along < 0 < products[j, j]:
                mix[i, j] -= along / products[j, j]
    return mix.sum(dim=0).to(gradients) @ gradients
