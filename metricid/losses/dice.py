"""Dice losses: overlap of a predicted with a given mask image."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses.checks import check_options, compute_dtype, no_autocast
from metricid.losses.regression import TASKS, expand_mask

DiceForm = Literal["binary", "multiclass", "generalised"]


def dice_loss(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    form: DiceForm = "binary",
    smooth: float = 1.0,
    squared: bool = True,
) -> Tensor:
    """One minus the soft overlap of probabilities p and a mask g.

    'binary': 1 - (2 sum p g + s) / (sum p^2 + sum g^2 + s) (Milletari et al., 3DV 2016, section 3, where s =
    0), p the sigmoid of the logit. 'multiclass': its mean over the classes, p their softmax. 'generalised': 1
    - 2 sum_c w_c sum p g / sum_c w_c sum (p + g), w_c = 1 / (sum g_c)^2 (Sudre et al., DLMIA 2017); a class
    that an image lacks takes the largest weight of those that it has. Sums run over the places of an image.

    Args:
        logits: [B, *] ('binary') or [B, C, *], any float dtype; * is any shape, such as H, W.
        target: [B, *], float in [0, 1] or bool ('binary'), or int64 in [0, C).
        mask: bool, True where the target is known; broadcasts to [B, *], so [B, 1, 1] leaves out whole rows.
            What stands at other places touches neither value nor gradient.
        form: as above.
        smooth: s >= 0, also added to both parts of the quotient of 'generalised'.
        squared: False sums p + g instead of p^2 + g^2 below the line; 'generalised' always does.

    Returns:
        Scalar, mean over the images with at least one place that counts; 0 with a graph if there is none.

    Raises:
        ValueError: shapes, dtypes or classes that do not fit.
    """
    _check_images(logits, target, form)
    with no_autocast(logits):
        z = logits.to(compute_dtype(logits))
        known = torch.ones_like(target, dtype=torch.bool) if mask is None else expand_mask(mask, target.shape)
        if form == "binary":
            z, known = z[:, None], known[:, None]
            p = z.masked_fill(~known, 0).sigmoid()
            g = target[:, None].to(z.dtype).masked_fill(~known, 0)
        else:
            labels = target.masked_fill(~known, 0)
            _check_classes(labels, z.shape[1])
            known = known[:, None]
            p = z.masked_fill(~known, 0).softmax(dim=1)
            g = F.one_hot(labels, z.shape[1]).movedim(-1, 1).to(z.dtype)
        p, g = (t.mul(known).flatten(2) for t in (p, g))  # [B, C, places]
        both = (p * g).sum(dim=2)
        if form == "generalised":
            size = g.sum(dim=2)
            weight = torch.where(size > 0, 1 / size.clamp_min(1).square(), 0)
            weight = torch.where(size > 0, weight, weight.amax(dim=1, keepdim=True))
            above = 2 * (weight * both).sum(dim=1) + smooth
            below = (weight * (p.sum(dim=2) + size)).sum(dim=1) + smooth
        else:
            above = 2 * both + smooth
            below = (p.square() + g.square() if squared else p + g).sum(dim=2) + smooth
        lost = 1 - above / below.clamp_min(torch.finfo(z.dtype).eps)
        lost = lost if lost.ndim == 1 else lost.mean(dim=1)
        counted = known.flatten(1).any(dim=1)
        return lost.masked_fill(~counted, 0).sum() / counted.sum().clamp_min(1)


def _check_images(logits: Tensor, target: Tensor, form: DiceForm) -> None:
    if not logits.is_floating_point() or logits.ndim < 2:
        raise ValueError(f"logits must be a float tensor [B, ...], got {logits.dtype} {list(logits.shape)}")
    expected = logits.shape if form == "binary" else logits.shape[:1] + logits.shape[2:]
    if target.shape != expected:
        raise ValueError(
            f"{form} dice of logits {list(logits.shape)} needs a target {list(expected)}, "
            f"got {list(target.shape)}"
        )
    if form == "binary" and not (target.is_floating_point() or target.dtype == torch.bool):
        raise ValueError(f"binary dice needs a float or bool target, got {target.dtype}")
    if form != "binary" and target.dtype != torch.int64:
        raise ValueError(f"{form} dice needs an int64 target, got {target.dtype}")
    if target.device != logits.device:
        raise ValueError(f"logits are on {logits.device}, target on {target.device}: move one of them")


def _check_classes(labels: Tensor, classes: int) -> None:
    """On the host the class is named; a device asserts by itself, so that the host need not wait for it."""
    outside = (labels < 0) | (labels >= classes)
    if labels.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(~outside.any(), f"a class of the target is outside [0, {classes})")
    elif outside.any():
        raise ValueError(f"class {int(labels[outside][0])} of the target is outside [0, {classes})")


@TASKS.register("dice")
class DiceLoss(nn.Module):
    """Overlap of a predicted mask image with the given one; `dice_loss` has the formulas.

    Args:
        form: 'binary', 'multiclass' or 'generalised' (for classes of very unlike size).
        smooth: added above and below the line, so that an empty mask has a gradient; the papers take 0.
        squared: squares below the line, as the paper; False sums the plain values.
    """

    kind: ClassVar[str] = "regression"
    formula: ClassVar[str] = "1 - (2 sum p g + s) / (sum p^2 + sum g^2 + s)"
    use: ClassVar[str] = "a mask image whose foreground is small"
    source: ClassVar[str] = "Milletari et al., 3DV 2016; generalised: Sudre et al., DLMIA 2017"

    def __init__(self, *, form: DiceForm = "binary", smooth: float = 1.0, squared: bool = True):
        super().__init__()
        forms = ("binary", "multiclass", "generalised")
        check_options(
            form=(form in forms, f"must be 'binary', 'multiclass' or 'generalised', got {form!r}"),
            smooth=(0 <= smooth < math.inf, f"must be at least 0, got {smooth}"),
        )
        self.form: DiceForm = form
        self.smooth = smooth
        self.squared = squared

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss of logits [B, *] or [B, C, *] with targets [B, *] and a mask that broadcasts to them."""
        return dice_loss(logits, target, mask, form=self.form, smooth=self.smooth, squared=self.squared)

    def extra_repr(self) -> str:
        return f"form={self.form}, smooth={self.smooth}, squared={self.squared}"
