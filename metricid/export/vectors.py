"""Every image read once and embedded by one or several models."""

from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from metricid.data.dataset import OnCorrupt
from metricid.data.manifest import Manifest
from metricid.data.ordered import iterate_images
from metricid.data.sources import ImageSource
from metricid.data.transforms import build_transform
from metricid.errors import InputError
from metricid.models.inference import InferenceModel


def embed_with(
    models: Mapping[str, InferenceModel],
    source: ImageSource,
    table: Manifest,
    *,
    flip: bool,
    batch_size: int = 32,
    workers: int = 0,
    on_corrupt: OnCorrupt = "error",
    label: str = "embed",
) -> tuple[dict[str, np.ndarray], Manifest, list[str]]:
    """Embeds the same images with each model.

    Args:
        models: by name, all of one image size.
        source: where the images are.
        table: which images, in which order.
        flip: add the embedding of the mirrored image.
        batch_size: images per forward pass.
        workers: reading processes.
        on_corrupt: `skip` leaves unreadable images out.
        label: text of the progress bar.

    Returns:
        The vectors of each model, float32 [N, D], not normalised; the N rows of the table that could be read;
        the paths left out.

    Raises:
        InputError: an image that cannot be read, or none that can.
    """
    size = next(iter(models.values())).preprocessing.size
    transform = build_transform({"preset": "plain"}, size=size, train=False)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in models}
    rows: list[np.ndarray] = []
    skipped: list[str] = []
    images = iterate_images(
        source,
        table.paths,
        transform,
        batch_size,
        workers,
        on_corrupt=on_corrupt,
        skipped=skipped,
    )
    with tqdm(total=len(table), desc=label, unit="img", leave=False, mininterval=1.0) as bar:
        for batch, index in images:
            for name, model in models.items():
                parts[name].append(model.embed(batch, flip=flip).cpu().numpy())
            rows.append(index)
            bar.update(len(index))
    if not rows:
        raise InputError(f"{table.name}: has no image that can be read")
    joined = {name: np.concatenate(found) for name, found in parts.items()}
    return joined, table.select(np.concatenate(rows)), skipped
