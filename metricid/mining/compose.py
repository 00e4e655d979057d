"""Which identities meet in a batch: seeds in random order, each with some of those it is confused with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricid.mining.tables import Sources, by_owner, ranked

__all__ = ["Composed", "Epoch", "HardShare"]

_TAG = 0x4A1D


class Composed(NamedTuple):
    """The identities of a joined batch.

    Attributes:
        identities: [size] int64, each seed followed by those drawn for it.
        drawn: how many were drawn as neighbours, fewer than wanted where these were used up or guarded.
        shown: of some identities, the images that the batch is to show of them.
    """

    identities: NDArray[np.int64]
    drawn: int
    shown: Mapping[int, list[int]]


class HardShare(NamedTuple):
    """How many identities of a joined batch are to be neighbours of others in it.

    Attributes:
        size: identities in the batch; one is always a seed.
        start: share of hard ones when the warm-up ends.
        end: share at the end of the ramp, and from there on.
        ramp: batches over which it goes evenly from one to the other.
    """

    size: int
    start: float
    end: float
    ramp: int

    @property
    def most(self) -> int:
        """The largest number at any time."""
        return max(self._number(self.start), self._number(self.end))

    def after(self, warm: int) -> int:
        """The number so many batches after the warm-up."""
        risen = 1.0 if not self.ramp else min(warm / self.ramp, 1.0)
        return self._number(self.start + risen * (self.end - self.start))

    def _number(self, share: float) -> int:
        return min(round(share * self.size), self.size - 1)


@dataclass
class Epoch:
    """The identities of an epoch, batch after batch.

    Seeds walk through one random permutation of all identities after the other. A batch's seeds are taken
    first, then for each of them the identities that it is confused with; what is then lacking is filled with
    the coming seeds. Nobody is in a batch twice, and nobody in more than `most` batches of the epoch: a place
    is kept free for everyone whose turn in the first permutation is still to come.

    Attributes:
        seed: of the run.
        epoch: its number; with the seed, the batch number and the tables it determines everything.
        known: C, how many identities there are.
        most: batches of the epoch that may hold one identity.
        counts: [C] int32, batches so far that held each identity.
        turn: number of the present permutation.
        place: how many of it have been taken.
        waiting: seeds that had to be put off, since their batch held them already.
    """

    seed: int
    epoch: int
    known: int
    most: int
    counts: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    turn: int = 0
    place: int = 0
    waiting: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.counts):
            self.counts = np.zeros(self.known, np.int32)
        self._order = self._permutation()
        self._owed = np.zeros(self.known, np.int32)
        if self.turn == 0:
            self._owed[self._order[self.place :]] = 1

    def compose(self, batch: int, size: int, hard: int, sources: Sources) -> Composed:
        """The next batch.

        Args:
            batch: its number within the epoch.
            size: identities in it.
            hard: how many of them are to be neighbours of others in it, below `size`.
            sources: where these come from; without any table the batch is random.
        """
        known = sources.table is not None or sources.images is not None
        hard = hard if known else 0
        inside: set[int] = set()
        seeds = list(self._seeds(size - hard, inside))
        groups: list[list[int]] = [[seed] for seed in seeds]
        shown = self._draw(batch, groups, hard, sources, inside) if hard else {}
        chosen = [identity for group in groups for identity in group]
        drawn = len(chosen) - len(seeds)
        chosen += self._seeds(size - len(chosen), inside)
        identities = np.array(chosen, np.int64)
        self.counts[identities] += 1
        return Composed(identities, drawn, shown)

    def _seeds(self, number: int, inside: set[int]) -> Iterator[int]:
        """The next seeds that are not in the batch; those that are wait for the next batch."""
        put_off = []
        while number > 0:
            if self.waiting:
                identity = self.waiting.pop(0)
            else:
                if self.place == self.known:
                    self.turn, self.place = self.turn + 1, 0
                    self._order = self._permutation()
                identity = int(self._order[self.place])
                self.place += 1
                self._owed[identity] = 0
            if identity in inside:
                put_off.append(identity)
            elif self.counts[identity] < self.most:
                inside.add(identity)
                number -= 1
                yield identity
        self.waiting = put_off + self.waiting

    def _draw(
        self, batch: int, groups: list[list[int]], hard: int, sources: Sources, inside: set[int]
    ) -> dict[int, list[int]]:
        """Adds to each seed its share of the hard ones; returns the images that they are to show."""
        seeds = np.array([group[0] for group in groups])
        offers = self._offers(batch, seeds, sources)
        barred = set[int]().union(*(self._twins(seed, [], sources) for seed in seeds.tolist()))
        shown = {}
        for number, (group, offered) in enumerate(zip(groups, offers, strict=True)):
            wanted = (number + 1) * hard // len(groups) - number * hard // len(groups)
            while len(group) <= wanted and (offer := next(offered, None)) is not None:
                identity, images = offer
                if identity in inside or identity in barred:
                    continue
                twins = self._twins(
                    identity, images, sources
                )  # tables are not symmetric: both sides are asked
                if inside.isdisjoint(twins):
                    group.append(identity)
                    inside.add(identity)
                    barred |= twins
                    if images:
                        shown[identity] = images
        return shown

    def _offers(
        self, batch: int, seeds: NDArray[np.int64], sources: Sources
    ) -> list[Iterator[tuple[int, list[int]]]]:
        """For each seed those that it is confused with, in the order in which they are asked.

        First by the images that the seed shows, each with the images that these are confused with; then by
        the table of identities, with no images in particular.
        """
        offers: list[Iterator[tuple[int, list[int]]]] = [iter(()) for _ in seeds]
        if sources.images is not None:
            of = sources.images
            block = sources.walk.draw(seeds, self.counts[seeds])
            ids = of.ids[block].reshape(len(seeds), -1)
            similarity = of.similarity[block].reshape(len(seeds), -1)
            free = (ids >= 0) & (similarity.astype(np.float32) <= of.limit) & self._room(of.owners[ids])
            rows = ranked(ids, similarity, free, sources.temperature, self._rng(2, batch))
            offers = [by_owner(row, of.owners) for row in rows]
        if sources.table is not None:
            table = sources.table
            ids, similarity = table.ids[seeds], table.similarity[seeds]
            free = (ids >= 0) & (similarity.astype(np.float32) <= table.limit) & self._room(ids)
            rows = ranked(ids, similarity, free, sources.temperature, self._rng(1, batch))
            more = [((identity, list[int]()) for identity in row.tolist()) for row in rows]
            offers = [chain(*both) for both in zip(offers, more, strict=True)]
        return offers

    def _room(self, identities: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether more batches of the epoch may hold an identity."""
        return self.counts[identities] + self._owed[identities] < self.most

    def _twins(self, identity: int, images: list[int], sources: Sources) -> set[int]:
        """Those that are too alike to an identity, or to the images that it shows, to be put beside it."""
        found = set() if sources.table is None else set(sources.table.twins(identity))
        if sources.images is not None:
            who = np.array([identity])
            block = sources.walk.show(who, self.counts[who], {identity: images})
            found |= sources.images.twins(block[0])
        return found

    def _permutation(self) -> NDArray[np.int64]:
        return self._rng(0, self.turn).permutation(self.known)

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, _TAG, *what])
