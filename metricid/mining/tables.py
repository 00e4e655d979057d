"""Neighbour tables as the composition of batches reads them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricid.mining.instances import Walk
from metricid.mining.neighbours import Neighbours

__all__ = ["ImageTable", "Sources", "Table"]

Ranked = list[NDArray[np.int32]]


class Table:
    """The identities most like each.

    Args:
        neighbours: of all identities.
        guard: pairs more alike than this are never put together on purpose; None for no guard.
    """

    def __init__(self, neighbours: Neighbours, guard: float | None):
        self.neighbours = neighbours
        self.ids: NDArray[np.int32] = neighbours.ids.numpy()
        self.similarity: NDArray[np.float16] = neighbours.similarity.numpy()
        self.limit = np.inf if guard is None else guard
        self._has_twins = self.similarity[:, 0].astype(np.float32) > self.limit  # the nearest comes first

    def twins(self, identity: int) -> list[int]:
        """Those among its neighbours that are too alike to one identity to be put beside it on purpose."""
        if not self._has_twins[identity]:
            return []
        return self.ids[identity][self.similarity[identity].astype(np.float32) > self.limit].tolist()


class ImageTable:
    """The images of other identities most like each image.

    Args:
        neighbours: of all images, among those of other identities.
        owners: [N] the identity of each image.
        guard: as in `Table`, for pairs of images: their identities are not put together for them.
    """

    def __init__(self, neighbours: Neighbours, owners: NDArray[np.int64], guard: float | None):
        self.neighbours, self.owners = neighbours, owners
        self.ids: NDArray[np.int32] = neighbours.ids.numpy()
        self.similarity: NDArray[np.float16] = neighbours.similarity.numpy()
        self.limit = np.inf if guard is None else guard
        self._has_twins = self.similarity[:, 0].astype(np.float32) > self.limit

    def twins(self, images: NDArray[np.int64]) -> set[int]:
        """The identities with an image that is too alike to one of some images [K]."""
        images = images[self._has_twins[images]]
        if not len(images):
            return set()
        alike = (self.similarity[images].astype(np.float32) > self.limit) & (self.ids[images] >= 0)
        return set(self.owners[self.ids[images][alike]].tolist())


@dataclass(frozen=True)
class Sources:
    """Where the hard ones of a batch come from.

    Attributes:
        walk: which images an identity shows.
        temperature: of the draw among neighbours, in units of cosine; 0 takes the nearest.
        table: identities most like each; None where none are known.
        images: images most like each; None where none are known. They are asked before the table.
    """

    walk: Walk
    temperature: float = 0.0
    table: Table | None = None
    images: ImageTable | None = None


def ranked(
    ids: NDArray[np.int32],
    similarity: NDArray[np.float16],
    free: NDArray[np.bool_],
    temperature: float,
    rng: np.random.Generator,
) -> Ranked:
    """For each row the free ones in the order of a draw without replacement.

    The Gumbel form of a draw with probabilities softmax(similarity / temperature).

    Args:
        ids: [S, k].
        similarity: [S, k].
        free: [S, k], who may be drawn.
        temperature: 0 for falling similarity.
        rng: decides the draw.
    """
    keys: NDArray[np.floating] = similarity.astype(np.float32)
    if temperature > 0:
        keys = keys / temperature + rng.gumbel(size=keys.shape)
    order = np.argsort(np.where(free, -keys, np.inf), axis=1, kind="stable")
    rows = np.take_along_axis(ids, order, axis=1)
    return [row[:count] for row, count in zip(rows, free.sum(axis=1).tolist(), strict=True)]


def by_owner(images: NDArray[np.int32], owners: NDArray[np.int64]) -> Iterator[tuple[int, list[int]]]:
    """Images in an order, as identities in the order of their first image, each with all its images."""
    who = owners[images]
    for identity in dict.fromkeys(who.tolist()):
        yield identity, list(dict.fromkeys(images[who == identity].tolist()))
