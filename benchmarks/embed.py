"""How much of the bare forward pass's speed `metricid embed` keeps.

Loops over the same network, precision and batch size, each in a process of its own:

- bare: the network on one normalised batch that lies in memory, as one writes it by hand;
- bare, memory kept: the same with the command's setting of the C library (`metricid.training.memory`);
- metricid: the loop of the command over JPEG files in a tar (start of workers, decode, normalise, forward,
  parts on disk, joined into one Parquet file).

They take turns; a ratio is the median of the ratios of the rounds, so that a machine that slows down for a
while slows both sides of it. An idle process takes no time. The same ratio is given in seconds of processor
time (of workers, too), which other programs on the machine disturb less.

    python benchmarks/embed.py                      # 112x112 JPEGs, resnet18
    python benchmarks/embed.py --images 4096 --rounds 3 --precision fp32
    python benchmarks/embed.py --memory             # peak memory for 1,000 and for 8,000 images
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from metricid.data.embedding_file import write_embeddings
from metricid.data.embedding_parts import PartFolder
from metricid.data.factory import pick_workers
from metricid.data.layouts import folder as folder_layout
from metricid.data.sources import TarSource
from metricid.data.synthetic import SyntheticFaces
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing
from metricid.models.inference import CheckpointModel
from metricid.training.distributed import pick_device
from metricid.training.embed_parts import embed_parts
from metricid.training.memory import keep_freed_memory
from metricid.training.precision import Precision, pick_precision

SIZE = (112, 112)
DRAWN = 500


def draw_faces() -> list[bytes]:
    """Generated faces as JPEGs (quality 95)."""
    faces = SyntheticFaces(identities=DRAWN // 5, images=5, size=SIZE)
    stored = []
    for path in tqdm(faces.paths(), desc="draw faces", unit="img", leave=False):
        pixels = cv2.cvtColor(faces.read(path), cv2.COLOR_RGB2BGR)
        stored.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    return stored


def write_images(file: Path, stored: list[bytes], count: int) -> None:
    """A tar of images, each stored under several names."""
    with tarfile.open(file, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number % 100:03d}/{number:07d}.jpg")
            member.size = len(stored[number % DRAWN])
            tar.addfile(member, io.BytesIO(stored[number % DRAWN]))


@dataclass(frozen=True)
class Run:
    """One turn of a loop.

    Attributes:
        speed: images per second.
        cpu: seconds of processor time per image, of the process and its workers.
        waited: share of the time spent waiting for images.
        peak_mib: the most memory that the process has held so far, without its workers.
    """

    speed: float
    cpu: float
    waited: float
    peak_mib: float


class Clock:
    """Starts a measurement."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def stop(self, images: int, waited: float = 0.0) -> Run:
        """Ends it."""
        seconds, cpu = time.perf_counter() - self._wall, cpu_seconds() - self._cpu
        # What getrusage calls the peak counts the parent's memory at the start of this process.
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return Run(images / seconds, cpu / images, waited, peak / 1024)


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


