"""What the losses over a linear classifier share: its logits, its targets, its module."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses.checks import check_batch, check_options, compute_dtype, no_autocast
from metricid.losses.exact import ExactBuffers, exact_tensor


def linear_logits(embeddings: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b in float32 (float64 where an argument is); call it with autocast off.

    Args:
        embeddings: [B, D].
        weight: [C, D].
        bias: [C] or None.
    """
    dtype = compute_dtype(embeddings, weight)
    return F.linear(embeddings.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def check_targets(embeddings: Tensor, targets: Tensor, weight: Tensor, *, distribution: bool) -> None:
    """Checks a batch whose targets are classes [B] or, as floats, a share of each class [B, C].

    Args:
        embeddings: [B, D].
        targets: [B] int64 in [0, C), or [B, C] float in [0, 1].
        weight: [C, D].
        distribution: the rows of float targets must sum to 1.

    Raises:
        ValueError: a shape, dtype or value that cannot be used.
    """
    classes, dim = weight.shape
    if targets.ndim != 2 or not targets.is_floating_point():
        check_batch(embeddings, targets, num_classes=classes, dim=dim)
        return
    check_batch(embeddings, targets.argmax(dim=1) if targets.numel() else targets[:, 0].long(), dim=dim)
    if targets.shape[1] != classes:
        raise ValueError(f"targets have {targets.shape[1]} columns, this loss has {classes} classes")
    outside = ((targets < 0) | (targets > 1)).any() | targets.isnan().any()
    rule = "targets must lie in [0, 1]"
    if distribution:
        # Half-precision targets sum to 1 only so far as their rounding lets them.
        outside = outside | ((targets.float().sum(dim=1) - 1).abs() > 1e-2).any()
        rule += " and each row must sum to 1"
    if targets.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(~outside, rule)
    elif outside:
        raise ValueError(rule)


def check_per_class(name: str, values: Tensor | None, num_classes: int) -> None:
    """Raises a `ValueError` unless there is one value for each class."""
    if values is not None and values.shape != (num_classes,):
        raise ValueError(f"{name} has shape {list(values.shape)}, this loss has {num_classes} classes")


def as_multi_hot(targets: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Targets [B] or [B, C] as [B, C] of `dtype`."""
    if targets.is_floating_point():
        return targets.to(dtype)
    empty = torch.zeros(len(targets), num_classes, dtype=dtype, device=targets.device)
    return empty.scatter_(1, targets[:, None], 1.0)


def count_rules(class_counts: Sequence[int]) -> dict[str, tuple[bool, str]]:
    """Rules for `check_options`: counts of the training images of each class."""
    fits = len(class_counts) > 0 and all(count >= 1 for count in class_counts)
    return {"class_counts": (fits, "needs the number of training images of each class, all at least 1")}


def optional_tensor(values: Sequence[float] | None) -> Tensor | None:
    """A float64 tensor of the values, or None."""
    return None if values is None else exact_tensor([float(value) for value in values])


class LinearHead(ExactBuffers):
    """Holds a linear classifier over the training classes; the base of the losses on its logits.

    Args:
        num_classes: C.
        embedding_dim: D.
        bias: add a learned bias per class.
    """

    pairwise: ClassVar[bool] = False
    kind: ClassVar[str] = "classification"
    weight: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, *, bias: bool):
        super().__init__()
        check_options(
            num_classes=(num_classes >= 1, f"must be at least 1, got {num_classes}"),
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
        )
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None
        nn.init.uniform_(self.weight, -1 / math.sqrt(embedding_dim), 1 / math.sqrt(embedding_dim))

    def logits(self, embeddings: Tensor) -> Tensor:
        """[B, C] of embeddings [B, D], in float32 (float64 where an argument is)."""
        with no_autocast(embeddings):
            return linear_logits(embeddings, self.weight, self.bias)

    def extra_repr(self) -> str:
        classes, dim = self.weight.shape
        own = {k: v for k, v in vars(self).items() if isinstance(v, (int, float, str)) and k[0] != "_"}
        options = [f"{key}={value}" for key, value in own.items() if key != "training"]
        return ", ".join([f"num_classes={classes}", f"embedding_dim={dim}", *options])
