"""Time and peak memory of something done to a batch, by several sides: the table of a benchmark.

Forward and backward, unit vectors of 512 dimensions, 4 images per class. Each cell runs in a process of its
own, so that peak memory is that of one loss: the growth of the resident set over the loaded process with its
embeddings; on a GPU, what PyTorch allocated at most. Time is the fastest of a few steps, with `--threads 1`
the time of the processor, which other programs on the machine disturb less. What fails or runs out of memory
says so, and a value that is not that of the first side is named on stderr.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Step = Callable[[Any, Any], Any]  # (embeddings [B, D], labels [B]) -> loss
Sides = Mapping[str, Callable[[str], Step]]  # name of a side -> (name of a row -> its step)


def run(file: str, about: str, rows: Sequence[str], sides: Sides) -> None:
    """Reads the options, measures and prints a Markdown table.

    Args:
        file: of the benchmark, which is started anew for each cell.
        about: its docstring.
        rows: their names.
        sides: ours, which is compared with each of the others, and those; a KeyError leaves a cell empty.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--sizes", default="128,512,2048", help="batch sizes, comma-separated")
    parser.add_argument("--only", default=",".join(rows), help="comma-separated names of rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a cell, the start included")
    parser.add_argument("--memory", type=float, default=16, help="GB that a cell may address on the CPU")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch on the CPU; 0 leaves its own")
    parser.add_argument("--one", choices=list(sides), help="measure one cell in this process, print JSON")
    options = parser.parse_args()
    sizes, names = [int(size) for size in options.sizes.split(",")], options.only.split(",")
    if unknown := sorted(set(names) - set(rows)):
        parser.error(f"no such row: {', '.join(unknown)} (one of: {', '.join(rows)})")
    if options.one:
        print(json.dumps(_measure(sides[options.one], names[0], sizes[0], options)))
        return
    _, *others = sides
    shown = [*(f"{side}, s / MB" for side in sides), *(f"beside {side}" for side in others)]
    print(f"| row | batch | {' | '.join(shown)} |")
    print(f"|---|---|{'---|' * len(shown)}", flush=True)
    for name in names:
        for size in sizes:
            found = {side: _cell(file, side, name, size, options) for side in sides}
            print(f"| {name} | {size} | {' | '.join(_compared(name, size, found))} |", flush=True)


def _measure(
    side: Callable[[str], Step], name: str, size: int, options: argparse.Namespace
) -> dict[str, float] | None:
    """Value, seconds and megabytes of one step; to be called in a fresh process."""
    import torch

    on_cpu = options.device == "cpu"
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 and on_cpu else time.perf_counter
    if on_cpu:  # a tensor beyond it is refused, before the machine has to swap
        resource.setrlimit(resource.RLIMIT_AS, (int(options.memory * 1e9), resource.RLIM_INFINITY))
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(size, 512), dim=1).to(options.device).requires_grad_()
    labels = (torch.arange(size) // 4).to(options.device)
    try:
        step = side(name)
    except KeyError:
        return None
    (x.detach()[:64] @ x.detach()[:64].T).sum().item()  # loads the linear algebra
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats()
        resident = torch.cuda.memory_allocated()
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 7 and sum(seconds) < 3):
        x.grad = None
        start = clock()
        value = step(x, labels)
        value.backward()
        if not on_cpu:
            torch.cuda.synchronize()
        seconds.append(clock() - start)
        if seconds[0] > 15:
            break
    if on_cpu:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    else:
        grown = (torch.cuda.max_memory_allocated() - resident) / 1e6
    return {"value": float(value.detach()), "seconds": min(seconds), "megabytes": grown}


def _cell(file: str, side: str, name: str, size: int, options: argparse.Namespace) -> dict[str, float] | str:
    """One measurement in a process of its own; a word where it gives none, nothing where there is no such."""
    command = [sys.executable, file, "--one", side, "--only", name, "--sizes", str(size)]
    command += ["--device", options.device, "--memory", str(options.memory)]
    command += ["--threads", str(options.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return f"over {options.limit:.0f} s"
    if done.returncode:
        return "out of memory" if done.returncode < 0 or "memory" in done.stderr else "fails"
    return json.loads(done.stdout) or ""


def _compared(name: str, size: int, found: Mapping[str, dict[str, float] | str]) -> list[str]:
    """The cells of a row, then how many times faster ours is than each other, and how much less it takes."""
    (_, mine), *others = found.items()
    cells = [
        f if isinstance(f, str) else f"{f['seconds']:.4f} / {f['megabytes']:.0f}" for f in found.values()
    ]
    for side, other in others:
        if isinstance(mine, str) or isinstance(other, str):
            cells.append("")
            continue
        cells.append(" / ".join(f"{other[k] / max(mine[k], 1e-9):.1f}x" for k in ("seconds", "megabytes")))
        if not math.isclose(mine["value"], other["value"], rel_tol=1e-3, abs_tol=1e-6):
            print(f"{name} {size}: {side} {other['value']:.6g}, ours {mine['value']:.6g}", file=sys.stderr)
    return cells
