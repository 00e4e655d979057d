"""Time and peak memory of the evaluation, beside pytorch-metric-learning's AccuracyCalculator.

    python benchmarks/evaluation.py             # all cases: some five minutes on two cores
    python benchmarks/evaluation.py --small     # a tenth of the size, for a first look

Every case runs in its own process, so that its peak memory is its own; "extra MB" is the peak above the
inputs. AccuracyCalculator runs with precision_at_1, r_precision and mean_average_precision_at_r only and with
k = max_bin_count: its best case. It computes neither mAP, nor mINP, nor the same-camera rule.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

Case = Callable[[int], tuple[Callable[[], dict[str, float]], str]]


def faces(count: int, identities: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian identities with Gaussian noise: [count, dim] float32 and [count] labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(identities, size=count)
    centers = rng.standard_normal((identities, dim), dtype=np.float32)
    return centers[ids] * np.float32(0.4) + rng.standard_normal((count, dim), dtype=np.float32), ids


def market(scale: int) -> tuple[Callable[[], dict[str, float]], str]:
    """Market-1501's size: 3,368 queries, 15,913 gallery images, 512 dimensions, six cameras."""
    from metricid.evaluation import retrieval

    queries, gallery = 3368 // scale, 15913 // scale
    x, ids = faces(queries + gallery, 750, 512)
    cams = np.random.default_rng(1).integers(6, size=len(x))
    q, g = slice(0, queries), slice(queries, None)

    def run() -> dict[str, float]:
        result = retrieval(x[q], x[g], ids[q], ids[g], cams[q], cams[g])
        return {"rank-1": result.rank1, "mAP": result.mAP}

    return run, f"re-ID {queries:,} x {gallery:,} x 512"


def leave_out(scale: int) -> tuple[Callable[[], dict[str, float]], str]:
    """Leave one out among 50,000."""
    from metricid.evaluation import leave_one_out

    x, ids = faces(50_000 // scale, 10_000 // scale, 128)

    def run() -> dict[str, float]:
        result = leave_one_out(x, ids)
        return {"P@1": result.rank1, "R-precision": result.r_precision, "MAP@R": result.map_at_r}

    return run, f"leave one out {len(x):,} x 128"


def collapsed(scale: int) -> tuple[Callable[[], dict[str, float]], str]:
    """Leave one out among 50,000 equal embeddings: every distance ties."""
    from metricid.evaluation import leave_one_out

    _, ids = faces(50_000 // scale, 10_000 // scale, 1)
    x = np.full((len(ids), 128), 0.1, dtype=np.float32)

    def run() -> dict[str, float]:
        return {"P@1": leave_one_out(x, ids).rank1}

    return run, f"leave one out {len(x):,} x 128, all equal"


def peer(scale: int) -> tuple[Callable[[], dict[str, float]], str]:
    """The same search with AccuracyCalculator."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    x, ids = faces(50_000 // scale, 10_000 // scale, 128)
    unit, labels = torch.nn.functional.normalize(torch.from_numpy(x)), torch.from_numpy(ids)
    names = {"precision_at_1": "P@1", "r_precision": "R-precision", "mean_average_precision_at_r": "MAP@R"}
    calculator = AccuracyCalculator(include=tuple(names), k="max_bin_count", device=torch.device("cpu"))

    def run() -> dict[str, float]:
        values = calculator.get_accuracy(unit, labels)
        return {names[name]: float(value) for name, value in values.items()}

    return run, f"  same, pytorch-metric-learning {len(x):,} x 128"


def all_pairs(scale: int) -> tuple[Callable[[], dict[str, float]], str]:
    """Verification of all pairs of 20,000 images (200 million pairs, streamed)."""
    from metricid.evaluation import verification_all_pairs

    x, ids = faces(20_000 // scale, 3_000 // scale, 128)

    def run() -> dict[str, float]:
        result = verification_all_pairs(x, ids, exact_pairs=0)
        return {"TAR@1e-3": result.tar_at(1e-3), "EER": result.eer, "AUC": result.auc}

    return run, f"all pairs of {len(x):,} x 128, streamed"


CASES: dict[str, Case] = {
    "market": market,
    "leave_out": leave_out,
    "peer": peer,
    "collapsed": collapsed,
    "all_pairs": all_pairs,
}


def peak_mb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Runs every case in a process of its own and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tenth of the size")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = 10 if options.small else 1
    if options.in_process:
        run, title = CASES[options.cases[0]](scale)
        before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
        values = run()
        row = [title, time.perf_counter() - wall, time.process_time() - cpu, peak_mb() - before, values]
        print(json.dumps(row))
        return
    print(f"numpy {np.__version__}, faiss {faiss.__version__}, {faiss.omp_get_max_threads()} threads")
    print(f"{'case':<48} {'wall s':>8} {'CPU s':>8} {'extra MB':>9}  values")
    for name in options.cases:
        command = [sys.executable, __file__, "--in-process", "--cases", name]
        done = subprocess.run(
            command + ["--small"] * options.small, check=True, capture_output=True, text=True
        )
        title, wall, cpu, extra, values = json.loads(done.stdout.splitlines()[-1])
        shown = ", ".join(f"{key} {value:.5f}" for key, value in values.items())
        print(f"{title:<48} {wall:8.1f} {cpu:8.1f} {extra:9.0f}  {shown}", flush=True)


if __name__ == "__main__":
    main()
