"""What every sampler asks of its labels and options."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from metricid.errors import InputError

__all__ = ["RangeError", "check_at_least", "check_enough", "checked_labels"]


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
