"""How much of the bare forward pass's speed `metricid embed` keeps.

Measured in turns in one process, over the same network, precision and batch size:

- bare: the network on one normalised batch that lies in memory;
- embed: the loop of the command over JPEG files in a tar (start of the workers, decode, forward, parts on
  disk, joined into one Parquet file).

The ratio is the median of the ratios of the rounds, each against the mean of the bare runs before and after
it, so that a machine that slows down for a while slows both sides. On a CPU the same ratio is given in
seconds of processor time (of the workers, too), which other programs on the machine disturb less.

    python benchmarks/embed.py                      # 112x112 JPEGs, resnet18
    python benchmarks/embed.py --images 4000 --rounds 3 --precision fp32
    python benchmarks/embed.py --memory             # peak memory for 1,000 and for 8,000 images
"""

import argparse
import io
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from metricid.data.embedding_file import write_embeddings
from metricid.data.embedding_parts import PartFolder
from metricid.data.factory import pick_workers
from metricid.data.layouts import folder as folder_layout
from metricid.data.manifest import Manifest
from metricid.data.sources import TarSource
from metricid.data.synthetic import SyntheticFaces
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing
from metricid.models.inference import CheckpointModel
from metricid.training.distributed import pick_device
from metricid.training.embed_parts import Speed, embed_parts
from metricid.training.precision import Precision, pick_precision

SIZE = (112, 112)
DRAWN = 500


def write_images(file: Path, count: int) -> None:
    """A tar of JPEGs (quality 95): generated faces, each drawn once and stored under several names."""
    faces = SyntheticFaces(identities=DRAWN // 5, images=5, size=SIZE)
    stored = []
    for path in faces.paths():
        pixels = cv2.cvtColor(faces.read(path), cv2.COLOR_RGB2BGR)
        stored.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    with tarfile.open(file, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number % 100:03d}/{number:07d}.jpg")
            member.size = len(stored[number % DRAWN])
            tar.addfile(member, io.BytesIO(stored[number % DRAWN]))


@dataclass(frozen=True)
class Run:
    """Images per second, and seconds of processor time per image, of this process and its workers."""

    speed: float
    cpu: float


class Clock:
    """Starts a measurement."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def stop(self, images: int) -> Run:
        """Ends it."""
        return Run(images / (time.perf_counter() - self._wall), (cpu_seconds() - self._cpu) / images)


def cpu_seconds() -> float:
    """Processor time of this process and of its ended children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def build_model(
    backbone: str, dimension: int | None, device: torch.device, precision: Precision
) -> CheckpointModel:
    """An untrained network; speed does not depend on the weights."""
    structure = EmbedderConfig(backbone, Preprocessing(SIZE), neck="bnneck", embedding_dim=dimension)
    embedder = Embedder(structure)
    return CheckpointModel(
        embedder, name=backbone, device=device, autocast=precision.autocast, precision=precision.name
    )


def bare(model: CheckpointModel, precision: Precision, batch_size: int, images: int) -> Run:
    """The network alone, after two batches to warm up."""
    batch = torch.randn(batch_size, 3, *SIZE, device=model.device).to(memory_format=torch.channels_last)
    steps = max(1, images // batch_size)
    with torch.inference_mode(), precision.autocast():
        for _ in range(2):
            model.embedder(batch)
        synchronize(model.device)
        clock = Clock()
        for _ in range(steps):
            model.embedder(batch)
        synchronize(model.device)
    return clock.stop(steps * batch_size)


def embed(
    model: CheckpointModel, source: TarSource, table: Manifest, target: Path, options: argparse.Namespace
) -> tuple[Run, Speed]:
    """The command's loop, and what it says of itself."""
    clock = Clock()
    parts = PartFolder(target, len(table), options.part_images)
    with parts.locked():
        parts.bind({"model": model.fingerprint}, afresh=True)
        speed = embed_parts(
            model,
            source,
            table,
            parts,
            range(len(parts)),
            device=model.device,
            batch_size=options.batch_size,
            flip=False,
            workers=pick_workers("auto" if options.workers is None else options.workers, 1),
        )
        blocks = (parts.read(part)[1] for part in range(len(parts)))
        write_embeddings(target, table, blocks, model.describe(), dimension=model.output_dim)
        parts.remove()
    return clock.stop(len(table)), speed


def synchronize(device: torch.device) -> None:
    """Waits for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_memory() -> None:
    """Peak memory of the loop for few and for many images, each in a process of its own."""
    options = ["--rounds", "0", "--backbone", "test_resnet", "--dimension", "4096", "--part-images", "256"]
    for count in (1_000, 8_000):
        words = [sys.executable, __file__, "--images", str(count), *options, "--json"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        print(
            f"{count} images of {4096 * 4 * count / 2**20:.0f} MiB of embeddings: "
            f"peak {json.loads(done.stdout)['peak_mib']:.0f} MiB"
        )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--dimension", type=int, help="width of the embedding (default: the network's)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--part-images", type=int, default=2048, help="a multiple of the batch size")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.memory:
        measure_memory()
        return
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name) / "faces.tar", options.images)
        source = TarSource(Path(name) / "faces.tar")
        table = folder_layout.read(source)
        model = build_model(options.backbone, options.dimension, device, precision)
        target = Path(name) / "e.parquet"
        probe = min(options.images, 1024)
        first = table.select(np.arange(probe)) if options.rounds else table
        embed(model, source, first, target, options)
        alone, ours, waited = [bare(model, precision, options.batch_size, probe)], [], []
        for _ in range(options.rounds):
            run, speed = embed(model, source, table, target, options)
            ours.append(run)
            waited.append(speed.waited / speed.seconds)
            alone.append(bare(model, precision, options.batch_size, probe))
    around = list(itertools.pairwise(alone))
    result: dict[str, Any] = {
        "bare": [run.speed for run in alone],
        "embed": [run.speed for run in ours],
        "ratios": [
            run.speed / statistics.mean(other.speed for other in pair)
            for run, pair in zip(ours, around, strict=True)
        ],
        "cpu_ratios": [
            statistics.mean(other.cpu for other in pair) / run.cpu
            for run, pair in zip(ours, around, strict=True)
        ],
        "waited": waited,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    cpu = f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    result |= {"device": where, "precision": precision.name}
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.backbone}, 112x112 JPEG, batch {options.batch_size}, {precision.name}, {where}")
    for label in ("bare", "embed"):
        shown = ", ".join(f"{value:.0f}" for value in result[label])
        print(f"{label:6} {statistics.median(result[label]):7.0f} img/s  (runs: {shown})")
    for label, name in (("embed / bare", "ratios"), ("the same in processor time", "cpu_ratios")):
        values = result[name]
        print(f"{label}: {statistics.median(values):.3f}  (rounds: {', '.join(f'{r:.3f}' for r in values)})")
    print(f"waiting for images: {statistics.median(result['waited']):.1%} of the time")


if __name__ == "__main__":
    main()
