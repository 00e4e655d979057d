"""Weights of terms that the training finds itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metricid.losses.checks import check_options
from metricid.registry import Registry

BALANCES = Registry("balance")
FORM = 2  # of a stored state; the first saw the losses with their weights


class Balance(nn.Module):
    """Finds factors on the losses of the active terms, beside which stand the weights of the recipe.

    It sees the losses without those weights: a schedule is no progress of a loss, and what the user weighs
    double counts double.

    A subclass changes its state in `update` and `end_epoch` only, never in a forward pass, and keeps it in
    buffers or parameters, so that a checkpoint carries it.

    Args:
        terms: number of terms of the objective, active or not.
    """

    wants_norms = False
    form: Tensor

    def __init__(self, terms: int):
        super().__init__()
        self.terms = terms
        self.register_buffer("form", torch.tensor(FORM))

    def parts(self, values: Tensor, weights: Tensor, active: Sequence[int]) -> Tensor:
        """[K] what each active term adds to the total.

        Args:
            values: [K] losses of the active terms.
            weights: [K] their own weights at this time.
            active: K places among the terms.
        """
        return (weights * self.factors(active)).to(values.dtype) * values

    def factors(self, active: Sequence[int]) -> Tensor:
        """[K] factors on the active terms; carries no gradient."""
        raise NotImplementedError

    def parameters_of(self, place: int) -> list[nn.Parameter]:
        """The parameters that belong to one term alone."""
        return []

    def update(self, values: Tensor, norms: Tensor | None, active: Sequence[int]) -> None:
        """After an optimiser step.

        Args:
            values: [K], as in `parts`, the same on all ranks.
            norms: [K] gradient norms of `values` where the terms meet, the same on all ranks; None if
                `wants_norms` is False or nothing before the losses is trained.
            active: K places among the terms.
        """

    def end_epoch(self) -> None:
        """After the last step of an epoch."""


@BALANCES.register("uncertainty")
class Uncertainty(Balance):
    """Learns a log variance s for each term: sum of w (exp(-s) L + s / 2).

    A term that stays large gets a large variance, and so a small factor. The factors start at 1. The paper
    has no weights w: here they are outside, so that s stays where it is while a schedule keeps w at 0.

    Source: Kendall et al., CVPR 2018, eq. 10.

    Args:
        terms: number of terms.
    """

    def __init__(self, terms: int):
        super().__init__(terms)
        self.log_variances = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(terms))

    def parts(self, values: Tensor, weights: Tensor, active: Sequence[int]) -> Tensor:
        """As above, for each active term."""
        chosen = torch.stack([self.log_variances[place] for place in active])
        return weights.to(values.dtype) * ((-chosen).exp() * values + 0.5 * chosen)

    def factors(self, active: Sequence[int]) -> Tensor:
        """exp(-s)."""
        return torch.stack([(-self.log_variances[place].detach()).exp() for place in active])

    def parameters_of(self, place: int) -> list[nn.Parameter]:
        """Its s."""
        return [self.log_variances[place]]


@BALANCES.register("dwa")
class DynamicWeightAverage(Balance):
    """Favours the terms that fall slowest (Liu et al., CVPR 2019, eq. 7).

    The factors are K softmax(r / T) with r = L(t-1) / L(t-2), where L(t) is the mean of a term over epoch t.
    They are 1 in the first two epochs. A term that was not active in both epochs before counts with r = 1.

    Args:
        terms: number of terms.
        temperature: T; the larger, the more equal the factors.
    """

    history: Tensor
    running: Tensor

    def __init__(self, terms: int, temperature: float = 2.0):
        check_options(temperature=(temperature > 0, f"must be positive, got {temperature}"))
        super().__init__(terms)
        self.temperature = temperature
        # Means of the last two epochs, the older one first; mean and count of this one.
        self.register_buffer("history", torch.full((2, terms), torch.nan))
        self.register_buffer("running", torch.zeros(2, terms))

    def factors(self, active: Sequence[int]) -> Tensor:
        """K softmax(r / T) over the active terms."""
        older, newer = self.history[:, list(active)]
        ratio = torch.where(older > 0, newer / older, 1.0).nan_to_num(nan=1.0, posinf=1.0)
        return len(active) * (ratio / self.temperature).softmax(dim=0)

    def update(self, values: Tensor, norms: Tensor | None, active: Sequence[int]) -> None:
        """Adds the losses to the means of this epoch."""
        places = list(active)
        mean, count = self.running[:, places]
        self.running[0, places] = mean + (values.detach().float() - mean) / (count + 1)
        self.running[1, places] = count + 1

    def end_epoch(self) -> None:
        """Moves this epoch's means into the history."""
        means = self.running[0].where(self.running[1] > 0, torch.nan)
        self.history.copy_(torch.stack([self.history[1], means]))
        self.running.zero_()


