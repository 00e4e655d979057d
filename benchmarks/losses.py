"""Time and peak memory of the pairwise losses beside pytorch-metric-learning, forward and backward.

Unit vectors of 512 dimensions, 4 images per class. Each cell runs in a process of its own, so that peak
memory is that of one loss: the growth of the resident set over the loaded process with its embeddings. Time
is the fastest of a few steps; a peer that fails or runs out of memory says so. On a GPU, memory is what
PyTorch allocated at most, and the steps are timed to the end on the device.

    python benchmarks/losses.py --sizes 512,2048
    python benchmarks/losses.py --only supcon,ntxent --device cuda
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

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
        "triplet_all": {"loss": "triplet", "miner": "batch_all", "normalize": True, "margin": 0.05},
        "triplet_hard": {"loss": "triplet", "normalize": True, "margin": 0.05},
        "ntxent": {"loss": "ntxent", "temperature": 0.07},
        "nca": {"loss": "nca", "normalize": True},
        "margin": {"loss": "margin", "learn_beta": False},
        "contrastive": {"loss": "contrastive", "form": "linear"},
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
        "angular": losses.AngularLoss,
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


def measure(side: str, name: str, size: int, device: str) -> dict[str, float]:
    """Seconds and megabytes of one loss; to be called in a fresh process."""
    import torch

    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(size, 512), dim=1).to(device).requires_grad_()
    labels = (torch.arange(size) // 4).to(device)
    step = ours(name) if side == "ours" else peer(name)
    (x.detach()[:64] @ x.detach()[:64].T).sum().item()  # loads the linear algebra
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        resident = torch.cuda.memory_allocated()
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 7 and sum(seconds) < 3):
        x.grad = None
        start = time.perf_counter()
        step(x, labels).backward()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if seconds[0] > 15:
            break
    if device != "cpu":
        grown = (torch.cuda.max_memory_allocated() - resident) / 1e6
    else:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    return {"seconds": min(seconds), "megabytes": grown}


def cell(side: str, name: str, size: int, device: str, limit: float) -> dict[str, float] | str:
    """One measurement in a process of its own; a word where it gives none."""
    command = [
        sys.executable,
        __file__,
        "--one",
        side,
        "--only",
        name,
        "--sizes",
        str(size),
        "--device",
        device,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"over {limit:.0f} s"
    if done.returncode:
        return "out of memory" if done.returncode < 0 or "memory" in done.stderr else "fails"
    return json.loads(done.stdout)


def main() -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="128,512,2048", help="batch sizes, comma-separated")
    parser.add_argument("--only", default=",".join(ROWS), help="comma-separated names of rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a cell, the start included")
    parser.add_argument(
        "--one", choices=["ours", "peer"], help="measure one cell in this process, print JSON"
    )
    options = parser.parse_args()
    sizes, names = [int(size) for size in options.sizes.split(",")], options.only.split(",")
    if unknown := sorted(set(names) - set(ROWS)):
        parser.error(f"no such row: {', '.join(unknown)} (one of: {', '.join(ROWS)})")
    if options.one:
        print(json.dumps(measure(options.one, names[0], sizes[0], options.device)))
        return
    print("| loss | batch | metricid s / MB | pytorch-metric-learning s / MB | faster | less memory |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in names:
        for size in sizes:
            found = [cell(side, name, size, options.device, options.limit) for side in ("ours", "peer")]
            shown = [f if isinstance(f, str) else f"{f['seconds']:.4f} / {f['megabytes']:.0f}" for f in found]
            ratios = ["", ""]
            if not isinstance(found[0], str) and not isinstance(found[1], str):
                mine, theirs = found
                ratios = [f"{theirs[k] / max(mine[k], 1e-9):.1f}x" for k in ("seconds", "megabytes")]
            print(f"| {name} | {size} | " + " | ".join(shown + ratios) + " |", flush=True)


if __name__ == "__main__":
    main()
