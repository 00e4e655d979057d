"""From images to embeddings, with the model in evaluation mode."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from metricid.data.dataset import OnCorrupt
from metricid.data.manifest import Manifest
from metricid.data.ordered import iterate_images
from metricid.data.sources import ImageSource
from metricid.data.transforms import build_transform
from metricid.errors import InputError
from metricid.models.embedder import Embedder
from metricid.training.distributed import World, gather_objects
from metricid.training.precision import Precision

MAX_PIXEL_BYTES = 4 << 30


@dataclass(frozen=True)
class Embedded:
    """Embeddings and the rows they belong to.

    Attributes:
        vectors: float32 [N, D], not normalised.
        table: the N rows of the manifest that could be read.
        skipped: paths of images that could not be read (policy `skip`).
    """

    vectors: np.ndarray
    table: Manifest
    skipped: list[str]


def embed_images(
    embedder: Embedder,
    source: ImageSource,
    table: Manifest,
    *,
    world: World,
    precision: Precision,
    batch_size: int = 128,
    flip: bool = True,
    workers: int = 1,
    on_corrupt: OnCorrupt = "error",
    label: str = "embed",
) -> Embedded:
    """Embeds every image of a manifest; several ranks take a share each, and all get the whole.

    Args:
        embedder: used in evaluation mode; its mode is restored.
        source: where the images are.
        table: which images, in which order.
        world: this process among its peers.
        precision: arithmetic of the forward pass; the embeddings are float32.
        batch_size: images per forward pass.
        flip: add the embedding of the mirrored image before normalisation (f(x) + f(flip x)).
        workers: reading processes; 0 reads with the threads of the network, in turns with it.
        on_corrupt: `error`, or `skip` to leave unreadable images out.
        label: text of the progress bar.

    Raises:
        InputError: an image that cannot be read, with policy `error`.
    """
    mine = np.array_split(np.arange(len(table)), world.size)[world.rank]
    skipped: list[str] = []
    found = list(
        embed_stream(
            embedder,
            source,
            table.select(mine),
            world=world,
            precision=precision,
            batch_size=batch_size,
            flip=flip,
            workers=workers,
            on_corrupt=on_corrupt,
            skipped=skipped,
            label=label,
        )
    )
    vectors, kept = [part[0] for part in found], [mine[part[1]] for part in found]
    empty = np.zeros((0, embedder.output_dim), dtype=np.float32)
    parts = gather_objects(
        (np.concatenate([empty, *vectors]), np.concatenate([mine[:0], *kept]), skipped), world
    )
    rows = np.concatenate([p[1] for p in parts])
    return Embedded(
        np.concatenate([p[0] for p in parts]), table.select(rows), [s for p in parts for s in p[2]]
    )


def embed_stream(
    embedder: Embedder,
    source: ImageSource,
    part: Manifest,
    *,
    world: World,
    precision: Precision,
    batch_size: int,
    flip: bool,
    workers: int,
    on_corrupt: OnCorrupt,
    skipped: list[str],
    label: str,
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Embeds this rank's images batch by batch; arguments are those of `embed_images`, but for:

    Args:
        part: the images of this rank.
        skipped: takes the paths of images that could not be read.

    Yields:
        float32 vectors [B, D], and the places [B] in `part` that they belong to.
    """
    transform = build_transform({"preset": "plain"}, size=embedder.config.preprocessing.size, train=False)
    was_training = embedder.training
    embedder.eval()
    try:
        images = iterate_images(
            source,
            part.paths,
            transform,
            batch_size=batch_size,
            workers=workers,
            on_corrupt=on_corrupt,
            skipped=skipped,
        )
        with tqdm(
            total=len(part), desc=label, unit="img", disable=not world.is_main, leave=False, mininterval=1.0
        ) as bar:
            for batch, index in images:
                with torch.inference_mode():
                    vectors = forward_batch(embedder, batch, world.device, precision, flip).cpu().numpy()
                yield vectors, index
                bar.update(len(index))
    finally:
        embedder.train(was_training)


def forward_batch(
    embedder: Embedder, images: torch.Tensor, device: torch.device, precision: Precision, flip: bool
) -> torch.Tensor:
    """Embeds uint8 `[B, H, W, 3]` images to float32 `[B, D]`; with `flip`, adds the mirrored images."""
    images = images.to(device, non_blocking=True)
    with precision.autocast():
        return embedder.embed(images, flip=flip)


def pixel_vectors(
    source: ImageSource, table: Manifest, size: tuple[int, int], workers: int, on_corrupt: OnCorrupt
) -> Embedded:
    """Raw pixels as if they were embeddings, float32 [N, H*W*3]: the baseline that a model has to beat.

    Raises:
        InputError: more pixels than 4 GiB of float32, or an image that cannot be read.
    """
    if len(table) * size[0] * size[1] * 12 > MAX_PIXEL_BYTES:
        raise InputError(
            f"raw pixels as a baseline: {len(table)} images of {size[0]}x{size[1]} pixels need over 4 GiB; "
            "leave this baseline out"
        )
    transform = build_transform({"preset": "plain"}, size=size, train=False)
    skipped: list[str] = []
    vectors = np.empty((len(table), size[0] * size[1] * 3), dtype=np.float32)
    kept = []
    filled = 0
    for batch, index in iterate_images(
        source,
        table.paths,
        transform,
        batch_size=256,
        workers=workers,
        on_corrupt=on_corrupt,
        skipped=skipped,
    ):
        vectors[filled : filled + len(index)] = batch.reshape(len(index), -1).numpy()
        filled += len(index)
        kept.append(index)
    return Embedded(vectors[:filled], table.select(np.concatenate(kept)), skipped)
