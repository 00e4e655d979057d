"""Which images make up which batch: pure functions of (seed, epoch, rank).

A step's joined batch, the batches of all ranks one after the other, is the batch that a single process with
that many more identities (or images) draws from the same seed.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from metricid.errors import InputError
from metricid.mining.checks import RangeError, check_at_least, check_enough, checked_labels
from metricid.mining.sampler import HardIdentitySampler
from metricid.registry import Registry

SAMPLERS = Registry("sampler")
SAMPLERS.register("hard_identity")(HardIdentitySampler)


class Sampler(Protocol):
    """What the loader and the trainer rely on."""

    batch_size: int
    rank: int
    world_size: int

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """This rank's batches of dataset indices ([batch_size] int64), without the first `start`."""
        ...

    def num_batches(self, epoch: int) -> int:
        """Batches in an epoch, the same on all ranks."""
        ...


def build_sampler(options: Mapping[str, Any], **given: Any) -> Any:
    """The sampler that the `data.sampler` of a recipe names.

    Args:
        options: its name and options.
        given: labels, seed, rank and world_size.

    Raises:
        InputError: an option outside its range, or data with too few identities.
    """
    try:
        return SAMPLERS.build(options, **given)
    except RangeError as error:
        raise InputError(f"data.sampler.{error}") from error


