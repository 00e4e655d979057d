"""Which images of an identity a batch shows."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Images", "Walk", "part_of"]

FAR_PART = 4  # the farthest quarter of an identity's images counts as far


def part_of(images: int, share: float) -> float:
    """A share of a number of images; whole where only the rounding of numbers keeps it from that.

    Example:
        >>> part_of(30, 0.1), part_of(4, 0.05)
        (3.0, 0.2)
    """
    part = images * share
    return float(round(part)) if math.isclose(part, round(part)) else part


class Images:
    """Images grouped by identity; identity i is the i-th smallest label.

    Args:
        labels: [N].

    Attributes:
        names: [C] the labels.
        owners: [N] the identity of each image.
        counts: [C] images of each identity.
    """

    def __init__(self, labels: NDArray[np.generic]):
        self.names, self.owners, self.counts = np.unique(labels, return_inverse=True, return_counts=True)
        self._rows = np.argsort(self.owners, kind="stable")
        self._place = self.owners[self._rows]
        self._starts = np.cumsum(self.counts) - self.counts

    def far_ranks(self, distances: NDArray[np.floating]) -> NDArray[np.int32]:
        """[N] int32: the place of each image among its identity's, the farthest first.

        Args:
            distances: [N] of each image to the center of its identity.
        """
        order = np.lexsort((-distances[self._rows], self._place))
        ranks = np.empty(len(self._rows), np.int32)
        ranks[self._rows[order]] = np.arange(len(order)) - np.repeat(self._starts, self.counts)
        return ranks

    def walk(
        self, rng: np.random.Generator, images: int, far: float, ranks: NDArray[np.int32] | None
    ) -> "Walk":
        """A new order of each identity's images.

        Args:
            rng: decides it.
            images: K, of an identity in a batch.
            far: how many of these come from its farthest quarter, on average.
            ranks: [N] of `far_ranks`; None where nothing is known yet, and then none are preferred.
        """
        first = np.zeros(len(self.counts), np.int64)
        keys = rng.random(len(self._rows))
        if ranks is not None and far:
            # Neither part may be smaller than a batch takes of it at most.
            least, most = math.ceil(far), self.counts - images + math.floor(far)
            quarter = np.clip(-(-self.counts // FAR_PART), least, np.maximum(most, least))
            first = np.where(self.counts > images, quarter, 0)
            keys = keys / 2 + 0.5 * (ranks[self._rows] >= np.repeat(first, self.counts))
        order = self._rows[np.argsort(self._place + keys)]
        ahead = rng.random(len(self.counts))
        return Walk(order, self._starts, self.counts, first, images, far, ahead)


class Walk:
    """An endless walk through each identity's images: through the far ones, and through the others.

    An identity with more images than a batch shows has two such walks; any other has one, and repeats its
    images as evenly as possible.

    The far ones that an identity shows in its first t batches are floor(t far + ahead), `ahead` uniform in
    [0, 1): on average far in each batch, which need not be whole, and as evenly as it can be.
    """

    def __init__(
        self,
        order: NDArray[np.int64],
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        first: NDArray[np.int64],
        images: int,
        far: float,
        ahead: NDArray[np.float64],
    ):
        self._order, self._starts, self._counts, self._first = order, starts, counts, first
        self._images, self._far, self._ahead = images, far, ahead

    def draw(self, identities: NDArray[np.int64], times: NDArray[np.int32]) -> NDArray[np.int64]:
        """[I, K] image rows for the identities [I], each coming for the given time [I] (from 0)."""
        steps = np.arange(self._images)
        first = self._first[identities, None]
        rest = self._counts[identities, None] - first
        again = times[:, None].astype(np.int64)
        before, after = (self._far_until(identities, t) for t in (again, again + 1))
        far = after - before
        among_far = (before + steps) % np.maximum(first, 1)
        among_rest = first + (again * self._images - before + steps - far) % np.maximum(rest, 1)
        return self._order[self._starts[identities, None] + np.where(steps < far, among_far, among_rest)]

    def _far_until(self, identities: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """[I, 1] how many far ones were shown before each came for the given time [I, 1]."""
        number = np.floor(times * self._far + self._ahead[identities, None]).astype(np.int64)
        return np.where(self._first[identities, None] > 0, number, 0)

    def show(
        self,
        identities: NDArray[np.int64],
        times: NDArray[np.int32],
        wanted: Mapping[int, Sequence[int]],
    ) -> NDArray[np.int64]:
        """As `draw`, with certain images of some identities in it.

        Args:
            identities: [I].
            times: [I].
            wanted: by identity the images of it that are to be shown, the most wanted first. They take the
                places of the last ones of the walk, as many as there are.
        """
        blocks = self.draw(identities, times)
        for block, identity in zip(blocks, identities.tolist(), strict=True):
            images = wanted.get(identity, ())[: len(block)]
            inside = set(block.tolist())
            missing = [image for image in images if image not in inside]
            free = [place for place in reversed(range(len(block))) if block[place] not in images]
            block[free[: len(missing)]] = missing
        return blocks
