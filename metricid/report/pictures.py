"""Small JPEG pictures as data URIs, within a budget of bytes."""

import base64
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np

SIDES = (128, 96, 72, 56, 40)
_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """A picture for an `img` element: the data URI and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """An image as a list names it."""

    identity: str
    path: str
    camera: str
    picture: Picture | None


def encode_pictures(
    read: Callable[[str], np.ndarray | None], paths: Iterable[str], budget: int
) -> dict[str, Picture]:
    """Pictures of images, each shrunk so far that all occurrences together fit the budget.

    Args:
        read: path -> [H, W, 3] uint8 RGB, or None for an image that cannot be read.
        paths: one for each place in the page where a picture stands; repeated ones cost each time.
        budget: bytes of all data URIs, each counted as often as it occurs.

    Returns:
        A picture for each readable path. If even the smallest size does not fit, the last ones are missing.
    """
    times = Counter(paths)
    small: dict[str, np.ndarray] = {}
    for path in times:
        image = read(path)
        if image is not None:
            small[path] = _shrink(image, SIDES[0])
    pictures: dict[str, Picture] = {}
    for side in SIDES:
        pictures = {path: _encode(_shrink(image, side)) for path, image in small.items()}
        if sum(len(picture.uri) * times[path] for path, picture in pictures.items()) <= budget:
            return pictures
    kept: dict[str, Picture] = {}
    for path, picture in pictures.items():
        budget -= len(picture.uri) * times[path]
        if budget < 0:
            break
        kept[path] = picture
    return kept


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    """At most `side` pixels wide and high, in proportion; never enlarged."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _encode(image: np.ndarray) -> Picture:
    done, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    if not done:
        raise RuntimeError(f"OpenCV could not write a JPEG of shape {image.shape}")
    height, width = image.shape[:2]
    return Picture("data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode(), width, height)
