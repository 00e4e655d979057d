"""Margin losses whose margin or scale follows the data: its difficulty, its quality, chance."""

from typing import ClassVar, Literal

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_options
from metricid.losses.heads import MarginHead
from metricid.losses.margins_adaptive import (
    AdaptiveScale,
    CurricularMargin,
    ElasticMargin,
    MagnitudeMargin,
    QualityMargin,
)


@LOSSES.register("curricularface")
class CurricularFace(MarginHead):
    """ArcFace whose hard negatives weigh more as the training goes on.

    `margins_adaptive.curricular_others` has the formula. The running mean t is a buffer that `after_step`
    moves, after the weights, as the paper's algorithm 1 does.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m in radians.
        scale: s.
        alpha: share of the newest batch in t.
    """

    formula: ClassVar[str] = (
        "softmax of s cos(theta_y + m) against s cos_c (t + cos_c) where harder, or s cos_c"
    )
    use: ClassVar[str] = "faces; long trainings on large data"
    source: ClassVar[str] = "Huang et al., CVPR 2020"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.5,
        scale: float = 64.0,
        alpha: float = 0.01,
    ):
        super().__init__(num_classes, embedding_dim, CurricularMargin(margin, scale, alpha=alpha))


@LOSSES.register("adaface")
class AdaFace(MarginHead):
    """A margin that stresses hard samples where the image is good, and easy ones where it is poor.

    `margins_adaptive.adaface_margin` has the formula. The length of the embedding stands for the quality of
    the image: do not normalise embeddings before. Mean and spread of the lengths are buffers that
    `after_step` moves; the authors' code moves them by the batch itself before it uses them, which for alpha
    = 0.01 is a hundredth of a batch earlier.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: m.
        scale: s.
        h: how many spreads from the mean length count fully.
        alpha: share of the newest batch in mean and spread.
    """

    formula: ClassVar[str] = "softmax of s (cos(theta_y - m q) - m q - m) against s cos(theta_c), q = quality"
    use: ClassVar[str] = "faces of mixed quality; surveillance"
    source: ClassVar[str] = "Kim et al., CVPR 2022"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.4,
        scale: float = 64.0,
        h: float = 0.333,
        alpha: float = 0.01,
    ):
        super().__init__(num_classes, embedding_dim, QualityMargin(margin, scale, h=h, alpha=alpha))


@LOSSES.register("magface")
class MagFace(MarginHead):
    """ArcFace whose margin grows with the length of the embedding, which becomes a measure of quality.

    `margins_adaptive.MagnitudeMargin` has the formula. Do not normalise embeddings before.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin_low: m at norm_low, in radians.
        margin_high: m at norm_high.
        norm_low: shortest length that counts.
        norm_high: longest length that counts.
        scale: s.
        regulariser: lambda_g, the weight of 1 / a + a / norm_high^2.
    """

    formula: ClassVar[str] = (
        "softmax of s cos(theta_y + m(a)) against s cos_c, + l (1 / a + a / u^2), a = |x|"
    )
    use: ClassVar[str] = "faces; when the length shall tell the quality of the image"
    source: ClassVar[str] = "Meng et al., CVPR 2021"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_low: float = 0.45,
        margin_high: float = 0.8,
        norm_low: float = 10.0,
        norm_high: float = 110.0,
        scale: float = 64.0,
        regulariser: float = 35.0,
    ):
        rule = MagnitudeMargin(margin_low, margin_high, norm_low, norm_high, scale, regulariser=regulariser)
        super().__init__(num_classes, embedding_dim, rule)


@LOSSES.register("elasticface")
class ElasticFace(MarginHead):
    """A margin drawn anew for each sample from a normal distribution; in eval mode its mean.

    Args:
        num_classes: C.
        embedding_dim: D.
        form: 'arc', margin on the angle, or 'cos', on the cosine.
        plus: give the larger draws of a batch to the samples farther from their class (ElasticFace+).
        margin: mean; null for the paper's 0.5 of 'arc' and 0.35 of 'cos'.
        std: spread; null for the paper's 0.0125, with `plus` 0.0175 ('arc') and 0.025 ('cos').
        scale: s.
    """

    formula: ClassVar[str] = "softmax of s cos(theta_y + m) or s (cos_y - m) against s cos_c, m ~ N(m, std)"
    use: ClassVar[str] = "faces; classes of uneven spread"
    source: ClassVar[str] = "Boutros et al., CVPRW 2022"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        form: Literal["arc", "cos"] = "arc",
        plus: bool = False,
        margin: float | None = None,
        std: float | None = None,
        scale: float = 64.0,
    ):
        check_options(form=(form in ("arc", "cos"), f"must be 'arc' or 'cos', got {form!r}"))
        if margin is None:
            margin = 0.5 if form == "arc" else 0.35
        if std is None:
            std = 0.0125 if not plus else 0.0175 if form == "arc" else 0.025
        super().__init__(num_classes, embedding_dim, ElasticMargin(form, margin, scale, std=std, plus=plus))


@LOSSES.register("adacos")
class AdaCos(MarginHead):
    """Softmax over cosines with a scale that needs no tuning; `margins_adaptive.AdaptiveScale` has it.

    Args:
        num_classes: C.
        embedding_dim: D.
        mode: 'dynamic' lets `after_step` set the scale from each batch, at the price of one more product with
            all class vectors; 'fixed' leaves it at sqrt(2) log(C - 1).
    """

    formula: ClassVar[str] = (
        "softmax of s cos_c, s = log(mean sum_c e^(s cos_c)) / cos(min(pi / 4, median theta_y))"
    )
    use: ClassVar[str] = "any number of classes, without a scale or margin to tune"
    source: ClassVar[str] = "Zhang et al., CVPR 2019"

    def __init__(
        self, num_classes: int, embedding_dim: int, *, mode: Literal["dynamic", "fixed"] = "dynamic"
    ):
        super().__init__(num_classes, embedding_dim, AdaptiveScale(num_classes, mode=mode))
