"""Margins: how the cosines of a softmax head become logits.

A head holds the class weights, a `Margin` changes what it computes from them, so that a dense head, one that
streams over blocks of classes and one that holds a shard of them share every margin.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses.checks import check_options
from metricid.losses.exact import ExactBuffers

Gradient = Literal["exact", "straight_through"]
Rule = tuple[bool, str]


class Margin(ExactBuffers):
    """The interface between a margin and a head; itself, no margin at all.

    The logit of the own class is `scale_of(norms) * target(...)`, that of any other `scale_of(norms) *
    others(...)`. A head that does not hold all classes at once finds the own cosines first, calls `target`,
    and then `others` for the cosines [B, C'] of any part of the classes, in any order.

    No call but `update` changes a buffer, so that a forward pass is a function of its arguments: every rank
    of a distributed training computes with the same state, and `state_dict` resumes it.

    Args:
        scale: s, the factor on the cosines.
        rules: what `check_options` shall look at besides.
    """

    changes_others: ClassVar[bool] = False
    scale: float | Tensor

    def __init__(self, scale: float, **rules: Rule):
        super().__init__()
        check_options(scale=positive(scale), **rules)
        self.scale = scale

    def scale_of(self, norms: Tensor) -> Tensor | float:
        """The factor on the cosines: one for all rows, or one for each.

        Args:
            norms: [B], lengths of the embeddings.
        """
        return self.scale

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        """What takes the place of the cosine to the own class.

        Args:
            cosine: [B]; rounding beyond +-1 is harmless.
            labels: [B] int64.
            norms: [B], lengths of the embeddings.

        Returns:
            [B], differentiable in `cosine` and, where the paper says so, in `norms`.
        """
        return cosine

    def others(self, cosines: Tensor, cosine: Tensor, moved: Tensor) -> Tensor:
        """What takes the place of the cosines to other classes; called where `changes_others` is set.

        Args:
            cosines: [B, C'], to any of the classes; what comes out for the own class is not used.
            cosine: [B], to the own class.
            moved: [B], what `target` made of it.

        Returns:
            [B, C'].
        """
        return cosines

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Mean loss of logits [B, C] over all classes."""
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def penalty(self, norms: Tensor) -> Tensor | None:
        """A term on the lengths of the embeddings [B], or None."""
        return None

    def update(self, cosine: Tensor, norms: Tensor, log_sum: Callable[[Tensor], Tensor]) -> None:
        """Moves the state of the margin by one batch; call it once after each step of the optimiser.

        With several ranks give the joined batch to each, so that all hold the same state.

        Args:
            cosine: [B], to the own class.
            norms: [B], lengths of the embeddings.
            log_sum: maps a scale s (scalar) to log(sum over the other classes of e^{s cos}), [B].
        """

    def extra_repr(self) -> str:
        shown = {k: v for k, v in vars(self).items() if isinstance(v, (int, float, str)) and k[0] != "_"}
        return ", ".join(f"{key}={value}" for key, value in shown.items() if key != "training")


def positive(value: float) -> Rule:
    """Rule for `check_options`: a finite number above 0."""
    return 0 < value < math.inf, f"must be positive, got {value}"


def within(value: float, low: float, high: float) -> Rule:
    """Rule for `check_options`: a number in [low, high]."""
    bound = f"must be at least {low:g}" if high == math.inf else f"must lie in [{low:g}, {high:g}]"
    return low <= value <= high and value < math.inf, f"{bound}, got {value}"


def angle(value: float) -> Rule:
    """Rule for `check_options`: an angle in [0, pi)."""
    return 0 <= value < math.pi, f"must lie in [0, pi) radians, got {value}"


def one_of(value: str, hint: object) -> Rule:
    """Rule for `check_options`: one of the values of a Literal."""
    return value in get_args(hint), f"must be one of {get_args(hint)}, got {value!r}"


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), right to the last digit; PyTorch's own rounds it to x from 20 on."""
    return -F.logsigmoid(-x)


def straight_through(cosine: Tensor, moved: Tensor, gradient: Gradient) -> Tensor:
    """`moved` with its own gradient ('exact'), or with that of `cosine` ('straight_through')."""
    return moved if gradient == "exact" else cosine + (moved - cosine).detach()


def sine_of(cosine: Tensor) -> Tensor:
    """sin(theta) of cos(theta), with a gradient of 0 at +-1 and beyond, where the true one is infinite."""
    smallest = torch.finfo(cosine.dtype).eps ** 2  # below 1 - c^2 of every representable c other than +-1
    return ((1 - cosine) * (1 + cosine)).clamp_min(smallest).sqrt()


def arc_margin(cosine: Tensor, margin: float | Tensor, *, easy_margin: bool = False) -> Tensor:
    """The target cosine after an additive angular margin: cos(theta + m) (Deng et al., CVPR 2019, eq. 3).

    Beyond theta + m = pi, where the cosine would rise again, cos(theta) - m sin(m) takes over. With
    `easy_margin` the margin applies where cos(theta) > 0 only, and other cosines stay as they are. The
    gradient is the exact sin(theta + m) / sin(theta), of which the limit at theta = 0 is infinite; at cos = 1
    exactly it is cos(m), which is the subgradient that does not move an embedding already on its class
    center.

    Args:
        cosine: any shape, float32 or float64; rounding beyond +-1 is harmless.
        margin: m in radians, in [0, pi); one for all, or one for each cosine.

    Returns:
        A tensor of the same shape and dtype.

    Example:
        >>> arc_margin(torch.tensor([0.6]), 0.5)
        tensor([0.1430])
    """
    if isinstance(margin, Tensor):
        cos_m, sin_m = margin.cos(), margin.sin()
    else:
        cos_m, sin_m = math.cos(margin), math.sin(margin)  # type: ignore[assignment]
    moved = cosine * cos_m - sine_of(cosine) * sin_m
    if easy_margin:
        return torch.where(cosine > 0, moved, cosine)
    return torch.where(cosine > -cos_m, moved, cosine - margin * sin_m)


def sphere_margin(cosine: Tensor, margin: int) -> Tensor:
    """psi(theta) = (-1)^k cos(m theta) - 2k, k = floor(m theta / pi) (Liu et al., CVPR 2017, eq. 7).

    It falls from 1 at theta = 0 to 1 - 2m at theta = pi. cos(m theta) is the Chebyshev polynomial of the
    cosine, so that value and gradient are exact everywhere, at +-1 too.

    Args:
        cosine: any shape; rounding beyond +-1 is harmless.
        margin: m, an integer of at least 1.

    Example:
        >>> sphere_margin(torch.tensor([1.0, 0.0, -1.0]), 4)
        tensor([ 1., -3., -7.])
    """
    before, now = torch.ones_like(cosine), cosine
    for _ in range(margin - 1):
        before, now = now, 2 * cosine * now - before
    with torch.no_grad():
        # At theta = pi the formula wants k = m - 1: there both values agree, but rounding could pass m.
        turns = (margin * cosine.clamp(-1, 1).acos() / math.pi).floor().clamp_max(margin - 1)
        sign = 1 - 2 * (turns % 2)
    return sign * now - 2 * turns


def combined_margin(cosine: Tensor, m1: float, m2: float, m3: float) -> Tensor:
    """cos(m1 theta + m2) - m3 (Deng et al., CVPR 2019, eq. 4), kept falling beyond m1 theta + m2 = pi.

    There the paper leaves it open. m1 = 1 goes on as `arc_margin` does, any other m1 as SphereFace's psi,
    (-1)^k cos(phi) - 2k with phi = m1 theta + m2, k = floor(phi / pi): ArcFace, CosFace and SphereFace are
    exact members. At cos = +-1 with m1 != 1 the gradient is 0.

    Args:
        cosine: any shape; rounding beyond +-1 is harmless.
        m1: factor on the angle, >= 1.
        m2: added to the angle, in [0, pi).
        m3: subtracted from the cosine, >= 0.
    """
    if m1 == 1:
        return arc_margin(cosine, m2) - m3
    phi = m1 * torch.atan2(sine_of(cosine), cosine) + m2
    turns = (phi.detach() / math.pi).floor()
    return (1 - 2 * (turns % 2)) * phi.cos() - 2 * turns - m3


class CosMargin(Margin):
    """cos(theta) - m (Wang et al., CVPR 2018, eq. 4)."""

    def __init__(self, margin: float, scale: float):
        super().__init__(scale, margin=within(margin, 0, math.inf))
        self.margin = margin

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return cosine - self.margin


class ArcMargin(Margin):
    """cos(theta + m); `arc_margin` has the formula."""

    def __init__(
        self, margin: float, scale: float, *, easy_margin: bool = False, gradient: Gradient = "exact"
    ):
        super().__init__(scale, margin=angle(margin), gradient=one_of(gradient, Gradient))
        self.margin = margin
        self.easy_margin = easy_margin
        self.gradient: Gradient = gradient

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        moved = arc_margin(cosine, self.margin, easy_margin=self.easy_margin)
        return straight_through(cosine, moved, self.gradient)


class CombinedMargin(Margin):
    """cos(m1 theta + m2) - m3; `combined_margin` has the formula."""

    def __init__(self, m1: float, m2: float, m3: float, scale: float, *, gradient: Gradient = "exact"):
        super().__init__(
            scale,
            m1=within(m1, 1, math.inf),
            m2=angle(m2),
            m3=within(m3, 0, math.inf),
            gradient=one_of(gradient, Gradient),
        )
        self.m1, self.m2, self.m3 = m1, m2, m3
        self.gradient: Gradient = gradient

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return straight_through(cosine, combined_margin(cosine, self.m1, self.m2, self.m3), self.gradient)


class SphereMargin(Margin):
    """(lambda cos(theta) + psi(theta)) / (1 + lambda), lambda falling with the steps of the training.

    lambda = max(smallest, start (1 + gamma n)^-power) after n updates (Liu et al., CVPR 2017, section 4.1 and
    the authors' recipe). `scale` None takes the length of the embedding, as the paper does.
    """

    steps: Tensor

    def __init__(
        self, margin: int, scale: float | None, *, start: float, gamma: float, power: float, smallest: float
    ):
        super().__init__(
            1.0 if scale is None else scale,
            margin=(margin >= 1, f"must be an integer of at least 1, got {margin}"),
            anneal_start=within(start, 0, math.inf),
            anneal_gamma=within(gamma, 0, math.inf),
            anneal_power=within(power, 0, math.inf),
            anneal_min=within(smallest, 0, math.inf),
        )
        self.margin = margin
        self.own_length = scale is None
        self.start, self.gamma, self.power, self.smallest = start, gamma, power, smallest
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def scale_of(self, norms: Tensor) -> Tensor | float:
        return norms if self.own_length else self.scale

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        falling = self.start * (1 + self.gamma * self.steps.to(cosine.dtype)) ** -self.power
        share = 1 / (1 + falling.clamp_min(self.smallest))
        return cosine + share * (sphere_margin(cosine, self.margin) - cosine)

    @torch.no_grad()
    def update(self, cosine: Tensor, norms: Tensor, log_sum: Callable[[Tensor], Tensor]) -> None:
        self.steps += 1


class BinaryMargin(Margin):
    """One binary classifier per class, as SphereFace2-C (Wen et al., ICLR 2022).

    With g(z) = 2 ((z + 1) / 2)^t - 1 the logits are r (g(cos theta_y) - m) + b and r (g(cos theta_j) + m) +
    b; the loss is lambda / r softplus(-z_y) + (1 - lambda) / r sum_j softplus(z_j). b is learned.
    """

    changes_others: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        margin: float,
        scale: float,
        *,
        balance: float,
        sharpness: float,
        gradient: Gradient = "exact",
    ):
        super().__init__(
            scale,
            margin=within(margin, 0, math.inf),
            balance=(0 < balance < 1, f"must lie in (0, 1), got {balance}"),
            sharpness=within(sharpness, 1, math.inf),
            gradient=one_of(gradient, Gradient),
        )
        self.margin, self.balance, self.sharpness = margin, balance, sharpness
        self.gradient: Gradient = gradient
        self.bias = nn.Parameter(torch.full((), self._first_bias(num_classes)))

    def _first_bias(self, num_classes: int) -> float:
        """The b at which the loss of orthogonal vectors is smallest (the paper's appendix on the bias)."""
        middle = 2 * 0.5**self.sharpness - 1
        own, other = self.scale * (middle - self.margin), self.scale * (middle + self.margin)
        z = self.balance / ((1 - self.balance) * max(num_classes - 1, 1))
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(own - other))
        if z > 1:  # two forms of one root: each is without cancellation on its side
            return math.log((root + z - 1) / 2) - own
        return math.log(2 * z / (1 - z + root)) - other

    def _shape(self, cosine: Tensor, margin: float) -> Tensor:
        moved = 2 * ((cosine + 1) / 2).clamp_min(0) ** self.sharpness - 1 + margin
        return straight_through(cosine, moved, self.gradient)

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return self._shape(cosine, -self.margin)

    def others(self, cosines: Tensor, cosine: Tensor, moved: Tensor) -> Tensor:
        return self._shape(cosines, self.margin)

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        logits = logits + self.bias
        own = logits.gather(1, labels[:, None]).squeeze(1)
        rest = softplus(logits).scatter(1, labels[:, None], 0.0).sum(dim=1)
        return ((self.balance * softplus(-own) + (1 - self.balance) * rest) / self.scale).mean()
