"""Runs the trainings of a comparison, one at a time on each device, each in a process of its own."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO

import yaml
from tqdm import tqdm

from metricid.comparison.fresh import fresh_problems
from metricid.comparison.plan import PlannedRun
from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.report.run_files import read_results
from metricid.training.run_folder import write_json
from metricid.training.signals import StopRequest

FAILURE = "failure.json"
LONGEST_REASON = 400  # characters of a list of problems
PAUSE = 0.2  # seconds between looks at the processes
_STOPPED = (130, 143, -signal.SIGTERM, -signal.SIGINT)


@dataclass(frozen=True)
class Device:
    """Where one run at a time is trained.

    Attributes:
        name: as the user gave it.
        option: `device` of the recipe.
        environment: of the process; a GPU is chosen by it, so that a run can go on with another one.
    """

    name: str
    option: str
    environment: Mapping[str, str]


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    run: PlannedRun
    device: Device
    output: IO[bytes]
    started: float


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a comparison; the lock ends with the process, however it ends.

    Raises:
        InputError: another process works there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 (held for the whole comparison)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose runs=/path") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(f"{folder}: another process works here; wait for it, or give --name") from error
        yield


def is_finished(run: PlannedRun) -> bool:
    """Whether the results of a run are written."""
    return all((run.folder / name).is_file() for name in ("results.json", "results.txt"))


def failure_of(run: PlannedRun) -> str | None:
    """Why a run failed; None if it did not."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((run.folder / FAILURE).read_text(encoding="utf-8"))["reason"])
    return None


def forget_failure(run: PlannedRun) -> None:
    """Makes a failed run, and one whose results cannot be read, one that is still to be done."""
    (run.folder / FAILURE).unlink(missing_ok=True)
    if is_finished(run):
        try:
            read_results(run.folder)
        except InputError:
            (run.folder / "results.json").unlink()


def work_off(
    runs: Sequence[PlannedRun],
    devices: Sequence[Device],
    stop: StopRequest,
    finished: Callable[[PlannedRun], object],
) -> None:
    """Trains runs until all have ended or a stop is asked for.

    Args:
        runs: those that are to be done, in order.
        devices: each trains one at a time.
        stop: once asked for, no run is started, and those that train save their state; at the second signal
            they are ended at once.
        finished: called after every run that ended, well or not.

    Raises:
        InputError: runs name what their processes would not know.
    """
    if lacking := fresh_problems(runs):
        raise InputError("\n".join(lacking))
    waiting = list(runs)
    children: list[_Child] = []
    total = sum(run.recipe["train"]["images"] for run in runs)
    done = 0
    bar = tqdm(
        total=total,
        unit="img",
        file=sys.stderr,
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=1.0 if sys.stderr.isatty() else 60.0,
    )
    try:
        while children or (waiting and stop.number is None):
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                child.output.close()
                ended = stop.number is None or is_finished(child.run)
                done += child.run.recipe["train"]["images"] if ended else _images_seen(child.run.folder)
                if stop.number is None:
                    bar.write(_conclude(child), file=sys.stderr)
                    finished(child.run)
            busy = {child.device.name for child in children}
            for device in devices:
                if device.name not in busy and waiting and stop.number is None:
                    children.append(_start(waiting.pop(0), device))
            if stop.number is not None:
                _end(children, hard=stop.count > 1)
            seen = done + sum(_images_seen(child.run.folder) for child in children)
            bar.update(min(seen, total) - bar.n)
            time.sleep(PAUSE)
    finally:
        bar.close()
        for child in children:  # an error of ours: do not leave them behind
            child.process.terminate()


def command(recipe: Path, folder: Path) -> list[str]:
    """What trains a recipe."""
    return [sys.executable, "-m", "metricid.comparison.worker", str(recipe), str(folder)]


def _start(run: PlannedRun, device: Device) -> _Child:
    """Starts a training; its output goes to a file in the run folder, its recipe beside the run folder."""
    recipe = run.folder.parent / "recipes" / f"{run.folder.name}.yaml"
    with atomic_write(recipe, "w") as file:
        yaml.safe_dump(run.recipe | {"device": device.option}, file, sort_keys=False)
    run.folder.mkdir(parents=True, exist_ok=True)
    output = open(run.folder / "output.txt", "ab")  # noqa: SIM115 (as long as the process)
    try:
        process = subprocess.Popen(
            command(recipe, run.folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(device.environment),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then asks them to save
        )
    except BaseException:
        output.close()
        raise
    return _Child(process, run, device, output, time.monotonic())


def _end(children: Sequence[_Child], *, hard: bool) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)


def _conclude(child: _Child) -> str:
    """Notes why a run failed, if it did; a line for the user."""
    run, code = child.run, child.process.returncode
    who = f"{run.entry} seed {run.seed}"
    if code == 0 and is_finished(run):
        where = "" if child.device.name == "auto" else f" on {child.device.name}"
        return f"{who}: done in {time.monotonic() - child.started:.0f} s{where}"
    if code in _STOPPED:
        return f"{who}: stopped by another's signal; the same command continues it"
    reason = _reason(run.folder / "output.txt", code)
    write_json(run.folder / FAILURE, {"reason": reason, "code": code, "output": "output.txt"})
    return f"{who}: failed: {reason}"


def _reason(output: Path, code: int) -> str:
    """The last thing that a failed training said."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    with suppress(OSError):
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [place for place, line in enumerate(lines) if line.startswith("metricid train: ")]
        if said:
            last = lines[said[-1]].removeprefix("metricid train: ").strip()
            return _problems(last, lines[said[-1] + 1 :]) or last
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if last:
            return last
    return f"exit code {code}"


def _problems(head: str, below: Sequence[str]) -> str:
    """The indented lines below `RECIPE: N problems` as one; empty where there are none."""
    if not re.search(r": \d+ problems?$", head):
        return ""
    listed = "; ".join(line.strip() for line in takewhile(lambda line: line.startswith("  "), below))
    return listed if len(listed) <= LONGEST_REASON else f"{listed[: LONGEST_REASON - 4]} ..."


def _images_seen(folder: Path) -> int:
    """How far a training is, from the end of its log."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        with open(folder / "log.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().splitlines()
        for line in reversed(lines):
            with suppress(ValueError, KeyError):
                entry = json.loads(line)
                if entry["event"] == "step":
                    return int(entry["images"])
    return 0
