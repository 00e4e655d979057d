"""Time and peak memory of the pairwise losses beside pytorch-metric-learning and plain PyTorch.

Forward and backward, unit vectors of 512 dimensions, 4 images per class. Plain is the loss as one writes it
from its definition, with dense matrices (`plain_losses.py`). Each cell runs in a process of its own, so that
peak memory is that of one loss: the growth of the resident set over the loaded process with its embeddings.
Time is the fastest of a few steps, with `--threads 1` the time of the processor, which other programs on the
machine disturb less; what fails or runs out of memory says so, and a loss whose value is not
ours is named on stderr. On a GPU, memory is what PyTorch allocated at most, and the steps are timed to the
end on the device.

    python benchmarks/losses.py --sizes 512,2048
    python benchmarks/losses.py --only supcon,ntxent --device cuda
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SIDES = ("metricid", "pytorch-metric-learning", "plain")
ROWS = (
    "triplet_all",
    "triplet_hard",
    "contrastive",
    "multi_similarity",
    "circle",
    "supcon",
    "ntxent",
    "margin",
    "nca",
    "npair",
    "lifted_structure",
    "generalized_lifted",
    "angular",
    "snr_contrastive",
    "tuplet_margin",
    "ranked_list",
    "histogram",
    "fast_ap",
    "smooth_ap",
)
Step = Callable[[Any, Any], Any]


def ours(name: str) -> Step:
    """Our loss of a row."""
    from metricid.losses import LOSSES

    options: dict[str, dict[str, Any]] = {
        "triplet_all": {
            **{"loss": "triplet", "miner": "batch_all", "normalize": True, "margin": 0.05},
            "reduction": "mean_nonzero",
        },
        "triplet_hard": {"loss": "triplet", "normalize": True, "margin": 0.05, "reduction": "mean_nonzero"},
        "ntxent": {"loss": "ntxent", "temperature": 0.07},
        "nca": {"loss": "nca", "normalize": True},
        "margin": {"loss": "margin", "learn_beta": False},
        "contrastive": {"loss": "contrastive", "form": "linear"},
        "ranked_list": {"loss": "ranked_list", "temperature": 5.0},
    }
    return LOSSES.build(options.get(name, {"loss": name}))


def peer(name: str) -> Step:
    """The loss of pytorch-metric-learning with the same meaning, and its miner where the row has one."""
    from pytorch_metric_learning import losses, miners

    simple: dict[str, Callable[[], Step]] = {
        "triplet_all": lambda: losses.TripletMarginLoss(margin=0.05),
        "contrastive": losses.ContrastiveLoss,
        "circle": losses.CircleLoss,
        "supcon": losses.SupConLoss,
        "ntxent": lambda: losses.NTXentLoss(temperature=0.07),
        "nca": losses.NCALoss,
        "npair": losses.NPairsLoss,
        "lifted_structure": losses.LiftedStructureLoss,
        "generalized_lifted": losses.GeneralizedLiftedStructureLoss,
        "angular": lambda: losses.AngularLoss(alpha=45),
        "snr_contrastive": losses.SignalToNoiseRatioContrastiveLoss,
        "tuplet_margin": losses.TupletMarginLoss,
        "ranked_list": lambda: losses.RankedListLoss(margin=0.4, Tn=5, alpha=1.2),
        "histogram": lambda: losses.HistogramLoss(n_bins=100),
        "fast_ap": losses.FastAPLoss,
        "smooth_ap": losses.SmoothAPLoss,
    }
    if name in simple:
        return simple[name]()
    mined = {
        "triplet_hard": (lambda: losses.TripletMarginLoss(margin=0.05), miners.BatchHardMiner),
        "multi_similarity": (
            lambda: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
            lambda: miners.MultiSimilarityMiner(epsilon=0.1),
        ),
        "margin": (losses.MarginLoss, miners.DistanceWeightedMiner),
    }
    loss, miner = (build() for build in mined[name])
    return lambda x, labels: loss(x, labels, miner(x, labels))


def plain(name: str) -> Step:
    """The loss in PyTorch alone."""
    from plain_losses import LOSSES

    return LOSSES[name]


def measure(side: str, name: str, size: int, device: str, memory: float, threads: int) -> dict[str, float]:
    """Value, seconds and megabytes of one loss; to be called in a fresh process."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 and device == "cpu" else time.perf_counter
    if device == "cpu":  # a tensor beyond it is refused, before the machine has to swap
        resource.setrlimit(resource.RLIMIT_AS, (int(memory * 1e9), resource.RLIM_INFINITY))
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(size, 512), dim=1).to(device).requires_grad_()
    labels = (torch.arange(size) // 4).to(device)
    step = {"metricid": ours, "pytorch-metric-learning": peer, "plain": plain}[side](name)
    (x.detach()[:64] @ x.detach()[:64].T).sum().item()  # loads the linear algebra
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        resident = torch.cuda.memory_allocated()
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 7 and sum(seconds) < 3):
        x.grad = None
        start = clock()
        value = step(x, labels)
        value.backward()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
        if seconds[0] > 15:
            break
    if device != "cpu":
        grown = (torch.cuda.max_memory_allocated() - resident) / 1e6
    else:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    return {"value": float(value.detach()), "seconds": min(seconds), "megabytes": grown}


