"""Run by test_kills.py: kills a writer at each of its steps on the file system and looks at what is left.

A step is a moment just before a file is opened, renamed or deleted, seen by an audit hook; some more kills
come after a random time. Prints a JSON object of counts; fails where the index is neither old nor new.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from metricid.search import ArraySource, SearchIndex

KIND, FOLDER = sys.argv[1], Path(sys.argv[2])
EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.unlink",
    "os.mkdir",
    "os.listdir",
    "os.scandir",
    "fcntl.lockf",
}
TIMED = 8
NEXT_WRITER = 4  # after every so many kills the change is tried again
DIMENSION = 16


def people(count, prefix):
    vectors = np.random.default_rng(len(prefix)).standard_normal((count, DIMENSION)).astype(np.float32)
    rows = pa.table(
        {
            "path": [f"{prefix}{i}.jpg" for i in range(count)],
            "identity": [f"{prefix}{i // 4}" for i in range(count)],
        }
    )
    return vectors, rows


def content(folder):
    """What an index answers, as a digest; everything in it is read and checked on the way."""
    index = SearchIndex(folder, verify=True)
    keys = index.rows["path"].to_pylist()
    vectors, rows = index.get(keys)
    answer = index.query(vectors, 1).keys[:, 0].tolist()
    assert answer == keys, "a vector belongs to another row"
    return hashlib.sha256(repr((keys, rows.to_pydict(), vectors.round(3).tolist())).encode()).hexdigest()


OLD, NEW = people(120, "old"), people(40, "newer")
CHANGES = {
    "add": lambda folder: SearchIndex(folder).add(NEW[1]["path"].to_pylist(), *NEW),
    "replace": lambda folder: SearchIndex(folder).add(
        OLD[1]["path"].to_pylist()[:40], NEW[0], OLD[1].slice(0, 40), replace=True
    ),
    "remove": lambda folder: SearchIndex(folder).remove(identity="old7"),
    "build": lambda folder: SearchIndex.build(folder, ArraySource(*NEW), kind=KIND, overwrite=True),
}


def run_until(folder, change, step=None, seconds=None):
    """Runs the change in a child that is killed before its step-th step, or after some seconds."""
    child = os.fork()
    if child == 0:
        steps = 0

        def watch(event, arguments):
            nonlocal steps
            if event in EVENTS and step is not None:
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        change(folder)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    chance = random.Random(0)
    counts = {}
    original = FOLDER / "original"
    SearchIndex.build(original, ArraySource(*OLD), kind=KIND)
    old = content(original)
    for name, change in CHANGES.items():
        target = FOLDER / name
        shutil.copytree(original, target)
        start = time.monotonic()
        assert run_until(target, change) == 0
        duration = time.monotonic() - start
        new = content(target)
        assert new != old
        seen = {old: 0, new: 0}
        moments = [{"step": step} for step in range(1, 200)]
        moments += [{"seconds": chance.uniform(0, duration)} for _ in range(TIMED)]
        finished = False
        for number, moment in enumerate(moments):
            if finished and "step" in moment:
                continue
            shutil.rmtree(target)
            shutil.copytree(original, target)
            finished = run_until(target, change, **moment) == 0
            left = content(target)
            assert left in seen, f"{name} {moment}: neither old nor new"
            seen[left] += 1
            if number % NEXT_WRITER:
                continue
            # The next writer is not locked out, and clears away what the killed one left.
            if left == old:
                change(target)
                assert content(target) == new
            else:
                SearchIndex(target).add(["late0.jpg"], *people(1, "late"))
            names = sorted(path.name for path in target.iterdir())
            assert len(names) == 4, names
        assert finished or "seconds" in moments[-1]
        counts[name] = {"old": seen[old], "new": seen[new]}
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
    # Threads of libraries that were forked from cannot always be taken down in order.
    sys.stdout.flush()
    os._exit(0)
