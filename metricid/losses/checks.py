"""The door of every loss: shapes, dtypes, labels and options are checked here, once."""

import torch
from torch import Tensor


class OptionError(ValueError):
    """Options of a loss that are out of range; `problems` holds one `option: message` line for each."""

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


def check_options(**rules: tuple[bool, str]) -> None:
    """Raises one `OptionError` that names every option whose rule is broken.

    Example:
        >>> check_options(scale=(64.0 > 0, "must be positive, got 64.0"))
        >>> check_options(scale=(-1.0 > 0, "must be positive, got -1.0"))
        Traceback (most recent call last):
        ...
        metricid.losses.checks.OptionError: scale: must be positive, got -1.0
    """
    problems = [f"{name}: {message}" for name, (holds, message) in rules.items() if not holds]
    if problems:
        raise OptionError(problems)


def check_batch(
    embeddings: Tensor, labels: Tensor, *, num_classes: int | None = None, dim: int | None = None
) -> None:
    """Checks one batch before any arithmetic.

    On the CPU a label outside the range is named in the error. On a GPU reading the values back would make
    the host wait for the device at every step, so there the range is asserted by the device itself: the
    program stops at its next synchronisation with the message below instead of a bare indexing failure.

    Args:
        embeddings: [B, D], any floating dtype, B >= 1.
        labels: [B] int64 on the same device.
        num_classes: labels must lie in [0, num_classes); None accepts any integer.
        dim: the D that is expected; None accepts any.

    Raises:
        ValueError: a shape, dtype, device or label that cannot be used.
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be a float tensor [B, D], got {_describe(embeddings)}")
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be an int64 tensor [B], got {_describe(labels)}")
    if len(embeddings) == 0:
        raise ValueError("the batch is empty: a loss needs at least one embedding")
    if len(labels) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings came with {len(labels)} labels")
    if labels.device != embeddings.device:
        raise ValueError(
            f"embeddings are on {embeddings.device}, labels on {labels.device}: move one of them"
        )
    if dim is not None and embeddings.shape[1] != dim:
        raise ValueError(f"embeddings have {embeddings.shape[1]} dimensions, this loss expects {dim}")
    if num_classes is not None:
        _check_range(labels, num_classes)


def _check_range(labels: Tensor, num_classes: int) -> None:
    outside = (labels < 0) | (labels >= num_classes)
    if labels.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(~outside.any(), f"a label is outside [0, {num_classes})")
    elif outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"label {int(labels[row])} (row {row} of the batch) is outside [0, {num_classes})")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: float32, or float64 when one of the tensors is."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A region on the tensor's device in which autocast lowers no precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
