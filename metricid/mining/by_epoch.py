"""Values that hold from an epoch on."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

__all__ = ["ByEpoch"]

T = TypeVar("T")


class ByEpoch(Generic[T]):
    """Values by the first epoch that each holds for, until the next one does.

    Args:
        what: they are, for messages.

    Attributes:
        entries: (first epoch, value), rising.
        forgotten: values of epochs before this one are gone.
    """

    def __init__(self, what: str):
        self._what = what
        self.entries: list[tuple[int, T]] = []
        self.forgotten = 0

    def put(self, epoch: int, value: T) -> None:
        """Lets a value hold from an epoch on."""
        self.entries = [entry for entry in self.entries if entry[0] < epoch] + [(epoch, value)]

    def at(self, epoch: int) -> T | None:
        """The value of an epoch; None where there is none yet.

        Raises:
            RuntimeError: it is no longer kept.
        """
        if epoch < self.forgotten:
            raise RuntimeError(
                f"the {self._what} before epoch {self.forgotten} are no longer kept, so epoch {epoch} cannot "
                "be drawn again; load the state that was saved there"
            )
        return next((value for first, value in reversed(self.entries) if first <= epoch), None)

    def begins(self, epoch: int) -> bool:
        """Whether a value holds from just this epoch on."""
        return any(first == epoch for first, _ in self.entries)

    def drop_before(self, epoch: int) -> None:
        """Lets go of values that no epoch from this one on needs."""
        while len(self.entries) > 1 and self.entries[1][0] <= epoch:
            del self.entries[0]
            self.forgotten = self.entries[0][0]

    def state(self, plain: Callable[[T], Any]) -> dict[str, Any]:
        """What a checkpoint holds, with each value as `plain` makes it."""
        return {
            "forgotten": self.forgotten,
            "entries": [(first, plain(value)) for first, value in self.entries],
        }

    def load(self, state: Mapping[str, Any], value: Callable[[Any], T]) -> None:
        """Goes on from a state, whose plain values `value` turns into those that they were."""
        self.forgotten = state["forgotten"]
        self.entries = [(first, value(plain)) for first, plain in state["entries"]]
