"""Margin losses whose margin is fixed: on the cosine, a factor of the angle, one classifier per class."""

from typing import ClassVar, Literal

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.heads import MarginHead
from metricid.losses.margins import BinaryMargin, CosMargin, Margin, SphereMargin, positive
from metricid.losses.margins_adaptive import CircleMargin, MisclassifiedMargin


@LOSSES.register("normalized_softmax")
class NormalizedSoftmax(MarginHead):
    """Softmax over cosines, without a margin.

    Args:
        num_classes: C.
        embedding_dim: D.
        temperature: divides the cosines.
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
    """

    kind: ClassVar[str] = "classification"
    formula: ClassVar[str] = "softmax cross-entropy of cos(theta_c) / t"
    use: ClassVar[str] = "retrieval by cosine; the plain start before a margin"
    source: ClassVar[str] = "Zhai & Wu, BMVC 2019; Wang et al., ACM MM 2017"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        temperature: float = 0.05,
        label_smoothing: float = 0.0,
    ):
        check_options(temperature=positive(temperature))
        super().__init__(num_classes, embedding_dim, Margin(1 / temperature), label_smoothing=label_smoothing)


@LOSSES.register("cosface")
class CosFace(MarginHead):
    """Softmax over cosines with a margin on the target cosine.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m, subtracted from the cosine.
        scale: s.
        sub_centers: K directions per class, the nearest of which counts.
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
    """

    formula: ClassVar[str] = "softmax of s (cos(theta_y) - m) against s cos(theta_c)"
    use: ClassVar[str] = "faces and re-ID; a steadier start than arcface"
    source: ClassVar[str] = "Wang et al., CVPR 2018"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.35,
        scale: float = 64.0,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
    ):
        super().__init__(
            num_classes,
            embedding_dim,
            CosMargin(margin, scale),
            sub_centers=sub_centers,
            label_smoothing=label_smoothing,
        )


@LOSSES.register("sphereface")
class SphereFace(MarginHead):
    """Softmax with a margin that multiplies the angle, brought in step by step.

    The target is |x| (lambda cos(theta) + psi(theta)) / (1 + lambda), with psi of `margins.sphere_margin` and
    lambda = max(anneal_min, anneal_start (1 + anneal_gamma n)^-anneal_power) after n optimiser steps. The
    count n is a buffer that `after_step` raises.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m, an integer.
        scale: null for the length |x| of each embedding, as the paper; a number fixes it.
        anneal_start: lambda of the first step.
        anneal_gamma: how fast lambda falls.
        anneal_power: how it falls.
        anneal_min: where it stops.
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
    """

    formula: ClassVar[str] = "softmax of |x| (l cos_y + psi(theta_y)) / (1 + l) against |x| cos_c"
    use: ClassVar[str] = "to compare with the first angular margin"
    source: ClassVar[str] = "Liu et al., CVPR 2017"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: int = 4,
        scale: float | None = None,
        anneal_start: float = 1000.0,
        anneal_gamma: float = 0.12,
        anneal_power: float = 1.0,
        anneal_min: float = 5.0,
        label_smoothing: float = 0.0,
    ):
        rule = SphereMargin(
            margin, scale, start=anneal_start, gamma=anneal_gamma, power=anneal_power, smallest=anneal_min
        )
        super().__init__(num_classes, embedding_dim, rule, label_smoothing=label_smoothing)


@LOSSES.register("sphereface2")
class SphereFace2(MarginHead):
    """One binary classifier per class instead of a softmax; `margins.BinaryMargin` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m, on the shaped cosine.
        scale: r.
        balance: lambda, the weight of the own class against all others.
        sharpness: t of g(z) = 2 ((z + 1) / 2)^t - 1.
        gradient: 'exact', or 'straight_through' for that of the authors' code, which passes g by.
    """

    formula: ClassVar[str] = (
        "l / r log(1 + e^(-r (g(cos_y) - m) - b)) + (1 - l) / r sum_c log(1 + e^(r (g(cos_c) + m) + b))"
    )
    use: ClassVar[str] = "faces; noisy labels; classes spread over devices without a common sum"
    source: ClassVar[str] = "Wen et al., ICLR 2022"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.4,
        scale: float = 40.0,
        balance: float = 0.7,
        sharpness: float = 3.0,
        gradient: Literal["exact", "straight_through"] = "exact",
    ):
        rule = BinaryMargin(
            num_classes, margin, scale, balance=balance, sharpness=sharpness, gradient=gradient
        )
        super().__init__(num_classes, embedding_dim, rule)


@LOSSES.register("mv_softmax")
class MVSoftmax(MarginHead):
    """A margin on the target, and more weight for the classes that beat it all the same.

    `margins_adaptive.mv_others` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        form: 'am', margin on the cosine, or 'arc', on the angle.
        margin: m; null for the paper's 0.35 of 'am' and 0.5 of 'arc'.
        scale: s.
        t: weight of a class that beats the target, >= 1; 1 is the plain margin loss.
        weighting: 'adaptive' grows with the cosine of the class, 'fixed' does not.
    """

    formula: ClassVar[str] = "softmax of s f(theta_y) against s (t cos_c + t - 1) where cos_c > f, or s cos_c"
    use: ClassVar[str] = "faces; when many classes look alike"
    source: ClassVar[str] = "Wang et al., AAAI 2020"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        form: Literal["am", "arc"] = "am",
        margin: float | None = None,
        scale: float = 32.0,
        t: float = 1.2,
        weighting: Literal["adaptive", "fixed"] = "adaptive",
    ):
        check_options(form=(form in ("am", "arc"), f"must be 'am' or 'arc', got {form!r}"))
        kind: Literal["arc", "cos"] = "arc" if form == "arc" else "cos"
        if margin is None:
            margin = 0.5 if form == "arc" else 0.35
        rule = MisclassifiedMargin(kind, margin, scale, t=t, weighting=weighting)
        super().__init__(num_classes, embedding_dim, rule)


@LOSSES.register("circle_softmax")
class CircleSoftmax(MarginHead):
    """Circle loss with class vectors: cosines far from their goal pull harder.

    `margins_adaptive.circle_target` and `circle_others` have the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m; positives aim at 1 - m, negatives at m.
        scale: gamma; the paper takes 256 for faces, 64 to 128 for re-ID.
    """

    formula: ClassVar[str] = "softmax of g [1 + m - s_y]+ (s_y - 1 + m) against g [s_c + m]+ (s_c - m)"
    use: ClassVar[str] = "re-ID (scale 64) and faces (scale 256)"
    source: ClassVar[str] = "Sun et al., CVPR 2020"

    def __init__(self, num_classes: int, embedding_dim: int, *, margin: float = 0.25, scale: float = 256.0):
        super().__init__(num_classes, embedding_dim, CircleMargin(margin, scale))
