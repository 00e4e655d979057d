"""Images for a network that has the processor to itself: all cores read a batch, then all compute."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from metricid.data.dataset import ImageFunction, OnCorrupt
from metricid.data.decode import ImageError
from metricid.data.loader import iterate_images
from metricid.data.sources import FolderSource, ImageSource, TarSource

_Read = tuple[list[np.ndarray], list[int], list[str]]


def read_images(
    source: ImageSource,
    paths: Sequence[str],
    transform: ImageFunction,
    *,
    batch_size: int,
    workers: int,
    on_corrupt: OnCorrupt = "error",
    skipped: list[str] | None = None,
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """As `iterate_images`, but without workers each batch is read by as many threads as the network has.

    They read when the batch is asked for and nothing ahead: the network's threads wait for the one whose core
    reading takes. Files and archives are read and decoded outside Python's lock; generated images and sources
    of other programs, which may not bear threads, are read by one.

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
    if workers:
        yield from iterate_images(
            source, paths, transform, batch_size, workers, on_corrupt=on_corrupt, skipped=skipped
        )
        return

    def read(places: np.ndarray) -> _Read:
        images: list[np.ndarray] = []
        kept, left_out = [], []
        for place in places.tolist():
            try:
                images.append(transform(source.read(paths[place]), place))
                kept.append(place)
            except ImageError:
                if on_corrupt == "error":
                    raise
                left_out.append(paths[place])
        return images, kept, left_out

    threads = torch.get_num_threads() if isinstance(source, FolderSource | TarSource) else 1
    with ThreadPoolExecutor(threads, "read") as pool:
        for first in range(0, len(paths), batch_size):
            batch = np.arange(first, min(first + batch_size, len(paths)))
            parts = list(pool.map(read, np.array_split(batch, threads)))
            if skipped is not None:
                skipped += [path for part in parts for path in part[2]]
            images = [image for part in parts for image in part[0]]
            if images:
                kept = [place for part in parts for place in part[1]]
                yield torch.from_numpy(np.stack(images)), np.array(kept, np.int64)
