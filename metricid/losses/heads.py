"""The dense softmax head: class weights, and a `Margin` over their cosines."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from metricid.losses.checks import check_batch, check_options, compute_dtype, no_autocast
from metricid.losses.margins import Margin


def with_target(logits: Tensor, labels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Rewrites the logit of each row's own class, in place, with an exact gradient.

    Only B entries of [B, C] are touched forward and one buffer of [B, C] is written backward; a one-hot mask
    would take three. A head that holds a part of the classes can call it for the rows whose class it holds.

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


def margin_softmax_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    margin: Margin,
    *,
    sub_centers: int = 1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of `margin` over the cosines between embeddings and class vectors.

    For most margins -log( e^{s target(cos_y)} / (e^{s target(cos_y)} + sum_{c != y} e^{s others(cos_c)}) ),
    plus the margin's penalty on the lengths of the embeddings where it has one. With K sub-centers the
    cosine to a class is the largest over its K rows (Deng et al., ECCV 2020).

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C).
        weight: [C * K, D]; rows c * K to c * K + K - 1 belong to class c; their length does not matter.
        margin: what changes the cosines.
        sub_centers: K.
        label_smoothing: eps / C on every class.

    Returns:
        Scalar, mean over the batch, in nats.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    _check(embeddings, labels, weight, sub_centers)
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        x, w = embeddings.to(dtype), F.normalize(weight.to(dtype), dim=1)
        norms = torch.linalg.vector_norm(x, dim=1)
        scale = margin.scale_of(norms)
        per_row = isinstance(scale, Tensor) and scale.ndim > 0
        factor = scale[:, None] if isinstance(scale, Tensor) and per_row else scale
        if margin.changes_others or per_row:
            cosines = _nearest(F.linear(F.normalize(x, dim=1), w), sub_centers)
            own = cosines.gather(1, labels[:, None]).squeeze(1)
            moved = margin.target(own, labels, norms)
            logits = margin.others(cosines, own, moved).scatter(1, labels[:, None], moved[:, None]) * factor
        else:
            logits = _nearest(F.linear(F.normalize(x, dim=1) * scale, w), sub_centers)
            logits = with_target(logits, labels, lambda z: scale * margin.target(z / scale, labels, norms))
        value = margin.loss(logits, labels, label_smoothing)
        penalty = margin.penalty(norms)
        return value if penalty is None else value + penalty


@torch.no_grad()
def update_margin(
    embeddings: Tensor, labels: Tensor, weight: Tensor, margin: Margin, *, sub_centers: int = 1
) -> None:
    """Moves the state of `margin` by one batch; arguments as of `margin_softmax_loss`.

    Only the vectors of the classes in the batch are read, unless the margin asks for the others.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    _check(embeddings, labels, weight, sub_centers)
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        x = embeddings.to(dtype)
        directions = F.normalize(x, dim=1)

        def log_sum(scale: Tensor) -> Tensor:
            logits = _nearest(F.linear(directions * scale, F.normalize(weight.to(dtype), dim=1)), sub_centers)
            # A finite stand-in for minus infinity: with one class there is no other.
            return logits.scatter_(1, labels[:, None], -torch.finfo(dtype).max).logsumexp(dim=1)

        own = F.normalize(weight.unflatten(0, (-1, sub_centers))[labels].to(dtype), dim=2)
        cosine = (own @ directions[:, :, None]).squeeze(2).max(dim=1).values
        margin.update(cosine, torch.linalg.vector_norm(x, dim=1), log_sum)


def _check(embeddings: Tensor, labels: Tensor, weight: Tensor, sub_centers: int) -> None:
    if len(weight) % sub_centers:
        raise ValueError(f"weight has {len(weight)} rows, not a multiple of sub_centers={sub_centers}")
    check_batch(embeddings, labels, num_classes=len(weight) // sub_centers, dim=weight.shape[1])


def _nearest(products: Tensor, sub_centers: int) -> Tensor:
    return products if sub_centers == 1 else products.unflatten(1, (-1, sub_centers)).max(dim=2).values


class MarginHead(nn.Module):
    """Holds a direction for each class and a `Margin`; the base of the margin losses.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: what changes the cosines.
        sub_centers: K directions per class, the nearest of which counts.
        label_smoothing: eps in [0, 1), spread as eps / C over all classes.
    """

    pairwise: ClassVar[bool] = False
    kind: ClassVar[str] = "margin softmax"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin,
        *,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        check_options(
            num_classes=(num_classes >= 1, f"must be at least 1, got {num_classes}"),
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
            sub_centers=(sub_centers >= 1, f"must be at least 1, got {sub_centers}"),
            label_smoothing=(0 <= label_smoothing < 1, f"must lie in [0, 1), got {label_smoothing}"),
        )
        self.margin = margin
        self.sub_centers = sub_centers
        self.label_smoothing = label_smoothing
        # Only directions matter to the loss, but the shorter a row, the farther a step turns it: short rows,
        # as in ArcFace's own code, let the head follow the first epochs.
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centers, embedding_dim))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return margin_softmax_loss(
            embeddings,
            labels,
            self.weight,
            self.margin,
            sub_centers=self.sub_centers,
            label_smoothing=self.label_smoothing,
        )

    def logits(self, embeddings: Tensor) -> Tensor:
        """[B, C] scaled cosines of embeddings [B, D], without the margin, as for new images."""
        dtype = compute_dtype(embeddings, self.weight)
        with no_autocast(embeddings):
            x = embeddings.to(dtype)
            scale = self.margin.scale_of(torch.linalg.vector_norm(x, dim=1))
            cosines = F.linear(F.normalize(x, dim=1), F.normalize(self.weight.to(dtype), dim=1))
            factor = scale[:, None] if isinstance(scale, Tensor) and scale.ndim > 0 else scale
            return _nearest(cosines, self.sub_centers) * factor

    @property
    def stateful(self) -> bool:
        """Whether `after_step` has something to move."""
        return type(self.margin).update is not Margin.update

    def after_step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Moves the state of the margin; call it once after each optimiser step.

        With several ranks give the joined batch to each, so that all hold the same state.

        Args:
            embeddings: [B, D], any float dtype, as in the forward pass of the step.
            labels: [B] int64 in [0, C).
        """
        if self.stateful:
            update_margin(embeddings, labels, self.weight, self.margin, sub_centers=self.sub_centers)

    def extra_repr(self) -> str:
        rows, dim = self.weight.shape
        return (
            f"num_classes={rows // self.sub_centers}, embedding_dim={dim}, sub_centers={self.sub_centers}, "
            f"label_smoothing={self.label_smoothing}"
        )
