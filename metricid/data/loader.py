"""Batches from worker processes, in an order that does not depend on them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from metricid.data.dataset import Chunk, ImageDataset, Key
from metricid.data.samplers import Sampler
from metricid.errors import InputError


@dataclass(frozen=True)
class Batch:
    """What a training step takes.

    Attributes:
        images: [B, H, W, 3] uint8, RGB.
        labels: [B] int64.
        index: [B] int64, the manifest rows that the images are from.
        masks: [B, H, W] uint8, 0 or 1, and 255 throughout for a missing one; None where none are read.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    masks: torch.Tensor | None = None


class Loader:
    """Turns a sampler's batches into images, with worker processes that live as long as the loader.

    Attributes:
        wait_seconds: time the consumer has spent waiting for batches so far.
        corrupt: paths of the images skipped so far, each once, in the order of their discovery.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: Sampler,
        *,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ):
        """
        Args:
            dataset: the images.
            sampler: batches of dataset indices.
            workers: processes that read and augment; 0 does it in this process.
            prefetch: batches that each worker prepares ahead.
            pin_memory: page-locked batches for faster copies to a GPU; without a GPU it has no effect.

        Raises:
            InputError: a negative number of workers, or a prefetch below 1.
        """
        self.dataset, self.sampler, self.workers = dataset, sampler, workers
        self.wait_seconds = 0.0
        self.corrupt: list[str] = []
        self._known_corrupt: set[str] = set()
        self._keys = _EpochKeys(sampler)
        self._options = (workers, prefetch, pin_memory)
        self._loader: DataLoader[Any] | None = worker_loader(dataset, self._keys, *self._options)

    def num_batches(self, epoch: int) -> int:
        """Batches in an epoch."""
        return self.sampler.num_batches(epoch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first `start` (for a run that resumes within it).

        Raises:
            InputError: an image cannot be used, or a worker process died.
        """
        if self._loader is None:
            self._loader = worker_loader(self.dataset, self._keys, *self._options)
        self._keys.epoch, self._keys.start = epoch, start
        began = time.perf_counter()
        try:
            for chunk in chunks(self._loader):
                self.corrupt += [path for path in chunk.corrupt if path not in self._known_corrupt]
                self._known_corrupt.update(chunk.corrupt)
                labels, rows = torch.from_numpy(chunk.labels), torch.from_numpy(chunk.rows)
                batch = Batch(chunk.images, labels, rows, chunk.masks)
                self.wait_seconds += time.perf_counter() - began
                yield batch
                began = time.perf_counter()
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Ends the worker processes; another `epoch` starts new ones."""
        self._loader = None


class _EpochKeys:
    """A batch sampler for the DataLoader: the keys of one epoch, chosen by its two attributes."""

    def __init__(self, sampler: Sampler):
        self.sampler, self.epoch, self.start = sampler, 0, 0

    def __iter__(self) -> Iterator[list[Key]]:
        size, epoch = self.sampler.batch_size, self.epoch
        joined = size * self.sampler.world_size
        for step, batch in enumerate(self.sampler.batches(epoch, self.start), self.start):
            first = step * joined + self.sampler.rank * size
            yield [(epoch, first + place, index) for place, index in enumerate(batch.tolist())]


def worker_loader(
    dataset: Dataset[Any],
    batches: Any,
    workers: int,
    prefetch: int,
    pin_memory: bool,
    persistent: bool = True,
) -> DataLoader[Any]:
    """PyTorch's loader with forked workers that leave signals to this process.

    Raises:
        InputError: a negative number of workers, or a prefetch below 1.
    """
    if workers < 0 or prefetch < 1:
        raise InputError(f"workers must be 0 or more and prefetch 1 or more, not {workers} and {prefetch}")
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        prefetch_factor=prefetch if workers else None,
        persistent_workers=persistent and workers > 0,
        multiprocessing_context=_context() if workers else None,
        # Its own generator: drawing worker seeds from the global one would change what a resumed run draws.
        generator=torch.Generator(),
    )


def _context() -> Any:
    """Forked workers share the manifest and the tar index with this process instead of copying them."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


@contextmanager
def _signals_held() -> Iterator[None]:
    """Holds signals back, also in the processes started meanwhile: they begin with a default handler."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:
    """Leaves Ctrl-C and a SIGTERM sent to all processes to the training process, and keeps to one core.

    A SIGTERM of the training process itself, or after its end, still ends the worker at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # SIGTERM stays held, as it was when this process began
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    cv2.setNumThreads(0)


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent == os.getppid():
        pass
    os._exit(0)


def _as_is(chunk: Any) -> Any:
    return chunk


def _lost_worker(message: str) -> bool:
    """Whether PyTorch speaks of a worker that died or found no memory, not of an error in our code there."""
    if message.startswith("Caught "):  # an error raised in a worker, with its traceback
        return "shared memory" in message or "No space left" in message
    return "DataLoader worker" in message


def chunks(loader: DataLoader[Any]) -> Iterator[Chunk]:
    """Chunks in order; errors of the user's come as themselves, without the worker's traceback."""
    with _signals_held():
        stream, chunk = iter(loader), None
    try:
        while True:
            try:
                chunk = next(stream, None)
            except RuntimeError as error:
                if not _lost_worker(str(error)):
                    raise
                chunk = Chunk.failed(
                    InputError(
                        "a loader process was killed, as a rule for want of memory or of shared memory "
                        "(/dev/shm); use fewer data.workers or a smaller batch"
                    )
                )
            if chunk is None:
                return
            if chunk.error is not None:
                raise chunk.error
            yield chunk
    finally:
        # An error's traceback keeps this frame. Workers that are found by the garbage collector instead of
        # being released here take PyTorch five seconds each to end.
        del loader, stream, chunk
