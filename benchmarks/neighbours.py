"""Each identity's nearest others: time, memory beyond the vectors, recall; and the sampler's time.

    python benchmarks/neighbours.py                          # 100,000 identities, exact
    python benchmarks/neighbours.py --identities 1000000     # approximate, on the CPU
    python benchmarks/neighbours.py --identities 1000000 --device cuda

The vectors are generated, since a classifier of a million people cannot be shipped. They are Gaussian, with
variances of their principal components that fall as 1 / i^decay, and scaled to length 1. With the default
decay of 0.8 and 512 dimensions, the effective number of dimensions, (sum v)^2 / sum v^2 of the variances, is
75; `--decay 0` is noise without structure, the worst case for an approximate search. `--families` is the
share of everyone's variance that is common to 20 look-alikes.

Each search runs in a process of its own. Memory is the most that it held during the search (VmHWM, set back
before it) less what it held before (VmRSS); on a GPU, the same of PyTorch's allocator. The copy that a search
makes of the vectors is part of it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metricid.mining import HardIdentitySampler, Neighbours, find_neighbours

CHUNK = 65_536
FAMILY = 20


def make_vectors(options: argparse.Namespace) -> tuple[torch.Tensor, float]:
    """[C, D] float32 rows of length 1 on the CPU, and their effective number of dimensions."""
    random = torch.Generator().manual_seed(options.seed)
    variance = torch.arange(1, options.dim + 1).float() ** -options.decay
    spread = (variance / variance.sum()).sqrt()
    count = options.identities
    shared = torch.randn(max(count // FAMILY, 1), options.dim, generator=random).mul_(spread)
    vectors = torch.empty(count, options.dim)
    for first in range(0, count, CHUNK):
        own = vectors[first : first + CHUNK]
        own.normal_(generator=random).mul_(spread * (1 - options.families) ** 0.5)
        if options.families:
            family = torch.randint(len(shared), (len(own),), generator=random)
            own.add_(shared[family], alpha=options.families**0.5)
        own.div_(own.norm(dim=1, keepdim=True))
    return vectors, float(variance.sum() ** 2 / variance.square().sum())


def held(name: str) -> float:
    """GB of this process: VmRSS now, or VmHWM at most."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024 / 1e9


def search(options: argparse.Namespace) -> dict[str, Any]:
    """One search in this process."""
    vectors, effective = make_vectors(options)
    vectors = vectors.to(options.device)
    on_gpu = vectors.is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e9
    else:
        Path("/proc/self/clear_refs").write_text("5")  # what making the vectors took does not count
        before = held("VmRSS")
    start = time.perf_counter(), time.process_time()
    table = find_neighbours(vectors, options.k, exact_up_to=options.exact_up_to)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    after = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else held("VmHWM")
    return {
        "identities": options.identities,
        "dim": options.dim,
        "k": options.k,
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "effective_dims": effective,
        "first_similarity": float(table.similarity[:, 0].float().mean()),
        "last_similarity": float(table.similarity[:, -1].float().mean()),
        "wall_s": wall,
        "cpu_s": cpu,
        "beyond_gb": after - before,
        "vectors_gb": vectors.numel() * 4 / 1e9,
        "recall": table.recall,
        **sampler_times(table, options),
    }


def sampler_times(table: Neighbours, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds that the sampler takes for a batch of 64 identities with 4 images each, beside `pk`'s."""
    from metricid.data.samplers import PKSampler

    labels = np.repeat(np.arange(options.identities), 4)
    hard = HardIdentitySampler(labels, 64, 4, refresh=None)
    hard.use(table)
    found = {}
    for name, sampler in (("pk_ms", PKSampler(labels, 64, 4)), ("hard_identity_ms", hard)):
        stream = sampler.batches(0)
        next(stream)  # the order of an epoch
        start = time.process_time()
        number = sum(1 for _, _ in zip(range(500), stream, strict=False))
        found[name] = (time.process_time() - start) / number * 1e3
    return found


def main() -> None:
    """Runs a search in a process of its own, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--identities", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--decay", type=float, default=0.8)
    parser.add_argument("--families", type=float, default=0.0)
    parser.add_argument("--exact-up-to", type=int, default=200_000, help="on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the text")
    parser.add_argument("--here", action="store_true", help="search in this process, print JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(search(options)))
        return
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--here"], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    if options.json:
        print(done.stdout, end="")
        return
    r = json.loads(done.stdout)
    print(f"{r['identities']:,} x {r['dim']}, {r['effective_dims']:.0f} effective dimensions; {r['device']}")
    print(
        f"mean similarity of the nearest {r['first_similarity']:.3f}, "
        f"of the last of {r['k']} {r['last_similarity']:.3f}"
    )
    print(f"search: {r['wall_s']:.0f} s ({r['cpu_s']:.0f} s of the processor), recall {r['recall']:.4f}")
    print(f"memory beyond the vectors' {r['vectors_gb']:.2f} GB: {r['beyond_gb']:.2f} GB")
    print(f"a batch of 256: {r['hard_identity_ms']:.2f} ms, random {r['pk_ms']:.2f} ms")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
