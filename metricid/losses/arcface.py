"""ArcFace and its kin: softmax over cosines with a margin on the angle."""

from typing import ClassVar, Literal

from torch import Tensor

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.heads import MarginHead
from metricid.losses.linear import count_rules
from metricid.losses.margins import ArcMargin, CombinedMargin, within
from metricid.losses.margins_adaptive import ClassMargin


@LOSSES.register("arcface")
class ArcFace(MarginHead):
    """Additive angular margin head; `functional.arcface_loss` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m in radians, in [0, pi).
        scale: s.
        easy_margin: apply the margin to targets with cos(theta) > 0 only.
        sub_centers: K directions per class, the nearest of which counts (for noisy labels; the paper uses 3).
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
        gradient: 'exact', or 'straight_through' for that of the authors' own code, which passes the margin by
            (slope s instead of s sin(theta + m) / sin(theta)).
    """

    formula: ClassVar[str] = "softmax of s cos(theta_y + m) against s cos(theta_c)"
    use: ClassVar[str] = "faces; many identities; embeddings compared by cosine (sub_centers: noisy labels)"
    source: ClassVar[str] = "Deng et al., CVPR 2019 (sub-centers: ECCV 2020)"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.5,
        scale: float = 64.0,
        easy_margin: bool = False,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
        gradient: Literal["exact", "straight_through"] = "exact",
    ):
        rule = ArcMargin(margin, scale, easy_margin=easy_margin, gradient=gradient)
        super().__init__(
            num_classes, embedding_dim, rule, sub_centers=sub_centers, label_smoothing=label_smoothing
        )


@LOSSES.register("combined_margin")
class CombinedMarginSoftmax(MarginHead):
    """The margins of SphereFace, ArcFace and CosFace in one; `margins.combined_margin` has the formula.

    (m, 0, 0) is SphereFace on normalised embeddings, (1, m, 0) ArcFace and (1, 0, m) CosFace.

    Args:
        num_classes: C.
        embedding_dim: D.
        m1: factor on the angle, >= 1.
        m2: added to the angle, in radians, in [0, pi).
        m3: subtracted from the cosine.
        scale: s.
        sub_centers: K directions per class, the nearest of which counts.
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
        gradient: 'exact', or 'straight_through' for that of the authors' own code. That code also ignores m2
            where m3 > 0; this does not.
    """

    formula: ClassVar[str] = "softmax of s (cos(m1 theta_y + m2) - m3) against s cos(theta_c)"
    use: ClassVar[str] = "faces; to set the three margins together"
    source: ClassVar[str] = "Deng et al., CVPR 2019"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        m1: float = 1.0,
        m2: float = 0.3,
        m3: float = 0.2,
        scale: float = 64.0,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
        gradient: Literal["exact", "straight_through"] = "exact",
    ):
        rule = CombinedMargin(m1, m2, m3, scale, gradient=gradient)
        super().__init__(
            num_classes, embedding_dim, rule, sub_centers=sub_centers, label_smoothing=label_smoothing
        )


@LOSSES.register("dynamic_arcface")
class DynamicArcFace(MarginHead):
    """ArcFace with a larger margin for smaller classes: m_c = a n_c^-lambda + b.

    Args:
        class_counts: n_c, the number of training images of each of the C classes.
        embedding_dim: D.
        a: with b, the paper's range from 0.05 for the largest classes to 0.5 for one image.
        b: margin that even the largest classes keep.
        power: lambda.
        scale: s.
        sub_centers: K directions per class, the nearest of which counts; the paper uses 3.
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
    """

    formula: ClassVar[str] = "softmax of s cos(theta_y + a n_y^-lambda + b) against s cos(theta_c)"
    use: ClassVar[str] = "classes of very different sizes; landmarks, products"
    source: ClassVar[str] = "Ha et al., arXiv 2010.05350"
    margins: Tensor

    def __init__(
        self,
        class_counts: list[int],
        embedding_dim: int,
        *,
        a: float = 0.45,
        b: float = 0.05,
        power: float = 0.25,
        scale: float = 64.0,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
    ):
        check_options(
            a=within(a, 0, 2),
            b=within(b, 0, 1),
            power=within(power, 0, float("inf")),
            **count_rules(class_counts),
        )
        margins = [a * count**-power + b for count in class_counts]
        super().__init__(
            len(class_counts),
            embedding_dim,
            ClassMargin("arc", margins, scale),
            sub_centers=sub_centers,
            label_smoothing=label_smoothing,
        )
