"""What samplers ask of their labels and options, and records of a training of what they take in."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metricid.errors import InputError

__all__ = ["RangeError", "check_at_least", "check_enough", "check_rows", "checked_labels", "described"]


class RangeError(InputError):
    """An option outside its range. The message begins with its name; a recipe writes its own path before."""

    def __init__(self, option: str, message: str):
        super().__init__(f"{option}: {message}")


def checked_labels(labels: NDArray[np.generic], rank: int, world_size: int) -> NDArray[np.generic]:
    """The labels as an array [N].

    Raises:
        InputError: another shape, no labels, or a rank outside [0, world_size).
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise InputError(
            f"a sampler needs one label per image and at least one image, got shape {labels.shape}"
        )
    if not 0 <= rank < world_size:
        raise InputError(f"rank {rank} is outside [0, world_size={world_size})")
    return labels


def check_enough(known: int, identities: int, world_size: int) -> None:
    """Refuses data with fewer identities than a step needs.

    Args:
        known: identities in the data.
        identities: of the batch of one process.
        world_size: processes.

    Raises:
        InputError: the data has one identity only.
        RangeError: `identities` is too large.
    """
    if known < 2:
        raise InputError("the data has one identity only; telling identities apart needs two or more")
    if known < identities * world_size:
        processes = f" x {world_size} processes" if world_size > 1 else ""
        raise RangeError(
            "identities",
            f"{identities}{processes} needs {identities * world_size} identities, and the data has {known}; "
            f"set it to {max(1, known // world_size)} or less",
        )


def check_at_least(options: Mapping[str, float | None], least: int) -> None:
    """Refuses options below a bound; None is no number and passes.

    Raises:
        RangeError: names the first of them.
    """
    for name, value in options.items():
        if value is not None and not value >= least:
            raise RangeError(name, f"must be at least {least}, not {value}")


def described(value: Any) -> str:
    """What was given where a tensor of another shape is wanted, for a message."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_rows(embeddings: Tensor, labels: Tensor, dim: int) -> None:
    """Refuses what is no batch of embeddings with their labels.

    Raises:
        ValueError: embeddings that are no [B, dim] tensor, or labels that are no [B] tensor of integers.
    """
    if not isinstance(embeddings, Tensor) or embeddings.dim() != 2 or embeddings.shape[1] != dim:
        raise ValueError(f"embeddings must be a tensor [B, {dim}], not {described(embeddings)}")
    if not isinstance(labels, Tensor) or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels must be a tensor [{len(embeddings)}], not {described(labels)}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, not {labels.dtype}")
