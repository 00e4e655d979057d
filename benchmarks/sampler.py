"""What the `hard_identity` sampler costs a training step: resnet18 at 112 x 112, batch 256.

    python benchmarks/sampler.py
    python benchmarks/sampler.py --device cuda --steps 200

Batches are drawn in the process that trains, where nothing hides the time of a sampler, and all show the same
random images. The sampler's share has two parts: what it does at every step (compose the batch, take the
embeddings into the running centers, look whether a search is due), and what a search adds to the steps beside
it. The first is timed by itself, for steps differ by more than it takes, less what random batches cost; the
device is waited for before and after. A search is due every `--refresh` steps; its time is that by
which these steps were longer, divided by `--refresh`. On a CPU a search takes the cores from the training, on
a GPU it runs on a stream of its own.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import timm
import torch

from metricid.data.samplers import PKSampler
from metricid.losses import SupConLoss
from metricid.mining import BackgroundSearch, HardIdentitySampler, RunningCenters, find_neighbours

WIDTH = 512
NEIGHBOURS = 50  # as the sampler's default
WARM = 2  # steps before the timed ones
T = TypeVar("T")


class Training:
    """Steps of a network on random images, whatever the batch."""

    def __init__(self, options: argparse.Namespace):
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.model = timm.create_model("resnet18", num_classes=WIDTH).to(self.device)
        self.loss = SupConLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.images = torch.randn(options.batch, 3, 112, 112, device=self.device)
        self.labels = torch.arange(options.identities).repeat_interleave(options.images)

    def step(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: embeddings [B, D] and their labels [B]."""
        labels = self.labels[torch.from_numpy(rows)].to(self.device)
        embeddings = self.model(self.images)
        loss = self.loss(torch.nn.functional.normalize(embeddings), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return embeddings.detach(), labels

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def timed(training: Training, call: Callable[[], T]) -> tuple[float, T]:
    """Seconds that it took, until the device was done, and what it gave."""
    training.wait()
    start = time.perf_counter()
    result = call()
    training.wait()
    return time.perf_counter() - start, result


def endless(sampler: PKSampler | HardIdentitySampler) -> Iterator[np.ndarray]:
    """Batches of one epoch after another."""
    epoch = 0
    while True:
        yield from sampler.batches(epoch)
        epoch += 1


def measure(options: argparse.Namespace) -> dict[str, float | str]:
    """Everything, in this process."""
    training = Training(options)
    labels = training.labels.numpy()
    groups = options.batch // options.images
    plain = endless(PKSampler(labels, groups, options.images))
    centers = RunningCenters(options.identities, WIDTH).to(training.device)
    vectors = torch.nn.functional.normalize(torch.randn(options.identities, WIDTH), dim=1)
    centers.load_state_dict({**centers.state_dict(), "vectors": vectors.to(training.device)})
    hard = HardIdentitySampler(labels, groups, options.images, refresh=None)
    hard.use(find_neighbours(centers.vectors, NEIGHBOURS))
    batches = endless(hard)
    draws, steps, works = [], [], []
    for done in range(1, WARM + options.steps + 1):
        draw, rows = timed(training, lambda: next(plain))
        step, _ = timed(training, lambda rows=rows: training.step(rows))
        compose, rows = timed(training, lambda: next(batches))
        found = training.step(rows)
        update, _ = timed(training, lambda found=found: centers.update(*found))
        look, _ = timed(training, lambda done=done: hard.after_step(done, centers.vectors))
        if done > WARM:
            draws, steps, works = [*draws, draw], [*steps, draw + step], [*works, compose + update + look]
    step, every = statistics.median(steps), statistics.median(works) - statistics.median(draws)

    start, number = time.perf_counter(), 0
    beside = BackgroundSearch(centers.vectors, NEIGHBOURS)  # what the sampler starts when one is due
    while not beside.ready:
        training.step(next(plain))
        training.wait()
        number += 1
    search = time.perf_counter() - start - number * step
    return {
        "device": torch.cuda.get_device_name() if training.device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "step_s": step,
        "every_step_s": every,
        "steps_beside_search": number,
        "search_s": search,
        "share": (every + search / options.refresh) / step,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--identities", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=4, help="of each identity in a batch")
    parser.add_argument("--steps", type=int, default=12, help="timed of each training")
    parser.add_argument("--refresh", type=int, default=1000, help="steps between two searches")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the text")
    options = parser.parse_args()
    r = measure(options)
    if options.json:
        print(json.dumps(r))
        return
    print(f"{options.identities:,} identities, batch {options.batch}; {r['device']}, {r['threads']} threads")
    print(f"a step with random identities: {r['step_s'] * 1e3:.1f} ms")
    print(f"the sampler adds {r['every_step_s'] * 1e3:.2f} ms to each")
    print(
        f"a search adds {r['search_s']:.1f} s to the {r['steps_beside_search']} steps beside it, "
        f"{r['search_s'] / options.refresh * 1e3:.2f} ms to each of {options.refresh}"
    )
    print(f"together {r['share']:.2%} of a step")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
