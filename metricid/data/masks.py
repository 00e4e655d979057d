"""Mask images: which pixels of an image are meant."""

from collections.abc import Sequence

import numpy as np

from metricid.data.decode import ImageError
from metricid.data.sources import ImageSource
from metricid.errors import InputError

MISSING = 255


def read_mask(source: ImageSource, path: str, size: tuple[int, int], of: str) -> np.ndarray:
    """A mask, 1 where the image at `path` is white, or 1 where a label image says 1.

    Args:
        source: where the mask is.
        path: of the mask.
        size: (height, width) of the image that it belongs to.
        of: what an error message calls that image.

    Returns:
        [H, W] uint8, 0 or 1.

    Raises:
        ImageError: no usable image, or one of another size.
        InputError: no such file.
    """
    gray = source.read(path)[:, :, 0]
    if gray.shape != tuple(size):
        raise ImageError(
            f"{path}: the mask has {gray.shape[1]} x {gray.shape[0]} pixels, "
            f"but its image {of} {size[1]} x {size[0]}"
        )
    return (gray >= (128 if gray.max() > 1 else 1)).astype(np.uint8)


def check_mask_images(paths: Sequence[str], source: ImageSource, images: Sequence[str]) -> None:
    """Reads every mask and its image once: a mask that does not fit is told before hours of work, not after.

    An image that cannot be read itself is passed over; whoever reads it decides what becomes of it.

    Args:
        paths: of the masks, '' for a missing one.
        source: where masks and images are.
        images: the images that they belong to.

    Raises:
        ImageError: a mask is no usable image, or of another size than its image.
        InputError: a file is missing.
    """
    for path, image in zip(paths, images, strict=True):
        if not path:
            continue
        try:
            size = source.read(image).shape[:2]
        except ImageError:
            continue
        read_mask(source, path, size, image)


def check_masks(paths: Sequence[str], source: ImageSource, images: Sequence[str]) -> None:
    """Checks that the source has every mask.

    Args:
        paths: of the masks, '' for a missing one.
        source: where they should be.
        images: the images that they belong to, for the message.

    Raises:
        InputError: names the first that does not exist.
    """
    lost = [(path, image) for path, image in zip(paths, images, strict=True) if path and path not in source]
    if lost:
        more = f" ({len(lost)} masks do not exist)" if len(lost) > 1 else ""
        raise InputError(f"{source.name}: the mask {lost[0][0]!r} of {lost[0][1]} does not exist{more}")
