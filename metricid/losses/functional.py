"""Losses as pure functions of tensors; those that compare samples with each other live in `pairs`.

Arithmetic is float32 (float64 stays float64) whatever the dtype of the input, also inside an autocast region,
and no argument is changed.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from metricid.losses.checks import check_batch, compute_dtype, no_autocast
from metricid.losses.pairs import contrastive_loss, pairwise_distances, supcon_loss, triplet_loss

__all__ = [
    "arc_margin",
    "arcface_loss",
    "center_loss",
    "center_steps",
    "contrastive_loss",
    "pairwise_distances",
    "softmax_loss",
    "supcon_loss",
    "triplet_loss",
    "with_target",
]


def softmax_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the softmax over a linear classifier.

    With z = W x + b: -sum_c q_c log softmax(z)_c, q_c = (1 - eps) [c = y] + eps / C (Szegedy et al., CVPR
    2016, section 7), as PyTorch counts eps; some toolkits spread it over the C - 1 other classes instead.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C).
        weight: [C, D].
        bias: [C] or None.
        label_smoothing: eps in [0, 1).

    Returns:
        Scalar, mean over the batch, in nats.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(weight), dim=weight.shape[1])
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        logits = F.linear(embeddings.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def arc_margin(cosine: Tensor, margin: float, *, easy_margin: bool = False) -> Tensor:
    """The target cosine after an additive angular margin: cos(theta + m) (Deng et al., CVPR 2019, eq. 3).

    Beyond theta + m = pi, where the cosine would rise again, cos(theta) - m sin(m) takes over. With
    `easy_margin` the margin applies where cos(theta) > 0 only, and other cosines stay as they are. The
    gradient is the exact sin(theta + m) / sin(theta), of which the limit at theta = 0 is infinite; at cos = 1
    exactly it is cos(m), which is the subgradient that does not move an embedding already on its class
    center.

    Args:
        cosine: any shape, float32 or float64; rounding beyond +-1 is harmless.
        margin: m in radians, in [0, pi).

    Returns:
        A tensor of the same shape and dtype.

    Example:
        >>> arc_margin(torch.tensor([0.6]), 0.5)
        tensor([0.1430])
    """
    smallest = torch.finfo(cosine.dtype).eps ** 2  # below 1 - c^2 of every representable c other than +-1
    sine = ((1 - cosine) * (1 + cosine)).clamp_min(smallest).sqrt()
    moved = cosine * math.cos(margin) - sine * math.sin(margin)
    if easy_margin:
        return torch.where(cosine > 0, moved, cosine)
    return torch.where(cosine > -math.cos(margin), moved, cosine - margin * math.sin(margin))


def with_target(logits: Tensor, labels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Rewrites the logit of each row's own class, in place, with an exact gradient.

    Only B entries of [B, C] are touched forward and one buffer of [B, C] is written backward; a one-hot mask
    would take three. This is the whole interface between a margin and a head, so a head that holds a part of
    the classes can call it for the rows whose class it holds.

    Args:
        logits: [B, C], the fresh result of an operation whose backward does not read it (a matrix product).
        labels: [B] int64 in [0, C).
        change: maps the target logits [B] to new ones [B] by differentiable operations.

    Returns:
        `logits`, changed.
    """
    others, target = _TakeTarget.apply(logits, labels)
    return _PutTarget.apply(others, change(target), labels)


class _TakeTarget(torch.autograd.Function):
    """Splits the target entries off; the gradient of the two parts is joined in one buffer."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(labels)
        ctx.mark_dirty(logits)
        return logits, logits.gather(1, labels[:, None]).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (labels,) = ctx.saved_tensors
        others, target = gradients
        return others.scatter(1, labels[:, None], target[:, None]), None


class _PutTarget(torch.autograd.Function):
    """Writes target entries; what it leaves in their place of the gradient, `_TakeTarget` overwrites."""

    @staticmethod
    def forward(ctx: Any, others: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(labels)
        ctx.mark_dirty(others)
        return others.scatter_(1, labels[:, None], target[:, None])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (labels,) = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        return gradient, gradient.gather(1, labels[:, None]).squeeze(1), None


def arcface_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    margin: float = 0.5,
    scale: float = 64.0,
    easy_margin: bool = False,
    sub_centers: int = 1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy over scaled cosines, the target's with an angular margin (Deng et al., CVPR 2019, eq. 3).

    With theta_c the angle between x and W_c: -log( e^{s cos(theta_y + m)} / (e^{s cos(theta_y + m)} +
    sum_{c != y} e^{s cos theta_c}) ). With K sub-centers cos(theta_c) is the largest over the class's K rows
    (Deng et al., ECCV 2020, eq. 2). `arc_margin` says what happens beyond pi and at cos = 1.

    Args:
        embeddings: [B, D], any float dtype; their length does not matter.
        labels: [B] int64 in [0, C).
        weight: [C * K, D]; rows c * K to c * K + K - 1 belong to class c; their length does not matter.
        margin: m in radians.
        scale: s.
        easy_margin: apply the margin where cos(theta) > 0 only.
        sub_centers: K.
        label_smoothing: eps / C on every class.

    Returns:
        Scalar, mean over the batch, in nats.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    if len(weight) % sub_centers:
        raise ValueError(f"weight has {len(weight)} rows, not a multiple of sub_centers={sub_centers}")
    check_batch(embeddings, labels, num_classes=len(weight) // sub_centers, dim=weight.shape[1])
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        directions = F.normalize(embeddings.to(dtype), dim=1)
        logits = F.linear(directions * scale, F.normalize(weight.to(dtype), dim=1))
        if sub_centers > 1:
            logits = logits.unflatten(1, (-1, sub_centers)).max(dim=2).values
        logits = with_target(
            logits, labels, lambda z: scale * arc_margin(z / scale, margin, easy_margin=easy_margin)
        )
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def center_loss(embeddings: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Half the squared distance of each embedding to the center of its class (Wen et al., ECCV 2016, eq. 2).

    Args:
        embeddings: [B, D], any float dtype; not normalised.
        labels: [B] int64 in [0, C).
        centers: [C, D].

    Returns:
        Scalar. The paper sums over the batch; this is the mean, so that a weight does not depend on B.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(centers), dim=centers.shape[1])
    dtype = compute_dtype(embeddings, centers)
    with no_autocast(embeddings):
        return 0.5 * (embeddings.to(dtype) - centers[labels].to(dtype)).square().sum(dim=1).mean()


def center_steps(embeddings: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """What each sample adds to minus delta of its own class's center (Wen et al., ECCV 2016, eq. 4).

    delta_j = sum_{y_i = j} (c_j - x_i) / (1 + n_j), with n_j the number of samples of class j in the batch.
    The terms come one by one, so that nothing of the size of `centers` is made:
    `centers.index_add_(0, labels, center_steps(...), alpha=alpha)` is c_j - alpha delta_j for all j.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C).
        centers: [C, D].

    Returns:
        [B, D]: (x_i - c_{y_i}) / (1 + n_{y_i}), in the dtype of `centers`.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(centers), dim=centers.shape[1])
    counts = torch.zeros(len(centers), dtype=centers.dtype, device=centers.device)
    counts.index_add_(0, labels, counts.new_ones(len(labels)))
    return (embeddings.to(centers.dtype) - centers[labels]) / (1 + counts[labels])[:, None]
