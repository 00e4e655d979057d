"""Stopping on request, with nothing lost."""

import signal
from types import FrameType
from typing import Any


class Stopped(Exception):
    """A signal ended the training after its state was saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a request to save and stop.

    Attributes:
        number: of the first signal; None as long as none came.
        count: signals so far.

    Args:
        impatient: a Ctrl-C after the first signal raises KeyboardInterrupt; else it is counted only.
    """

    def __init__(self, *, impatient: bool = True) -> None:
        self.number: int | None = None
        self.count = 0
        self._impatient = impatient
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._impatient and self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number, self.count = self.number or number, self.count + 1
