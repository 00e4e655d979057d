"""How much of the bare network's speed the whole training loop keeps.

Loops over the same backbone, optimiser, precision and batch size, each in a process of its own:

- bare: forward + backward + step on one batch that lies in memory, as one writes them by hand;
- bare, memory kept: the same with the trainer's setting of the C library (`metricid.training.memory`);
- metricid: the trainer's own loop over JPEG files in a tar (decode, augment, loss, clipping, log);
- plain: what one writes by hand: torchvision's ImageFolder with PIL, a DataLoader, a PyTorch loop.

They take turns; a ratio is the median of the ratios of the rounds, so that a machine that slows down for a
while slows both sides of it. An idle process takes no time.

    python benchmarks/training.py                     # 112x112 JPEGs, resnet18, softmax
    python benchmarks/training.py --batch-size 64 --repeats 15 --precision fp32
"""

import argparse
import io
import json
import logging
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import torch
import torchvision
from torch import nn

from metricid.config import RunConfig
from metricid.data.synthetic import SyntheticFaces
from metricid.training.build import Run, build_run, check_recipe
from metricid.training.distributed import World, pick_device
from metricid.training.memory import keep_freed_memory
from metricid.training.optim import build_optimizer, parameter_groups
from metricid.training.precision import Precision, pick_precision
from metricid.training.trainer import Trainer

SIZE = (112, 112)
KEPT = "bare, memory kept"


def write_images(folder: Path, identities: int, images: int) -> None:
    """Generated faces as JPEGs (quality 95), as a folder and as a tar of the same files."""
    faces = SyntheticFaces(identities=identities, images=images, size=SIZE)
    with tarfile.open(folder / "faces.tar", "w") as tar:
        for path, identity in zip(faces.paths(), faces.manifest().identities, strict=True):
            pixels = cv2.cvtColor(faces.read(path), cv2.COLOR_RGB2BGR)
            data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            name = f"{identity}/{Path(path).name}.jpg".replace(":", "_")
            file = folder / "faces" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def recipe(folder: Path, options: argparse.Namespace) -> RunConfig:
    """The recipe whose loop is measured: everything that an ordinary run does is on."""
    values: dict[str, Any] = {
        "name": "benchmark",
        "runs": str(folder / "runs"),
        "device": options.device,
        "data": {
            "train": "folder",
            "root": str(folder / "faces.tar"),
            "size": list(SIZE),
            "augment": {"preset": options.augment},
            "sampler": {"name": "shuffle", "batch_size": options.batch_size},
        },
        "model": {"backbone": options.backbone, "neck": "bnneck"},
        "objective": [{"loss": "softmax"}],
        "train": {"images": 10**9, "precision": options.precision},
        "evaluation": {"every": 0},
        "checkpoint": {"every_epochs": 10**6, "every_minutes": None},
    }
    return check_recipe(values, "benchmark")


