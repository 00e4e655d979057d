"""Margins that follow the data: its difficulty, its quality, its class sizes."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metricid.losses.exact import exact_tensor
from metricid.losses.margins import Margin, angle, arc_margin, one_of, positive, sine_of, within

Weighting = Literal["adaptive", "fixed"]
Kind = Literal["arc", "cos"]
ScaleMode = Literal["dynamic", "fixed"]


def curricular_others(cosines: Tensor, moved: Tensor, t: Tensor | float) -> Tensor:
    """cos (t + cos) for classes that beat the target, cos for others (Huang et al., CVPR 2020).

    Args:
        cosines: [B, C'].
        moved: [B], the own cosine after its margin.
        t: running mean of the own cosines.
    """
    return torch.where(cosines > moved[:, None], cosines * (t + cosines), cosines)


def mv_others(cosines: Tensor, moved: Tensor, t: float, weighting: Weighting) -> Tensor:
    """Raises classes that beat the target: t cos + t - 1, or cos + t - 1 (Wang et al., AAAI 2020).

    The paper writes h = e^{s (t - 1)(cos + 1)} ('adaptive') or e^{s (t - 1)} ('fixed') before e^{s cos}.

    Args:
        cosines: [B, C'].
        moved: [B], the own cosine after its margin.
        t: >= 1.
        weighting: 'adaptive' or 'fixed'.
    """
    hard = t * cosines + (t - 1) if weighting == "adaptive" else cosines + (t - 1)
    return torch.where(cosines > moved[:, None], hard, cosines)


def adaface_margin(cosine: Tensor, quality: Tensor, margin: float) -> Tensor:
    """cos(theta - m q) - (m q + m) (Kim et al., CVPR 2022), the angle held in [0, pi].

    Args:
        cosine: [B].
        quality: [B], the standardised length q in [-1, 1]; the paper sends no gradient through it.
        margin: m.
    """
    shift = -margin * quality
    low, high = shift.clamp_max(0).neg(), math.pi - shift.clamp_min(0)  # the angles that stay in [0, pi]
    moved = cosine * shift.cos() - sine_of(cosine) * shift.sin()
    moved = torch.where(cosine > low.cos(), 1.0, torch.where(cosine < high.cos(), -1.0, moved))
    return moved - (margin * quality + margin)


def circle_target(cosine: Tensor, margin: float) -> Tensor:
    """[1 + m - s]+ (s - (1 - m)), the weight held constant (Sun et al., CVPR 2020, eq. 5-8)."""
    return (1 + margin - cosine.detach()).clamp_min(0) * (cosine - (1 - margin))


def circle_others(cosines: Tensor, margin: float) -> Tensor:
    """[s + m]+ (s - m), the weight held constant (Sun et al., CVPR 2020, eq. 5-8)."""
    return (cosines.detach() + margin).clamp_min(0) * (cosines - margin)


class CurricularMargin(Margin):
    """ArcFace whose hard negatives weigh more as the training goes on.

    t follows the mean own cosine, t <- alpha mean + (1 - alpha) t (eq. 10), from 0, by `update`.
    """

    changes_others: ClassVar[bool] = True
    t: Tensor

    def __init__(self, margin: float, scale: float, *, alpha: float):
        super().__init__(scale, margin=angle(margin), alpha=within(alpha, 0, 1))
        self.margin, self.alpha = margin, alpha
        self.register_buffer("t", torch.zeros(()))

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return arc_margin(cosine, self.margin)

    def others(self, cosines: Tensor, cosine: Tensor, moved: Tensor) -> Tensor:
        return curricular_others(cosines, moved, self.t.to(cosines.dtype))

    @torch.no_grad()
    def update(self, cosine: Tensor, norms: Tensor, log_sum: Callable[[Tensor], Tensor]) -> None:
        self.t.lerp_(cosine.mean().to(self.t.dtype), self.alpha)


class MisclassifiedMargin(Margin):
    """MV-Softmax: a margin on the target, and more weight for the classes that beat it."""

    changes_others: ClassVar[bool] = True

    def __init__(self, kind: Kind, margin: float, scale: float, *, t: float, weighting: Weighting):
        super().__init__(
            scale,
            kind=one_of(kind, Kind),
            margin=angle(margin),
            t=within(t, 1, math.inf),
            weighting=one_of(weighting, Weighting),
        )
        self.kind: Kind = kind
        self.margin, self.t = margin, t
        self.weighting: Weighting = weighting

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return arc_margin(cosine, self.margin) if self.kind == "arc" else cosine - self.margin

    def others(self, cosines: Tensor, cosine: Tensor, moved: Tensor) -> Tensor:
        return mv_others(cosines, moved, self.t, self.weighting)


class QualityMargin(Margin):
    """AdaFace: the length of an embedding stands for the quality of its image.

    q = clip((length - mean) / (std / h), -1, 1); mean and std follow those of the batches by `update`, from
    20 and 100, as the authors' code has them, and its bounds of 0.001 and 100 on a length hold here too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, margin: float, scale: float, *, h: float, alpha: float):
        super().__init__(scale, margin=angle(margin), h=positive(h), alpha=within(alpha, 0, 1))
        self.margin, self.h, self.alpha = margin, h, alpha
        self.register_buffer("mean", torch.full((), 20.0))
        self.register_buffer("std", torch.full((), 100.0))

    def quality(self, norms: Tensor) -> Tensor:
        """Standardised length in [-1, 1] of each embedding, without a gradient."""
        spread = (self.std.to(norms.dtype) + 1e-3) / self.h
        return ((norms.detach().clamp(1e-3, 100) - self.mean.to(norms.dtype)) / spread).clamp(-1, 1)

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return adaface_margin(cosine, self.quality(norms), self.margin)

    @torch.no_grad()
    def update(self, cosine: Tensor, norms: Tensor, log_sum: Callable[[Tensor], Tensor]) -> None:
        if len(norms) < 2:
            return  # one length has no spread
        lengths = norms.clamp(1e-3, 100).to(self.mean.dtype)
        self.mean.lerp_(lengths.mean(), self.alpha)
        self.std.lerp_(lengths.std(), self.alpha)


class MagnitudeMargin(Margin):
    """MagFace: longer embeddings, of clearer images, get a larger margin and pay for being short.

    m(a) rises linearly from `low` at `shortest` to `high` at `longest`; the penalty is lambda (1 / a + a /
    longest^2) (Meng et al., CVPR 2021). Gradients run through a, which is held in
    [shortest, longest].
    """

    def __init__(
        self, low: float, high: float, shortest: float, longest: float, scale: float, *, regulariser: float
    ):
        super().__init__(
            scale,
            margin_low=angle(low),
            margin_high=(low <= high < math.pi, f"must lie in [margin_low, pi), got {high}"),
            norm_low=positive(shortest),
            norm_high=(shortest < longest < math.inf, f"must be above norm_low, got {longest}"),
            regulariser=within(regulariser, 0, math.inf),
        )
        self.low, self.high, self.shortest, self.longest = low, high, shortest, longest
        self.regulariser = regulariser

    def margin_of(self, norms: Tensor) -> Tensor:
        """m(a) of lengths a [B]."""
        slope = (self.high - self.low) / (self.longest - self.shortest)
        return self.low + slope * (norms.clamp(self.shortest, self.longest) - self.shortest)

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return arc_margin(cosine, self.margin_of(norms))

    def penalty(self, norms: Tensor) -> Tensor | None:
        held = norms.clamp(self.shortest, self.longest)
        return self.regulariser * (1 / held + held / self.longest**2).mean()


class ElasticMargin(Margin):
    """A margin drawn for each sample from N(m, std) (Boutros et al., CVPRW 2022); its mean in eval mode.

    With `plus` the draws of a batch are given out by cosine: the sample farthest from its class gets the
    largest. The authors' code means to, but indexes by the permutation where its inverse belongs.
    """

    def __init__(self, kind: Kind, margin: float, scale: float, *, std: float, plus: bool):
        super().__init__(scale, kind=one_of(kind, Kind), margin=angle(margin), std=within(std, 0, math.inf))
        self.kind: Kind = kind
        self.margin, self.std, self.plus = margin, std, plus

    def draw(self, cosine: Tensor) -> Tensor:
        """The margins of a batch [B]."""
        with torch.no_grad():
            margin = torch.full_like(cosine, self.margin)
            if not self.training:
                return margin
            margin = (margin + self.std * torch.randn_like(cosine)).clamp(0, math.pi)
            if self.plus:
                rank = cosine.argsort(descending=True)
                margin = torch.empty_like(margin).scatter(0, rank, margin.sort().values)
            return margin

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        margin = self.draw(cosine)
        return arc_margin(cosine, margin) if self.kind == "arc" else cosine - margin


class AdaptiveScale(Margin):
    """AdaCos: no margin, but a scale that suits the number of classes and, if dynamic, the training.

    Fixed: sqrt(2) log(C - 1) (Zhang et al., CVPR 2019). Dynamic: from there, s <- log(B) /
    cos(min(pi / 4, median angle)), with B the mean over the batch of the sum of e^{s cos} over other classes
    (eq. 13-15). The scale never falls below the fixed one of 3 classes, below which the formulas turn to 0
    and negative.
    """

    smallest: ClassVar[float] = math.sqrt(2) * math.log(2)
    scale: Tensor

    def __init__(self, num_classes: int, *, mode: ScaleMode):
        first = math.sqrt(2) * math.log(max(num_classes - 1, 2))
        super().__init__(first, mode=one_of(mode, ScaleMode))
        self.mode: ScaleMode = mode
        del self.scale
        self.register_buffer("scale", exact_tensor(first))

    @torch.no_grad()
    def update(self, cosine: Tensor, norms: Tensor, log_sum: Callable[[Tensor], Tensor]) -> None:
        if self.mode == "fixed":
            return
        around = log_sum(self.scale).logsumexp(dim=0) - math.log(len(cosine))
        median = cosine.clamp(-1, 1).acos().quantile(0.5)
        scale = around / median.clamp_max(math.pi / 4).cos()
        self.scale.copy_(scale.clamp_min(self.smallest))


class CircleMargin(Margin):
    """Circle loss with class vectors: each cosine is weighted by how far it is from where it should be."""

    changes_others: ClassVar[bool] = True

    def __init__(self, margin: float, scale: float):
        super().__init__(scale, margin=within(margin, 0, 1))
        self.margin = margin

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return circle_target(cosine, self.margin)

    def others(self, cosines: Tensor, cosine: Tensor, moved: Tensor) -> Tensor:
        return circle_others(cosines, self.margin)


class ClassMargin(Margin):
    """A margin of its own for each class, on the angle or on the cosine."""

    margins: Tensor

    def __init__(self, kind: Kind, margins: Sequence[float], scale: float):
        super().__init__(scale)
        self.kind: Kind = kind
        self.register_buffer("margins", exact_tensor(list(margins)))

    def target(self, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        margin = self.margins[labels].to(cosine.dtype)
        return arc_margin(cosine, margin) if self.kind == "arc" else cosine - margin
