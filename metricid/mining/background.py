"""A neighbour search beside the training."""

import atexit
import threading
import weakref

import torch
from torch import Tensor

from metricid.mining.neighbours import EXACT_UP_TO, Neighbours, find_neighbours, unit_vectors

__all__ = ["BackgroundSearch"]


class BackgroundSearch:
    """Finds neighbours in a thread, from a copy of the vectors made at once.

    The step that starts it pays for the copy only. On a GPU the search runs on a stream of its own, behind
    what is queued now. A program that ends does not wait for its result.

    Args:
        vectors: [C, D], one row per identity.
        k: neighbours of each.
        exact_up_to: most identities for an exact search on the CPU.
    """

    def __init__(self, vectors: Tensor, k: int, *, exact_up_to: int = EXACT_UP_TO):
        self._table: Neighbours | None = None
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        copy = unit_vectors(vectors, exact_up_to)
        copied = None
        if copy.is_cuda:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(copy.device))
        self._thread = threading.Thread(
            target=self._search, args=(copy, k, exact_up_to, copied), name="neighbours", daemon=True
        )
        _RUNNING.add(self)
        self._thread.start()

    def _search(self, unit: Tensor, k: int, exact_up_to: int, copied: torch.cuda.Event | None) -> None:
        def find() -> Neighbours:
            return find_neighbours(unit, k, exact_up_to=exact_up_to, normalized=True, check=self._check)

        try:
            if copied is None:
                self._table = find()
                return
            stream = torch.cuda.Stream(unit.device)
            with torch.cuda.stream(stream):
                stream.wait_event(copied)
                unit.record_stream(stream)
                self._table = find()
        except BaseException as error:
            self._error = error

    def _check(self) -> None:
        if self._stopped.is_set():
            raise InterruptedError("the search for neighbours was stopped")

    @property
    def ready(self) -> bool:
        """Whether `result` would return at once."""
        return not self._thread.is_alive()

    def result(self) -> Neighbours:
        """The table; waits for it if need be.

        Raises:
            ValueError: the vectors could not be used; whatever else the search raised comes as it is.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._table is not None
        return self._table

    def stop(self) -> None:
        """Ends the search, whose result nobody wants any more; it may take a moment to do so."""
        self._stopped.set()

    def end(self) -> None:
        """Ends the search, and returns when it has ended."""
        self.stop()
        self._thread.join()


_RUNNING: "weakref.WeakSet[BackgroundSearch]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A thread that is inside PyTorch when the interpreter goes away aborts the process."""
    for search in list(_RUNNING):
        search.end()