def train_step(
    embedder: nn.Module,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Forward, backward and step, as one writes it by hand."""
    optimizer.zero_grad(set_to_none=True)
    with precision.autocast():
        logits = head(embedder(images).embedding)
    nn.functional.cross_entropy(logits.float(), labels).backward()
    optimizer.step()


def bare_loop(run: Run, folder: Path) -> Callable[[int], float]:
    """Forward, backward and step on a batch that lies in memory, already normalised."""
    device, precision, batch = run.world.device, run.precision, run.loader.sampler.batch_size
    embedder = build_run(run.config, run.world).embedder
    head = nn.Linear(embedder.embedding_dim, len(run.label_map), bias=False).to(device)
    optimizer = build_optimizer(
        parameter_groups(embedder, {"softmax": head}, run.config.optim), run.config.optim, device
    )
    images = torch.randn(batch, 3, *SIZE, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, len(run.label_map), (batch,), device=device)

    def measure(steps: int) -> float:
        def step() -> None:
            train_step(embedder, head, optimizer, precision, images, labels)

        return images_per_second(step, steps, batch, device)

    return measure


def metricid_loop(run: Run, folder: Path) -> Callable[[int], float]:
    """The trainer's loop as it is; every piece of it runs."""
    device, batch = run.world.device, run.loader.sampler.batch_size

    def measure(steps: int) -> float:
        trainer = Trainer(run, folder / "run")
        trainer.resume()  # from the end of the repeat before
        trainer.total_steps = trainer.position.step + 4 + steps
        starts: list[float] = []
        step = trainer._step

        def timed(*arguments: Any) -> None:
            synchronize(device)
            starts.append(time.perf_counter())
            step(*arguments)

        trainer._step = timed  # type: ignore[assignment]
        trainer.fit()
        return batch * steps / (starts[-1] - starts[-1 - steps])

    return measure


def plain_loop(run: Run, folder: Path) -> Callable[[int], float]:
    """ImageFolder + PIL + DataLoader + a loop, with the same network, optimiser and precision.

    One worker less than cores, as PyTorch's own advice has it; with none it was slower still.
    """
    device, precision, batch = run.world.device, run.precision, run.loader.sampler.batch_size
    tensor = torchvision.transforms.Compose(
        [
            torchvision.transforms.RandomResizedCrop(SIZE, scale=(0.75, 1.0), ratio=(0.9, 1.1)),
            torchvision.transforms.RandomHorizontalFlip(),
            torchvision.transforms.ColorJitter(0.3, 0.3, 0.3),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    dataset = torchvision.datasets.ImageFolder(str(folder / "faces"), tensor)
    loader = torch.utils.data.DataLoader(
        dataset, batch, shuffle=True, drop_last=True, num_workers=max(1, (os.cpu_count() or 1) - 1)
    )
    embedder = build_run(run.config, run.world).embedder.to(memory_format=torch.contiguous_format)
    head = nn.Linear(embedder.embedding_dim, len(run.label_map), bias=False).to(device)
    optimizer = torch.optim.AdamW([*embedder.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.05)

    def endless() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def measure(steps: int) -> float:
        def step() -> None:
            images, labels = next(batches)
            train_step(embedder, head, optimizer, precision, images.to(device), labels.to(device))

        return images_per_second(step, steps, batch, device)

    return measure


def images_per_second(step: Callable[[], None], steps: int, batch: int, device: torch.device) -> float:
    """Speed after three steps to warm up."""
    for _ in range(3):
        step()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return steps * batch / (time.perf_counter() - began)


def synchronize(device: torch.device) -> None:
    """Waits for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


LOOPS = {"bare": bare_loop, KEPT: bare_loop, "metricid": metricid_loop, "plain": plain_loop}


def serve(name: str, folder: Path, options: argparse.Namespace, pipe: Connection) -> None:
    """One loop in a process: answers each number of steps with images per second."""
    logging.disable()
    device = pick_device(options.device)
    if device.type == "cpu" and name in (KEPT, "metricid"):
        keep_freed_memory()
    measure = LOOPS[name](build_run(recipe(folder, options), World(0, 1, device)), folder)
    while True:
        pipe.send(measure(pipe.recv()))


def measure_in_turns(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of each loop in each round."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name in LOOPS:
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, folder, options, theirs))
        process.start()
        processes.append(process)
        theirs.close()
    speeds: dict[str, list[float]] = {name: [] for name in LOOPS}
    try:
        for turn in range(options.repeats + 1):
            for name, pipe in pipes.items():
                pipe.send(options.steps)
                speed = pipe.recv()
                if turn:  # the first round starts workers and fills caches
                    speeds[name].append(speed)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return speeds


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--augment", default="face", choices=["face", "plain"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, identities=100, images=40)
        speeds = measure_in_turns(folder, options)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        f"metricid / {other}": statistics.median(
            ours / theirs for ours, theirs in zip(speeds["metricid"], speeds[other], strict=True)
        )
        for other in LOOPS
        if other != "metricid"
    }
    precision = pick_precision(options.precision, device).name
    cpu = f"CPU, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    if options.json:
        print(json.dumps({"device": where, "precision": precision, "speeds": speeds, "ratios": ratios}))
        return
    print(f"{options.backbone}, 112x112 JPEG, batch {options.batch_size}, {precision}, {where}")
    for name, values in speeds.items():
        print(f"{name:18} {medians[name]:7.1f} img/s  (runs: {', '.join(f'{v:.1f}' for v in values)})")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")


if __name__ == "__main__":
    main()
