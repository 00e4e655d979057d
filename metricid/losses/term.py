"""One loss of an objective, and what a batch offers to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor, nn

from metricid.losses.schedules import Weight

Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Place = Literal["features", "embedding"]


class Taught(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
        embedding: [B, E].
        logits: [B, C] of the student's classes, in the student's order; None where the teacher has none.
    """

    embedding: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Side:
    """What some losses need beside embeddings and labels.

    Attributes:
        model: maps images to (features [B, F], embedding [B, D]); the network in training.
        images: [B, C, H, W], as `model` takes them.
        columns: values of manifest columns, row i for image i: int64 with -1 for a missing value, or float
            with NaN for it; masks are [B, H, W] uint8, 0 or 1, and 255 for a missing one.
        teachers: what each teacher says of the batch.
        map: [B, C, h, w], the feature map of the network.
    """

    model: nn.Module | None = None
    images: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    teachers: Mapping[str, Taught] = field(default_factory=dict)
    map: Tensor | None = None


@dataclass(frozen=True)
class Moment:
    """One forward pass of an objective, as a `SideTerm` sees it.

    Attributes:
        x: [B, F] features or [B, D] embeddings of this rank's batch, as the term asks for.
        labels: [B] int64.
        progress: share of the training that is done, in [0, 1].
        terms: all terms of the objective, by name.
        side: what the batch offers.
        gather: joins the batches of all ranks, differentiable in its first argument; None for one process,
            and for a term that stays with its own.
        places: the features and the embedding, of which `x` is one; a term that is about another one reads
            what that one reads.
    """

    x: Tensor
    labels: Tensor
    progress: float
    terms: Mapping[str, "Term"]
    side: Side
    gather: Gather | None
    places: Mapping[Place, Tensor]


class SideTerm(nn.Module):
    """A loss that needs more than embeddings and labels."""

    pairwise = False

    def at(self, moment: Moment) -> Tensor:
        """The loss, a scalar."""
        raise NotImplementedError


@dataclass(frozen=True)
class Term:
    """One loss of an objective.

    Attributes:
        name: under which it is logged.
        loss: maps (embeddings [B, D], labels [B]) to a scalar; or a `SideTerm`.
        weight: factor in the total, or how it changes with the progress of the training.
        on: 'features' (before the neck) or 'embedding' (after it).
        start: progress of the training in [0, 1] from which it counts.
        end: progress until which it counts; the end of the training is part of a window that ends at 1.
        gather: a loss that compares images with each other does so over the batches of all ranks; False keeps
            it to the batch of its rank, and the gradient is the mean over ranks.
    """

    name: str
    loss: nn.Module
    weight: float | Weight = 1.0
    on: Place = "embedding"
    start: float = 0.0
    end: float = 1.0
    gather: bool = True

    def active(self, progress: float) -> bool:
        """Whether it counts at this progress of the training."""
        return self.start <= progress and (progress < self.end or self.end >= 1)

    def weight_at(self, progress: float) -> float:
        """Its factor at this progress of the training."""
        return self.weight(progress) if callable(self.weight) else self.weight
