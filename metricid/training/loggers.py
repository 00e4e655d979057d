"""What a run says: a JSONL file always, a progress bar on the terminal, TensorBoard by option."""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metricid.errors import InputError


class JsonlLog:
    """One JSON object a line. A resumed run cuts off what a killed one wrote after its last checkpoint.

    Args:
        path: the file.
        position: length in bytes to keep of an existing file.
    """

    def __init__(self, path: Path, position: int = 0):
        self._path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (lives as long as the run)
            if self._file.tell() > position:
                self._file.truncate(position)
            self._file.seek(0, os.SEEK_END)

    def write(self, event: str, **values: Any) -> None:
        """Adds a line; numbers that JSON has not (NaN, infinity) become text."""
        line = json.dumps({"event": event, **{k: _plain(v) for k, v in values.items()}})
        left = memoryview(line.encode() + b"\n")
        with self._explained():
            while left:  # a disk that fills up takes a part and says so at the next write only
                left = left[self._file.write(left) :]

    def position(self) -> int:
        """Length of the file in bytes, everything written down."""
        with self._explained():
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._path}: the log cannot be written ({error.strerror}); "
                "mend that and run the same command again"
            ) from error


class TensorBoardLog:
    """Scalars for TensorBoard, in the run folder; points after `step` belong to a killed process and go.

    Raises:
        InputError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "log.tensorboard: tensorboard is not installed; pip install 'metricid[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to each scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes everything down."""
        self._writer.close()


class Progress:
    """A progress bar on stderr: steps, loss terms, images per second, time left.

    Args:
        total: optimiser steps in all.
        done: steps done before.
        shown: whether this process shows it.
    """

    def __init__(self, total: int, done: int, shown: bool):
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=not shown,
            file=sys.stderr,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )

    def step(self, text: str | None) -> None:
        """One step further; the text is shown from then on."""
        if text is not None:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
