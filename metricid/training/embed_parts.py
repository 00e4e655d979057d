"""From images to parts on disk: the loop of `metricid embed`."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metricid.data.dataset import OnCorrupt
from metricid.data.embedding_parts import PartFolder, stamp_images
from metricid.data.manifest import Manifest
from metricid.data.ordered import iterate_images
from metricid.data.sources import ImageSource
from metricid.data.transforms import build_transform
from metricid.errors import InputError
from metricid.models.inference import InferenceModel


@dataclass(frozen=True)
class Speed:
    """How long it took.

    Attributes:
        images: embedded by this process.
        seconds: from the start of the loader processes to the last part on disk.
        waited: seconds of these spent waiting for images.
    """

    images: int
    seconds: float
    waited: float


def embed_parts(
    model: InferenceModel,
    source: ImageSource,
    table: Manifest,
    parts: PartFolder,
    todo: Sequence[int],
    *,
    device: torch.device,
    batch_size: int,
    flip: bool,
    workers: int,
    on_corrupt: OnCorrupt = "error",
    bar: "tqdm[Any] | None" = None,
) -> Speed:
    """Embeds some parts of a table and writes each when it is done; memory does not depend on their number.

    Args:
        model: what embeds.
        source: where the images are.
        table: all rows.
        parts: where finished parts go; their size is a multiple of `batch_size`, so that a part is the same
            whoever makes it.
        todo: which parts, ascending.
        device: where the model runs.
        batch_size: images per forward pass.
        flip: add the embedding of the mirrored image.
        workers: reading processes; 0 reads with the threads of the network, in turns with it.
        on_corrupt: `error`, or `skip` to leave unreadable images out.
        bar: is moved on by every image.

    Raises:
        InputError: an image that cannot be read, with policy `error`; values that are not finite; a full
            disk; a GPU without the memory for a batch.
    """
    if parts.part_images % batch_size:
        raise ValueError(f"parts of {parts.part_images} images cannot be made in batches of {batch_size}")
    began = time.perf_counter()
    stamps = {part: stamp_images(source, table, parts.rows(part)) for part in todo}
    rows = np.concatenate([np.empty(0, np.int64), *(np.array(parts.rows(part)) for part in todo)])
    images = _Waiting(
        iterate_images(
            source,
            [table.path_at(row) for row in rows],
            build_transform("plain", size=model.preprocessing.size, train=False),
            batch_size=batch_size,
            workers=workers,
            on_corrupt=on_corrupt,
        )
    )
    count, place = 0, 0
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    with _Writer(model.output_dim, parts, stamps, table) as writer:
        for vectors, index in _vectors(model, images, flip):
            while place < int(index[0]) // parts.part_images:  # the last images of a part were left out
                writer.put(todo[place], pieces)
                pieces, place = [], place + 1
            pieces.append((rows[index], vectors))
            count += len(index)
            if bar is not None:
                bar.update(len(index))
            if rows[index[-1]] == parts.rows(todo[place])[-1]:
                writer.put(todo[place], pieces)
                pieces, place = [], place + 1
        for part in todo[place:]:
            writer.put(part, pieces)
            pieces = []
    return Speed(count, time.perf_counter() - began, images.seconds)


class _Waiting:
    """Batches, and how long it took to get them."""

    def __init__(self, batches: Iterator[tuple[Tensor, np.ndarray]]):
        self._batches, self.seconds = batches, 0.0

    def __iter__(self) -> "Iterator[tuple[Tensor, np.ndarray]]":
        return self

    def __next__(self) -> tuple[Tensor, np.ndarray]:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - began


class _Writer:
    """Writes one part while the next is computed."""

    def __init__(self, dimension: int, parts: PartFolder, stamps: dict[int, str], table: Manifest):
        self._dimension, self._parts, self._stamps, self._table = dimension, parts, stamps, table
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None and self._last is not None:
            self._last.result()

    def put(self, part: int, pieces: list[tuple[np.ndarray, np.ndarray]]) -> None:
        rows = np.concatenate([np.empty(0, np.int64), *(piece[0] for piece in pieces)])
        vectors = np.concatenate(
            [np.empty((0, self._dimension), np.float32), *(piece[1] for piece in pieces)]
        )
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise InputError(
                f"{self._table.path_at(int(rows[bad[0]]))}: the model gives values that are not finite "
                f"({len(bad)} such images among {len(rows)}); try --precision fp32, or another checkpoint"
            )
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(self._parts.write, part, rows, vectors, self._stamps[part])


def _vectors(
    model: InferenceModel, images: Iterator[tuple[Tensor, np.ndarray]], flip: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vectors and places; the GPU has its next batch before the last one's vectors are waited for."""
    waiting: tuple[Tensor, torch.cuda.Event | None, np.ndarray] | None = None
    for batch, index in images:
        try:
            vectors = model.embed(batch, flip=flip)
        except torch.OutOfMemoryError:
            raise InputError(
                f"the GPU has too little memory for {len(batch)} images at once; use a smaller --batch-size"
            ) from None
        done = None
        if vectors.is_cuda:
            vectors = vectors.to("cpu", non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = vectors.cpu(), done, index
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(
    vectors: Tensor, done: torch.cuda.Event | None, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if done is not None:
        done.synchronize()
    return vectors.numpy(), index
