"""Gradients term by term, and their sum without conflicts: `train.gradients: pcgrad`."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from metricid.losses.conflicts import project_conflicts
from metricid.training.distributed import World


class GradientSurgery:
    """Collects what each term gives to the parameters that all share, and joins it by PCGrad.

    Parameters of a term alone get their plain gradient. With several ranks, the gradients of each term are
    averaged first, so that the step is that of one process on the joined batch. It costs a backward pass and
    a copy of the network's gradient per term.

    Args:
        shared: parameters of the network.
        own: parameters of the objective.
        world: the ranks.
        seed: of the orders in which conflicts are looked for.
    """

    def __init__(self, shared: Iterable[nn.Parameter], own: Iterable[nn.Parameter], world: World, seed: int):
        self.shared = [p for p in shared if p.requires_grad]
        self.own = [p for p in own if p.requires_grad]
        self.world, self.seed = world, seed
        self._sums: Tensor | None = None

    def add(self, parts: Tensor) -> None:
        """Takes the gradients of one batch.

        Args:
            parts: [K] what each active term adds to the loss, with the graph; frees it.
        """
        everything = [*self.shared, *self.own]
        rows = []
        for k, part in enumerate(parts):
            keep = k < len(parts) - 1
            found = torch.autograd.grad(part, everything, retain_graph=keep, allow_unused=True)
            together = zip(found, everything, strict=True)
            row = [torch.zeros_like(p) if g is None else g for g, p in together][: len(self.shared)]
            rows.append(torch.cat([g.flatten() for g in row]))
            for gradient, parameter in zip(found[len(self.shared) :], self.own, strict=True):
                if gradient is not None:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    parameter.grad += gradient  # in memory of its own: autograd may give a view
        new = torch.stack(rows)
        self._sums = new if self._sums is None else self._sums.add_(new)

    def finish(self, step: int) -> None:
        """Writes the joined gradient into the parameters.

        Args:
            step: number of the step; with the seed it determines the orders.
        """
        assert self._sums is not None
        sums, self._sums = self._sums, None
        if self.world.distributed:
            for tensor in [sums, *(p.grad for p in self.own if p.grad is not None)]:
                torch.distributed.all_reduce(tensor)
                tensor /= self.world.size
        joined = project_conflicts(sums, self._orders(len(sums), step))
        for parameter, part in zip(self.shared, joined.split([p.numel() for p in self.shared]), strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))

    def _orders(self, terms: int, step: int) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, step))
        return [[int(j) for j in rng.permutation(terms) if j != i] for i in range(terms)]