def bare(options: argparse.Namespace, folder: Path) -> Callable[[], Run]:
    """The network alone, after a batch to warm up."""
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    model = build_model(options.backbone, options.dimension, device, precision)
    batch = torch.randn(options.batch_size, 3, *SIZE, device=device).to(memory_format=torch.channels_last)
    steps = max(1, options.images // options.batch_size)

    def measure() -> Run:
        with torch.inference_mode(), precision.autocast():
            model.embedder(batch)
            synchronize(device)
            clock = Clock()
            for _ in range(steps):
                model.embedder(batch)
            synchronize(device)
        return clock.stop(steps * options.batch_size)

    return measure


def embed(options: argparse.Namespace, folder: Path) -> Callable[[], Run]:
    """The command's loop."""
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    model = build_model(options.backbone, options.dimension, device, precision)
    source = TarSource(folder / "faces.tar")
    table = folder_layout.read(source)
    target = folder / "e.parquet"

    def measure() -> Run:
        clock = Clock()
        bar = tqdm(total=len(table), desc="embed", unit="img", mininterval=1.0, leave=False)
        parts = PartFolder(target, len(table), options.part_images)
        with bar, parts.locked():
            parts.bind({"model": model.fingerprint}, afresh=True)
            speed = embed_parts(
                model,
                source,
                table,
                parts,
                range(len(parts)),
                device=device,
                batch_size=options.batch_size,
                flip=False,
                workers=pick_workers("auto" if options.workers is None else options.workers, 1, device),
                bar=bar,
            )
            blocks = (parts.read(part)[1] for part in range(len(parts)))
            write_embeddings(target, table, blocks, model.describe(), dimension=model.output_dim)
            parts.remove()
        return clock.stop(len(table), speed.waited / speed.seconds)

    return measure


def synchronize(device: torch.device) -> None:
    """Waits for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


KEPT = "bare, memory kept"
LOOPS = {"bare": bare, KEPT: bare, "metricid": embed}


def serve(name: str, folder: Path, options: argparse.Namespace, pipe: Connection) -> None:
    """One loop in a process: answers each message with a turn of it, and ends with None."""
    if pick_device(options.device).type == "cpu" and name != "bare":
        keep_freed_memory()
    measure = LOOPS[name](options, folder)
    while pipe.recv() is not None:
        pipe.send(measure())


def measure_in_turns(
    names: Iterable[str], folder: Path, options: argparse.Namespace, *, first: int = 1
) -> dict[str, list[Run]]:
    """The turns of each loop; those before `first` fill caches and do not count."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    runs: dict[str, list[Run]] = {name: [] for name in names}
    try:
        for name in runs:
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=serve, args=(name, folder, options, theirs))
            process.start()
            processes.append(process)
            theirs.close()
        for turn in range(options.rounds + first):
            for name, pipe in pipes.items():
                pipe.send(turn)
                run = pipe.recv()
                say(f"round {turn} of {options.rounds}, {name}: {run.speed:.0f} img/s")
                if turn >= first:
                    runs[name].append(run)
        for pipe in pipes.values():
            pipe.send(None)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return runs


def measure_memory(options: argparse.Namespace) -> None:
    """Peak memory of the loop for few and for many images, each in a process of its own."""
    options.backbone, options.dimension, options.part_images, options.rounds = "test_resnet", 4096, 256, 1
    stored = draw_faces()
    found = []
    for count in (1_000, 8_000):
        with tempfile.TemporaryDirectory() as name:
            write_images(Path(name) / "faces.tar", stored, count)
            run = measure_in_turns(["metricid"], Path(name), options, first=0)["metricid"][0]
        size = options.dimension * 4 * count / 2**20
        found.append({"images": count, "embeddings_mib": size, "peak_mib": run.peak_mib})
        if not options.json:
            line = f"{count} images of {size:.0f} MiB of embeddings: peak {run.peak_mib:.0f} MiB"
            print(line, flush=True)
    if options.json:
        print(json.dumps(found))


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--dimension", type=int, help="width of the embedding (default: the network's)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--part-images", type=int, default=2048, help="a multiple of the batch size")
    parser.add_argument("--images", type=int, default=2048, help="of a turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.memory:
        measure_memory(options)
        return
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name) / "faces.tar", draw_faces(), options.images)
        runs = measure_in_turns(LOOPS, Path(name), options)
    ours = runs["metricid"]
    ratios = {
        other: {
            "speed": [a.speed / b.speed for a, b in zip(ours, runs[other], strict=True)],
            "processor": [b.cpu / a.cpu for a, b in zip(ours, runs[other], strict=True)],
        }
        for other in LOOPS
        if other != "metricid"
    }
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device).name
    cpu = f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    if options.json:
        loops = {name: [asdict(run) for run in turns] for name, turns in runs.items()}
        print(json.dumps({"device": where, "precision": precision, "loops": loops, "ratios": ratios}))
        return
    print(f"{options.backbone}, 112x112 JPEG, batch {options.batch_size}, {precision}, {where}")
    print(f"load average {os.getloadavg()[0]:.1f}")
    for name, turns in runs.items():
        shown = ", ".join(f"{run.speed:.0f}" for run in turns)
        print(f"{name:18} {statistics.median(run.speed for run in turns):7.0f} img/s  (turns: {shown})")
    for other, values in ratios.items():
        shown = ", ".join(f"{ratio:.3f}" for ratio in values["speed"])
        print(
            f"metricid / {other}: {statistics.median(values['speed']):.3f}, in processor time "
            f"{statistics.median(values['processor']):.3f}  (rounds: {shown})"
        )
    print(f"waiting for images: {statistics.median(run.waited for run in ours):.1%} of the time")


if __name__ == "__main__":
    main()
