"""One training in a process of its own, as `metricid train`, which then notes its peak memory.

`python -m metricid.comparison.worker RECIPE FOLDER`
"""

import fcntl
import json
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from metricid.cli.main import main as metricid
from metricid.files import atomic_write

USAGE = "usage.json"


def main() -> int:
    """Trains; returns the exit code of `metricid train`."""
    recipe, folder = sys.argv[1], Path(sys.argv[2])
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    _wait_for_predecessor(folder)
    try:
        return metricid(["train", recipe])
    finally:
        if folder.is_dir():
            _note_usage(folder)


def _follow_parent(parent: int) -> None:
    """Saves and stops when the comparison is killed: nobody would wait for this run then."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_predecessor(folder: Path) -> None:
    """Waits for the run of a killed comparison to save its state."""
    with suppress(OSError), open(folder / ".lock", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)


def _note_usage(folder: Path) -> None:
    """Writes the peaks of this process; of a run in several parts, the highest."""
    # ru_maxrss: kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"process_bytes": peak, "gpu_bytes": 0}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu_bytes"] = torch.cuda.max_memory_allocated()
    file = folder / USAGE
    with suppress(OSError, ValueError, AttributeError):
        before = json.loads(file.read_text(encoding="utf-8"))
        found = {key: max(value, int(before.get(key, 0))) for key, value in found.items()}
    with atomic_write(file, "w") as out:
        json.dump(found, out)


if __name__ == "__main__":
    sys.exit(main())
