"""Rows of a manifest as pixels and labels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from metricid.data.decode import ImageError
from metricid.data.manifest import Manifest
from metricid.data.masks import MISSING, read_mask
from metricid.data.sources import ImageSource
from metricid.data.transforms import ImageTransform
from metricid.errors import InputError

ImageFunction = Callable[[np.ndarray, int], np.ndarray]
OnCorrupt = Literal["error", "skip"]
Key = tuple[int, int, int]
_MASK = 0xFFFFFFFFFFFFFFFF


class Sample(NamedTuple):
    """One image as the model gets it."""

    image: np.ndarray
    label: int
    row: int


class Chunk(NamedTuple):
    """What a worker hands over: a batch, or the user's mistake that prevented it."""

    images: torch.Tensor
    labels: np.ndarray
    rows: np.ndarray
    corrupt: list[str]
    error: InputError | None = None
    masks: torch.Tensor | None = None

    @classmethod
    def failed(cls, error: InputError) -> "Chunk":
        """No batch, but what was wrong."""
        return cls(torch.empty(0), np.empty(0), np.empty(0), [], error)


class ImageDataset(Dataset[Sample]):
    """Random access to the images of a manifest, augmented by a seed that belongs to the place in the
    training.

    An item is asked for by `(epoch, position, index)`: `index` is the manifest row, `position` the place in
    the epoch counted over all ranks. The augmentation depends on the dataset's seed, epoch and position
    alone, so that neither the number of workers nor a resumed run changes a pixel.

    With `on_corrupt="skip"` an image that cannot be decoded is replaced by the next readable image of the
    same identity (in manifest order, from the last round to the first), or, where the identity has none, by
    the next readable image of the manifest; batches keep their size. A missing file is always an error.
    """

    def __init__(
        self,
        source: ImageSource,
        manifest: Manifest,
        labels: np.ndarray,
        transform: ImageFunction,
        *,
        seed: int,
        on_corrupt: OnCorrupt = "error",
        masks: Sequence[str] | None = None,
    ):
        """
        Args:
            source: where the manifest's paths are found.
            manifest: one row per image.
            labels: [N] int64, one per row.
            transform: `(image, seed) -> image`, all of one size, [H, W, 3] uint8.
            seed: the run's seed.
            on_corrupt: `"error"` raises `ImageError`, `"skip"` replaces as above; an unreadable mask is then
                a missing one.
            masks: path of the mask image of each row, '' for a missing one; None reads no masks. The
                transform must be an `ImageTransform` then.

        Raises:
            InputError: no images, or another number of labels.
        """
        labels = np.asarray(labels, np.int64)
        if len(manifest) == 0:
            raise InputError(f"{manifest.name}: has no images")
        if labels.shape != (len(manifest),):
            raise InputError(f"{manifest.name}: {labels.shape} labels for {len(manifest)} images")
        if on_corrupt not in ("error", "skip"):
            raise InputError(f"on_corrupt must be 'error' or 'skip', not {on_corrupt!r}")
        self.source, self.manifest, self.labels, self.transform = source, manifest, labels, transform
        self.seed, self.on_corrupt, self.masks = seed, on_corrupt, masks
        self._corrupt: set[int] = set()
        self._unreported: list[str] = []

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: Key) -> Sample:
        return self._sample(key)[0]

    def _sample(self, key: Key) -> tuple[Sample, np.ndarray | None]:
        """An image, and its mask where masks are read: [H, W] uint8, `MISSING` throughout if it has none."""
        epoch, position, index = key
        pixels, row = self._read(int(index))
        seed = mix(self.seed, epoch, position)
        if self.masks is None:
            return Sample(self.transform(pixels, seed), int(self.labels[row]), row), None
        mask = self._read_mask(row, pixels.shape[:2])
        if mask is None:
            image = self.transform(pixels, seed)
            return Sample(image, int(self.labels[row]), row), np.full(image.shape[:2], MISSING, np.uint8)
        image, mask = cast(ImageTransform, self.transform).with_mask(pixels, mask, seed)
        return Sample(image, int(self.labels[row]), row), mask

    def __getitems__(self, keys: Sequence[Key]) -> Chunk:
        """A whole batch, written once into the memory that the training process will read."""
        try:
            first, mask = self._sample(keys[0])
            images = batch_memory(len(keys), first.image)
            labels, rows = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
            masks = None if mask is None else batch_memory(len(keys), mask)
            target = images.numpy()
            for place, key in enumerate(keys):
                sample, mask = (first, mask) if place == 0 else self._sample(key)
                target[place], labels[place], rows[place] = sample
                if masks is not None:
                    masks.numpy()[place] = mask
        except InputError as error:
            return Chunk.failed(error)
        return Chunk(images, labels, rows, self._report(), masks=masks)

    def _report(self) -> list[str]:
        """Corrupt files found since the last call."""
        found, self._unreported = self._unreported, []
        return found

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        if self.on_corrupt == "error":
            return self.source.read(self.manifest.path_at(index)), index
        for row in self._candidates(index):
            image = self._try(row)
            if image is not None:
                return image, row
        raise InputError(f"{self.manifest.name}: not one of the {len(self)} images can be read")

    def _read_mask(self, row: int, size: tuple[int, ...]) -> np.ndarray | None:
        """[H, W] uint8, or None where the image has none."""
        assert self.masks is not None
        path = self.masks[row]
        if not path:
            return None
        try:
            return read_mask(self.source, path, (size[0], size[1]), self.manifest.path_at(row))
        except ImageError:
            if self.on_corrupt == "error":
                raise
            self._unreported.append(path)
            return None

    def _try(self, row: int) -> np.ndarray | None:
        if row in self._corrupt:
            return None
        path = self.manifest.path_at(row)
        try:
            return self.source.read(path)
        except ImageError:
            self._corrupt.add(row)
            self._unreported.append(path)
            return None

    def _candidates(self, index: int) -> Iterator[int]:
        """The row itself, then what may stand in for it."""
        yield index
        yield from map(int, self._others(index))
        yield from ((index + step) % len(self) for step in range(1, len(self)))

    def _others(self, index: int) -> np.ndarray:
        """The other rows of the identity, from the one after `index` round to the one before."""
        rows = np.flatnonzero(self.labels == self.labels[index])
        at = int(np.searchsorted(rows, index))
        return np.concatenate([rows[at + 1 :], rows[:at]])


def batch_memory(count: int, image: np.ndarray) -> torch.Tensor:
    """[count, *shape] uint8 for images like `image`; shared memory in a worker, so nothing is copied."""
    images = torch.empty((count, *image.shape), dtype=torch.uint8)
    return images.share_memory_() if get_worker_info() is not None else images


def mix(*numbers: int) -> int:
    """A 64-bit hash of integers (the finaliser of SplitMix64, Steele et al., OOPSLA 2014).

    Example:
        >>> mix(0, 1, 2) == mix(0, 1, 2), mix(0, 1, 2) == mix(0, 2, 1)
        (True, False)
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state
