"""Images in a given order, for inference."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from metricid.data.aligned import AlignedSource
from metricid.data.dataset import Chunk, ImageFunction, OnCorrupt, batch_memory
from metricid.data.decode import ImageError
from metricid.data.loader import chunks, worker_loader
from metricid.data.sources import FolderSource, ImageSource, TarSource
from metricid.errors import InputError

_Read = tuple[list[np.ndarray], list[int], list[str]]


def iterate_images(
    source: ImageSource,
    paths: Sequence[str],
    transform: ImageFunction,
    batch_size: int,
    workers: int = 0,
    *,
    on_corrupt: OnCorrupt = "error",
    skipped: list[str] | None = None,
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Images in the order of `paths`, in batches.

    Without workers each batch is read when it is asked for, and nothing ahead, by as many threads as the
    network has: they have the processor in turns. Files and archives are read and decoded outside Python's
    lock; generated images and sources of other programs, which may not bear threads, are read by one.

    Args:
        source: where the paths are found.
        paths: N paths.
        transform: `(image, seed) -> image` of one size, without state; the seed is the place in `paths`.
        batch_size: images per batch; the last one may be smaller.
        workers: processes that read; 0 does it in this process.
        on_corrupt: `"error"` raises; `"skip"` leaves an undecodable image out.
        skipped: a list that takes the paths left out.

    Yields:
        images [B, H, W, 3] uint8, and their places in `paths`, [B] int64; never an empty batch.

    Raises:
        InputError: an image cannot be used.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    batches = [range(i, min(i + batch_size, len(paths))) for i in range(0, len(paths), batch_size)]
    workers = min(workers, max(len(batches) - 1, 0))
    if workers:
        dataset = _Ordered(source, paths, transform, on_corrupt == "skip")
        stream = chunks(worker_loader(dataset, batches, workers, 2, False, persistent=False))
    else:
        stream = _read_together(source, paths, transform, batches, on_corrupt == "skip")
    for chunk in stream:
        if skipped is not None:
            skipped += chunk.corrupt
        if len(chunk.rows):
            yield chunk.images, chunk.rows


def _read_together(
    source: ImageSource, paths: Sequence[str], transform: ImageFunction, batches: Sequence[range], skip: bool
) -> Iterator[Chunk]:
    """Each batch by all threads."""

    def read(places: np.ndarray) -> _Read:
        images: list[np.ndarray] = []
        kept, left_out = [], []
        for place in places.tolist():
            try:
                images.append(transform(source.read(paths[place]), place))
                kept.append(place)
            except ImageError:
                if not skip:
                    raise
                left_out.append(paths[place])
        return images, kept, left_out

    files = source.photos if isinstance(source, AlignedSource) else source
    threads = torch.get_num_threads() if isinstance(files, FolderSource | TarSource) else 1
    with ThreadPoolExecutor(threads, "read") as pool:
        for batch in batches:
            parts = list(pool.map(read, np.array_split(np.array(batch), threads)))
            images = [image for part in parts for image in part[0]]
            pixels = torch.from_numpy(np.stack(images)) if images else torch.empty(0, dtype=torch.uint8)
            rows = np.array([place for part in parts for place in part[1]], np.int64)
            yield Chunk(pixels, np.empty(0), rows, [path for part in parts for path in part[2]])


class _Ordered(Dataset[Any]):
    """Images by place, without the unreadable ones if so asked."""

    def __init__(self, source: ImageSource, paths: Sequence[str], transform: ImageFunction, skip: bool):
        self.source, self.paths, self.transform, self.skip = source, paths, transform, skip

    def __getitems__(self, places: Sequence[int]) -> Chunk:
        kept: list[int] = []
        corrupt: list[str] = []
        images = torch.empty(0, dtype=torch.uint8)
        for place in places:
            path = self.paths[place]
            try:
                image = self.transform(self.source.read(path), place)
            except ImageError as error:
                if not self.skip:
                    return Chunk.failed(error)
                corrupt.append(path)
                continue
            except InputError as error:
                return Chunk.failed(error)
            if not kept:
                images = batch_memory(len(places), image)
                target = images.numpy()  # PyTorch would start its threads to copy each image
            target[len(kept)] = image
            kept.append(place)
        return Chunk(images[: len(kept)], np.empty(0), np.array(kept, np.int64), corrupt)
