"""What every miner has: options, a call on a matrix of distances, and a tally of what it found."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metricid.mining.inbatch import Triplets
from metricid.registry import Registry

Measure = Literal["distance", "sphere", "cosine"]
Mined = Tensor | Triplets

MINERS = Registry("miner")


class Beside(NamedTuple):
    """What a matrix of distances does not tell, and some miners need.

    Attributes:
        dim: D of the embeddings.
        between: rows -> distances [R, N] of some candidates to all candidates; None where the candidates are
            the anchors, whose matrix has them.
    """

    dim: int | None = None
    between: Callable[[slice], Tensor] | None = None


class Tally:
    """How much a miner found, counted on the device until somebody asks."""

    def __init__(self) -> None:
        self._found: Tensor | None = None
        self._batches = 0

    @torch.no_grad()
    def add(self, found: Tensor) -> None:
        """Adds what was found in one batch, a scalar of any dtype."""
        found = found.detach().to(torch.int64)
        self._found = found if self._found is None else self._found + found
        self._batches += 1

    def read(self) -> tuple[int, int] | None:
        """(found, batches) since the last call; None if there was no batch. Waits for the device."""
        if self._found is None:
            return None
        result = int(self._found), self._batches
        self._found, self._batches = None, 0
        return result


class Miner:
    """Says which pairs or triplets of a batch count, and how often.

    Attributes:
        name: in recipes.
        measure: what its matrix holds: distances between the embeddings as the loss compares them, those
            between their directions, or cosines.
        takes_squares: it may be given squared distances by a loss that compares those.
        by_rows: rows do not depend on each other, so that the matrix may come in parts.
        single: it gives one triplet for each anchor, and looks only at the order of the distances.
        in_triplets: it gives `Triplets`, and not weights.
        tally: what a loss found with it.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    measure: ClassVar[Measure] = "distance"
    takes_squares: ClassVar[bool] = True
    by_rows: ClassVar[bool] = True
    single: bool = False
    in_triplets: bool = False

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.tally = Tally()

    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Mined:
        """What counts, chosen outside of the graph.

        Args:
            sheet: [A, N], anchors against candidates, in the miner's `measure`.
            positive: [A, N] bool.
            negative: [A, N] bool, from `pair_masks`.
            beside: for `distance_weighted` and `angular`.

        Returns:
            Either weights [A, N] in the dtype of `sheet`: how often each pair counts, 0 for one that is left
            out. Or `Triplets`.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{self.name}{f'({shown[2:]})' if shown else ''}"


def pair_weights(found: Mined, sheet: Tensor) -> Tensor:
    """Weights [A, N] of pairs: those found, or how many of the triplets each pair is in.

    Args:
        found: by a miner.
        sheet: [A, N] that it was found in; says shape, dtype and device.
    """
    if isinstance(found, Tensor):
        return found
    real = found.valid.to(sheet.dtype)
    weights = torch.zeros_like(sheet)
    return weights.scatter_add_(1, found.positive, real).scatter_add_(1, found.negative, real)


def check(**rules: tuple[bool, str]) -> None:
    """Raises one ValueError with a line for every option whose rule is broken."""
    problems = [f"{name}: {message}" for name, (holds, message) in rules.items() if not holds]
    if problems:
        raise ValueError("; ".join(problems))


def at_least(value: float | None, least: float, what: str = "") -> tuple[bool, str]:
    """Rule for `check`: a finite number from `least` on, or None where `what` says what that means."""
    allowed = (value is None and bool(what)) or (value is not None and least <= value < float("inf"))
    return allowed, f"must be at least {least:g}{what and f', or null for {what}'}, got {value}"
