"""Which neighbour table is in force for which batch."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metricid.mining.background import BackgroundSearch
from metricid.mining.checks import described
from metricid.mining.neighbours import Neighbours, check_table
from metricid.mining.tables import Table

__all__ = ["TableSchedule"]


class TableSchedule:
    """Tables that come into force at batch numbers fixed beforehand, however long a search takes.

    Batches are numbered through all epochs. A search begins when `first`, `first + every`, ... batches are
    done, and its table is in force from `delay` batches later on. A batch that needs a table which is still
    being searched waits for it. So a run that was continued draws the batches of one that was not.

    Args:
        every: batches from one search to the next; None for tables given by hand only.
        delay: batches from the start of a search to the first that its table shapes, in [1, every].
        first: batches before the first search.
        k: neighbours of each identity.
        identities: C.
        guard: see `Table`.
        exact_up_to: see `find_neighbours`.
    """

    def __init__(
        self,
        every: int | None,
        delay: int,
        first: int,
        *,
        k: int,
        identities: int,
        guard: float | None,
        exact_up_to: int,
    ):
        self.every, self.delay, self.first = every, delay, first
        self.waited_seconds = 0.0
        self._k, self._identities, self._guard, self._exact_up_to = k, identities, guard, exact_up_to
        self._tables: list[tuple[int, int, Table]] = []  # (first batch, batches done at the search, table)
        self._search: tuple[int, BackgroundSearch] | None = None
        self._asked = -1  # when the latest search began
        self._forgotten = 0  # tables of batches before this one are gone

    def due(self, done: int) -> bool:
        """Whether a search is to begin when so many batches are done."""
        return self._point(done) > self._asked

    def begin(self, done: int, vectors: Tensor) -> None:
        """Starts a search from a copy of the vectors.

        Raises:
            ValueError: the number of vectors is not that of the identities.
        """
        if not isinstance(vectors, Tensor) or vectors.dim() != 2 or len(vectors) != self._identities:
            raise ValueError(
                f"hard_identity needs one vector for each of its {self._identities} identities, a tensor "
                f"[{self._identities}, D], not {described(vectors)}"
            )
        self._adopt()
        search = BackgroundSearch(vectors, self._k, exact_up_to=self._exact_up_to)
        self._asked = self._point(done)
        self._search = (self._asked + self.delay, search)

    def put(self, start: int, neighbours: Neighbours, searched: int | None = None) -> None:
        """Puts a table in force from a batch on, that was searched when so many batches were done.

        Raises:
            ValueError: it is no table of so many identities, or a later table is known.
        """
        check_table(neighbours, self._identities, "identities")
        if self._tables and start < self._tables[-1][0]:
            raise ValueError(f"a table is in force from batch {self._tables[-1][0]}, after {start}")
        self._tables = [entry for entry in self._tables if entry[0] < start]
        self._tables.append((start, start if searched is None else searched, Table(neighbours, self._guard)))

    def renew(self, start: int, neighbours: Neighbours) -> None:
        """Puts a table in force that is newer than all that were searched for, or are being, until now."""
        self._drop_search()
        self._tables = [entry for entry in self._tables if entry[0] < start]
        self.put(start, neighbours)

    def at(self, batch: int) -> Table | None:
        """The table in force for a batch; waits for it where it is still being searched.

        Raises:
            RuntimeError: the search for it has not been started, or the table is no longer kept.
        """
        if batch < self._forgotten:
            raise RuntimeError(
                f"the neighbour tables before batch {self._forgotten} are no longer kept, so batch {batch} "
                "cannot be drawn again; load the state that was saved there"
            )
        asked = self._point(batch - self.delay)
        if self._asked < asked:
            raise RuntimeError(
                f"batch {batch} needs the neighbours searched after {asked} batches, and after_step has not "
                f"been called for {asked} yet; call it after every batch, draw each epoch to its end, keep "
                "sampler.delay above the batches that the loader draws ahead (workers x prefetch)"
            )
        if self._search is not None and self._search[0] <= batch:
            self._adopt()
        return next((table for start, _, table in reversed(self._tables) if start <= batch), None)

    def drop_before(self, done: int) -> None:
        """Lets go of tables that no batch from `done` on needs."""
        while len(self._tables) > 1 and self._tables[1][0] <= done:
            del self._tables[0]
            self._forgotten = self._tables[0][0]

    def latest(self, done: int) -> tuple[int, Neighbours] | None:
        """When the search for the table in force began, in batches done, and the table."""
        found = [entry for entry in self._tables if entry[0] <= done]
        return (found[-1][1], found[-1][2].neighbours) if found else None

    def state(self) -> dict[str, Any]:
        """The tables, that of a search under way included: it is waited for."""
        self._adopt()
        tables = [
            {"start": start, "searched": searched, **table.neighbours.state()}
            for start, searched, table in self._tables
        ]
        return {"asked": self._asked, "forgotten": self._forgotten, "tables": tables}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned."""
        self._drop_search()
        self._tables = []
        for saved in state["tables"]:
            saved = dict(saved)
            start, searched = saved.pop("start"), saved.pop("searched")
            self.put(start, Neighbours(**saved), searched)
        self._asked, self._forgotten = state["asked"], state["forgotten"]

    def _point(self, done: int) -> int:
        """Batches done at the latest search that should have begun by then; -1 if none."""
        if self.every is None or done < self.first:
            return -1
        return done - (done - self.first) % self.every

    def _drop_search(self) -> None:
        if self._search is not None:
            self._search[1].stop()
            self._search = None

    def _adopt(self) -> None:
        if self._search is None:
            return
        start, search = self._search
        began = time.perf_counter()
        table = search.result()
        self.waited_seconds += time.perf_counter() - began
        self._search = None
        self.put(start, table, start - self.delay)