def cell(side: str, name: str, size: int, options: argparse.Namespace) -> dict[str, float] | str:
    """One measurement in a process of its own; a word where it gives none."""
    command = [sys.executable, __file__, "--one", side, "--only", name, "--sizes", str(size)]
    command += ["--device", options.device, "--memory", str(options.memory)]
    command += ["--threads", str(options.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return f"over {options.limit:.0f} s"
    if done.returncode:
        return "out of memory" if done.returncode < 0 or "memory" in done.stderr else "fails"
    return json.loads(done.stdout)


def compare(name: str, size: int, options: argparse.Namespace) -> list[str]:
    """The cells of a row, then how many times faster ours is than each other, and how much less it takes."""
    mine, *others = (cell(side, name, size, options) for side in SIDES)
    shown = [
        f if isinstance(f, str) else f"{f['seconds']:.4f} / {f['megabytes']:.0f}" for f in (mine, *others)
    ]
    for side, other in zip(SIDES[1:], others, strict=True):
        if isinstance(mine, str) or isinstance(other, str):
            shown.append("")
            continue
        shown.append(" / ".join(f"{other[k] / max(mine[k], 1e-9):.1f}x" for k in ("seconds", "megabytes")))
        if not math.isclose(mine["value"], other["value"], rel_tol=1e-3, abs_tol=1e-6):
            print(f"{name} {size}: {side} {other['value']:.6g}, ours {mine['value']:.6g}", file=sys.stderr)
    return shown


def main() -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="128,512,2048", help="batch sizes, comma-separated")
    parser.add_argument("--only", default=",".join(ROWS), help="comma-separated names of rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a cell, the start included")
    parser.add_argument("--memory", type=float, default=16, help="GB that a cell may address on the CPU")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch on the CPU; 0 leaves its own")
    parser.add_argument("--one", choices=SIDES, help="measure one cell in this process, print JSON")
    options = parser.parse_args()
    sizes, names = [int(size) for size in options.sizes.split(",")], options.only.split(",")
    if unknown := sorted(set(names) - set(ROWS)):
        parser.error(f"no such row: {', '.join(unknown)} (one of: {', '.join(ROWS)})")
    if options.one:
        print(
            json.dumps(
                measure(options.one, names[0], sizes[0], options.device, options.memory, options.threads)
            )
        )
        return
    print(f"| loss | batch | {' | '.join(f'{side}, s / MB' for side in SIDES)} | beside it | beside plain |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        for size in sizes:
            print(f"| {name} | {size} | {' | '.join(compare(name, size, options))} |", flush=True)


if __name__ == "__main__":
    main()
