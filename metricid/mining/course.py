"""The batches of one epoch as far as they were drawn, and the way back to any of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metricid.mining.compose import Epoch

__all__ = ["Course"]


@dataclass(frozen=True)
class _Step:
    identities: NDArray[np.int32]
    hard: int
    turn: int
    place: int
    waiting: list[int]


@dataclass
class Course:
    """What was drawn in an epoch, from the batch `first` on.

    A loader draws ahead of the training, so the state to save lies behind the state reached.

    Attributes:
        start: the composition before the batch `first`; it stays as it is.
        first: number of a batch within the epoch.
        steps: what was drawn since.
    """

    start: Epoch
    first: int = 0
    steps: list[_Step] = field(default_factory=list)

    def add(self, after: Epoch, identities: NDArray[np.int64], hard: int) -> None:
        """Notes a batch, and where it left the composition."""
        step = _Step(identities.astype(np.int32), hard, after.turn, after.place, list(after.waiting))
        self.steps.append(step)

    def reaches(self, epoch: int, batch: int) -> bool:
        """Whether `before` can tell."""
        return epoch == self.start.epoch and self.first <= batch <= self.first + len(self.steps)

    def before(self, batch: int) -> Epoch:
        """The composition as it was before a batch."""
        past = self.steps[: batch - self.first]
        start = self.start
        counts = start.counts.copy()
        if not past:
            turn, place, waiting = start.turn, start.place, list(start.waiting)
        else:
            turn, place, waiting = past[-1].turn, past[-1].place, list(past[-1].waiting)
            drawn = np.concatenate([step.identities for step in past])
            counts += np.bincount(drawn, minlength=start.known).astype(np.int32)
        return Epoch(start.seed, start.epoch, start.known, start.most, counts, turn, place, waiting)

    def hard_share(self, batch: int) -> float | None:
        """Share of neighbours in a batch that was drawn; None if it is not of this course."""
        place = batch - self.first
        if not 0 <= place < len(self.steps):
            return None
        return self.steps[place].hard / len(self.steps[place].identities)

    def state(self, batch: int) -> dict[str, Any]:
        """What a checkpoint holds of the composition before a batch."""
        epoch = self.before(batch)
        return {
            "epoch": epoch.epoch,
            "batch": batch,
            "counts": torch.from_numpy(epoch.counts),
            "turn": epoch.turn,
            "place": epoch.place,
            "waiting": epoch.waiting,
        }

    @classmethod
    def load(cls, state: Mapping[str, Any], seed: int, most: int) -> "Course":
        """A course that begins where `state` was taken."""
        counts = state["counts"].numpy().copy()
        start = Epoch(
            seed,
            state["epoch"],
            len(counts),
            most,
            counts,
            state["turn"],
            state["place"],
            list(state["waiting"]),
        )
        return cls(start, state["batch"])
