"""Which identities meet in a batch: seeds in random order, each with some of those it is confused with."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metricid.mining.neighbours import Neighbours

__all__ = ["Epoch", "Table"]

_TAG = 0x4A1D


class Table:
    """A neighbour table as the composition reads it.

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

    def compose(
        self, batch: int, size: int, hard: int, table: Table | None, temperature: float
    ) -> tuple[NDArray[np.int64], int]:
        """The next batch.

        Args:
            batch: its number within the epoch.
            size: identities in it.
            hard: how many of them are to be neighbours of others in it, below `size`.
            table: None for a random batch.
            temperature: of the draw among the neighbours, in units of cosine; 0 takes the nearest.

        Returns:
            identities [size] int64, each seed followed by those drawn for it; how many were drawn as
            neighbours, fewer than `hard` where neighbours were used up or guarded.
        """
        hard = 0 if table is None else hard
        inside: set[int] = set()
        seeds = list(self._seeds(size - hard, inside))
        groups: list[list[int]] = [[seed] for seed in seeds]
        if table is not None and hard:
            self._draw(batch, groups, hard, table, temperature, inside)
        chosen = [identity for group in groups for identity in group]
        drawn = len(chosen) - len(seeds)
        chosen += self._seeds(size - len(chosen), inside)
        identities = np.array(chosen, np.int64)
        self.counts[identities] += 1
        return identities, drawn

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
        self,
        batch: int,
        groups: list[list[int]],
        hard: int,
        table: Table,
        temperature: float,
        inside: set[int],
    ) -> None:
        """Adds to each seed its share of the hard ones, drawn without replacement among its neighbours.

        The Gumbel form of a draw with probabilities softmax(similarity / temperature).
        """
        rows = np.array([group[0] for group in groups])
        ids = table.ids[rows]
        keys = table.similarity[rows].astype(np.float32)
        free = (ids >= 0) & (keys <= table.limit) & (self.counts[ids] + self._owed[ids] < self.most)
        if temperature > 0:
            rng = np.random.default_rng([self.seed, self.epoch, _TAG, 1, batch])
            keys = keys / temperature + rng.gumbel(size=keys.shape)
        order = np.argsort(np.where(free, -keys, np.inf), axis=1, kind="stable")
        ranked = np.take_along_axis(ids, order, axis=1).tolist()
        barred = {twin for identity in inside for twin in table.twins(identity)}
        for number, (group, candidates, count) in enumerate(
            zip(groups, ranked, free.sum(axis=1).tolist(), strict=True)
        ):
            wanted = (number + 1) * hard // len(groups) - number * hard // len(groups)
            for identity in candidates[:count]:
                if len(group) > wanted:
                    break
                if identity in inside or identity in barred:
                    continue
                twins = table.twins(identity)  # a table is not symmetric: both sides are asked
                if inside.isdisjoint(twins):
                    group.append(identity)
                    inside.add(identity)
                    barred.update(twins)

    def _permutation(self) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, self.epoch, _TAG, 0, self.turn]).permutation(self.known)