class _Identities:
    """Images grouped by identity, and a new order within each identity for each epoch."""

    def __init__(self, labels: np.ndarray):
        self.names, place, self.counts = np.unique(labels, return_inverse=True, return_counts=True)
        self.rows = np.argsort(place, kind="stable")
        self.starts = np.cumsum(self.counts) - self.counts
        self._place = place[self.rows]

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """[N] dataset indices, identity after identity, in random order within each."""
        return self.rows[np.argsort(self._place + rng.random(len(self._place)))]

    def draw(self, order: np.ndarray, identity: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The `number`-th image in an endless walk through the shuffled images of `identity` (broadcast)."""
        return order[self.starts[identity] + number % self.counts[identity]]


@SAMPLERS.register("pk")
class PKSampler:
    """P different identities with K images each in every batch; every identity in every epoch.

    An identity with at least K images shows K different ones; with fewer it repeats them as evenly as
    possible. When an identity comes again within an epoch, it goes on to images not yet shown. Batches are
    always full: what the last one lacks is filled with further appearances of identities that it does not
    hold yet.

    Example:
        >>> sampler = PKSampler(np.array([0, 0, 1, 1, 2, 2]), identities=2, images=2)
        >>> sampler.num_batches(0), next(sampler.batches(epoch=0)).shape
        (2, (4,))
    """

    def __init__(
        self,
        labels: np.ndarray,
        identities: int = 16,
        images: int = 4,
        epoch: Literal["images", "identities"] = "images",
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        """
        Args:
            labels: [N] the identity of each image.
            identities: P, different identities in this rank's batch.
            images: K, images of each.
            epoch: `"images"`: an identity with n images appears about n/K times, at least once, and an epoch
                has about N images; `"identities"`: each identity appears once.
            seed: with the epoch number it determines everything.
            rank: this process, in [0, world_size).
            world_size: processes; no identity is in the batches of two of them in the same step.

        Raises:
            InputError: fewer identities than P x world_size, or a count below 1.
        """
        labels = checked_labels(labels, rank, world_size)
        check_at_least({"identities": identities, "images": images}, 1)
        if epoch not in ("images", "identities"):
            raise RangeError("epoch", f"must be 'images' or 'identities', not {epoch!r}")
        self.identities, self.images, self.epoch = identities, images, epoch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.batch_size = identities * images
        self._groups = _Identities(labels)
        known = len(self._groups.names)
        check_enough(known, identities, world_size)
        self._joined = identities * world_size
        wanted = np.ones(known, np.int64)
        if epoch == "images":
            wanted = np.maximum((2 * self._groups.counts + images) // (2 * images), 1)
        self._batches = -(-int(wanted.sum()) // self._joined)
        self._wanted = np.minimum(wanted, self._batches)

    def num_batches(self, epoch: int) -> int:
        """Batches in an epoch, the same on all ranks and in all epochs."""
        return self._batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """This rank's batches ([P*K] int64 dataset rows, identity by identity), without the first `start`."""
        rng = _generator(self.seed, epoch)
        order = self._groups.shuffled(rng)
        identity, appearance = self._layout(rng)
        mine = slice(self.rank * self.identities, (self.rank + 1) * self.identities)
        steps = np.arange(self.images)
        for batch in range(start, self._batches):
            first = appearance[mine, batch, None].astype(np.int64) * self.images
            yield self._groups.draw(order, identity[mine, batch, None], first + steps).ravel()

    def _layout(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Two [P*W, batches] arrays: who is in which batch, and for how manieth time.

        The appearances of each identity lie one after the other in a sequence that is cut into rows of one
        place per batch. An identity appears at most once per batch in total, so that no column holds it
        twice. Each row is then shuffled on its own, but for the at most two identities that continue into the
        next row or come from the one before, which keeps that property and leaves nothing of the order.
        """
        rows, columns = self._joined, self._batches
        counts = _filled(self._wanted, columns, rows * columns, rng)
        shuffled = rng.permutation(len(counts))
        lengths = counts[shuffled]
        ends = np.cumsum(lengths)
        identity = np.repeat(shuffled, lengths)
        appearance = np.arange(rows * columns) - np.repeat(ends - lengths, lengths)
        edge = np.arange(rows, dtype=np.int64) * columns
        run_end = ends[np.searchsorted(ends, edge, side="right")]
        run_start = (ends - lengths)[np.searchsorted(ends, edge + columns, side="left")]
        from_before = np.where(appearance[edge] > 0, np.minimum(run_end - edge, columns), 0)
        into_next = np.append(appearance[edge[1:]] > 0, False)
        held = np.where(into_next, np.maximum(run_start - edge, 0), columns)
        place = np.arange(columns)
        keys = np.where(place < held[:, None], rng.random((rows, columns)), 1 + place)
        keys = np.where(place < from_before[:, None], place - columns, keys)
        within = np.argsort(keys, axis=1)[:, rng.permutation(columns)]
        sequence = edge[:, None] + within
        return identity[sequence], appearance[sequence]


@SAMPLERS.register("shuffle")
class ShuffleSampler:
    """Every image once per epoch in random order; the last batch is filled from the start of the order."""

    def __init__(
        self, labels: np.ndarray, batch_size: int = 64, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        """
        Args:
            labels: [N]; only its length matters.
            batch_size: images in this rank's batch.
            seed: with the epoch number it determines everything.
            rank: this process, in [0, world_size).
            world_size: processes; they split a joined batch of batch_size x world_size.

        Raises:
            InputError: no images, or a count below 1.
        """
        self._images = len(checked_labels(labels, rank, world_size))
        check_at_least({"batch_size": batch_size}, 1)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size

    def num_batches(self, epoch: int) -> int:
        """Batches in an epoch, the same on all ranks and in all epochs."""
        return -(-self._images // (self.batch_size * self.world_size))

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """This rank's batches ([batch_size] int64 dataset indices), without the first `start`."""
        order = _generator(self.seed, epoch).permutation(self._images)
        yield from _cut(
            self, np.resize(order, self.num_batches(epoch) * self.batch_size * self.world_size), start
        )


@SAMPLERS.register("class_balanced")
class ClassBalancedSampler:
    """Every identity equally often, whatever its number of images; about N images per epoch.

    The epoch is a row of rounds, each with every identity once in random order; an identity walks through its
    own images before it repeats one. The last batch is filled from one more round.
    """

    def __init__(
        self, labels: np.ndarray, batch_size: int = 64, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        """
        Args:
            labels: [N] the identity of each image.
            batch_size: images in this rank's batch.
            seed: with the epoch number it determines everything.
            rank: this process, in [0, world_size).
            world_size: processes; they split a joined batch of batch_size x world_size.

        Raises:
            InputError: no images, or a count below 1.
        """
        labels = checked_labels(labels, rank, world_size)
        check_at_least({"batch_size": batch_size}, 1)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self._groups = _Identities(labels)
        known = len(self._groups.names)
        rounds = max((2 * len(labels) + known) // (2 * known), 1)
        self._batches = -(-rounds * known // (batch_size * world_size))

    def num_batches(self, epoch: int) -> int:
        """Batches in an epoch, the same on all ranks and in all epochs."""
        return self._batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """This rank's batches ([batch_size] int64 dataset indices), without the first `start`."""
        rng = _generator(self.seed, epoch)
        order = self._groups.shuffled(rng)
        total, known = self._batches * self.batch_size * self.world_size, len(self._groups.names)
        rounds = -(-total // known)
        identity = np.argsort(rng.random((rounds, known)), axis=1).ravel()[:total]
        yield from _cut(self, self._groups.draw(order, identity, np.arange(total) // known), start)


def _filled(wanted: np.ndarray, most: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """Raises random entries, none above `most`, until the sum is `total`."""
    counts = wanted.copy()
    lacking = total - int(counts.sum())
    while lacking > 0:
        free = rng.permutation(np.flatnonzero(counts < most))[:lacking]
        more = np.minimum(max(lacking // len(free), 1), most - counts[free])
        counts[free] += more
        lacking -= int(more.sum())
    return counts


def _cut(sampler: Sampler, sequence: np.ndarray, start: int) -> Iterator[np.ndarray]:
    joined = sampler.batch_size * sampler.world_size
    for first in range(start * joined + sampler.rank * sampler.batch_size, len(sequence), joined):
        yield sequence[first : first + sampler.batch_size].astype(np.int64)


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, epoch, 0x5A3])