@BALANCES.register("gradnorm")
class GradNorm(Balance):
    """Lets all terms train at similar rates (Chen et al., ICML 2018, eq. 2).

    With G = w g the gradient norm of a term under its factor w, and r its relative inverse training rate
    (L / L(0), over the mean of that over the terms), w descends on the sum of |G - mean(G) r^alpha|, whose
    target counts as constant. One step of Adam per training step, then the factors are brought back to a sum
    of K. The norms are those at the features, which all terms share, not at the last layer's weights. A term
    without a gradient there, such as a regulariser of weights, keeps its factor in that step, and the others
    are balanced among themselves.

    Args:
        terms: number of terms.
        alpha: how strongly terms that lag behind are favoured; 0 makes the gradient norms equal.
        lr: learning rate of the factors.
    """

    wants_norms = True
    weights: Tensor
    initial: Tensor
    moments: Tensor
    steps: Tensor

    def __init__(self, terms: int, alpha: float = 1.5, lr: float = 0.025):
        check_options(
            alpha=(alpha >= 0, f"must be at least 0, got {alpha}"),
            lr=(lr > 0, f"must be positive, got {lr}"),
        )
        super().__init__(terms)
        self.alpha, self.lr = alpha, lr
        self.register_buffer("weights", torch.ones(terms))
        self.register_buffer("initial", torch.full((terms,), torch.nan))
        self.register_buffer("moments", torch.zeros(2, terms))
        self.register_buffer("steps", torch.zeros(terms))

    def factors(self, active: Sequence[int]) -> Tensor:
        """The factors of the active terms, with the sum K."""
        chosen = self.weights[list(active)]
        return chosen * (len(active) / chosen.sum())

    def update(self, values: Tensor, norms: Tensor | None, active: Sequence[int]) -> None:
        """One step of Adam on the factors."""
        if norms is None:
            return
        meet = norms > 0
        if not meet.any():
            return
        factors = self.factors(active)
        everyone = torch.tensor(list(active), device=self.weights.device)
        places = everyone[meet]
        loss, norm = values.detach().float()[meet], norms.detach().float()[meet]
        first = self.initial[places]
        first = torch.where(first.isnan(), loss, first)
        self.initial[places] = first
        rate = torch.where(first > 0, loss / first, 1.0)
        rate = rate / rate.mean().clamp_min(1e-12)
        weights = factors[meet]
        weighted = weights * norm
        target = weighted.mean() * rate**self.alpha
        slope = torch.sign(weighted - target) * norm
        # A scale-free step: the slopes are as small as the gradients of the network.
        mean = 0.9 * self.moments[0, places] + 0.1 * slope
        square = 0.999 * self.moments[1, places] + 0.001 * slope.square()
        count = self.steps[places] + 1
        step = (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-12)
        weights = (weights - self.lr * step).clamp_min(1e-3)
        self.moments[0, places], self.moments[1, places], self.steps[places] = mean, square, count
        factors[meet] = weights * (factors[meet].sum() / weights.sum())
        self.weights[everyone] = factors


def balance_problems(options: Any) -> list[str]:
    """What is wrong with `{name: ..., option: ...}`, one line each; empty if it can be built.

    Example:
        >>> balance_problems({"name": "dwa", "temperature": 0.0})
        ['temperature: must be positive, got 0.0']
    """
    if not isinstance(options, Mapping):
        return [f"expected a mapping such as {{name: uncertainty}}, got {options!r}"]
    found = BALANCES.problems(options, ("terms",))
    if found:
        return found
    try:
        BALANCES.build(options, terms=2)
    except ValueError as error:
        return str(error).split("; ")
    return []
