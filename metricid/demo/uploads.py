"""Uploaded files are read once, and are gone."""

import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer

_SECONDS = 60.0
_MOST_BYTES = 200 * 2**20


class Uploads:
    """Takes files out of the folder into which the framework puts them.

    It names them by their content, so a photo that is given twice at once is one file: who comes first takes
    it away. What it held is remembered for those who come after, for a minute and up to 200 MiB in all.
    """

    def __init__(self) -> None:
        self._recent: OrderedDict[Path, tuple[float, bytes]] = OrderedDict()
        self._lock = Lock()
        self._timer: Timer | None = None  # one at a time, while something is remembered

    def take(self, file: str) -> bytes:
        """What the file holds; it is gone afterwards.

        Raises:
            OSError: it cannot be read, and nobody has taken it within the last minute.
        """
        path = Path(file)
        with self._lock:
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                if path not in self._recent:
                    raise
                data = self._recent[path][1]
            finally:
                path.unlink(missing_ok=True)
            self._recent[path] = time.monotonic(), data
            self._recent.move_to_end(path)
            self._forget()
            self._wake()
        return data

    def _wake(self) -> None:
        """Has the oldest forgotten when its minute is over."""
        if self._timer is not None or not self._recent:
            return
        oldest = next(taken for taken, _ in self._recent.values())
        self._timer = Timer(max(oldest + _SECONDS - time.monotonic(), 0.0), self._on_time)
        self._timer.daemon = True
        self._timer.start()

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None
            self._forget()
            self._wake()

    def _forget(self) -> None:
        """Drops what is old or too much, and only then folders: the same photo may be coming in again."""
        held = sum(len(data) for _, data in self._recent.values())
        for path, (taken, data) in list(self._recent.items()):
            if held <= _MOST_BYTES and time.monotonic() - taken < _SECONDS:
                return
            held -= len(data)
            del self._recent[path]
            with suppress(OSError):
                path.parent.rmdir()
