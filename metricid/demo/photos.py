"""From the bytes of an uploaded photo to its embedding."""

from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from metricid.data.decode import MAX_PIXELS, decode_image
from metricid.data.transforms import resize
from metricid.errors import InputError
from metricid.models.inference import InferenceModel

LEAST_SHARE = 4  # fewer than 1/4 of the model's pixels per side show nobody, as in `metricid search query`
LEAST_CONTRAST = 2.0  # standard deviation of the values 0 to 255; a blank wall has less


@dataclass(frozen=True)
class Photo:
    """An uploaded photo; it lives in memory alone.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        vector: [D] float32 of length 1.
        note: what lowers its scores, or empty.
    """

    image: np.ndarray
    vector: np.ndarray
    note: str


class PhotoReader:
    """Embeds photos, one at a time.

    Args:
        model: what embeds.
        flip: add the embedding of the mirrored image, as the gallery was made.
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, model: InferenceModel, *, flip: bool, max_pixels: int = MAX_PIXELS):
        self._model, self._flip, self._max_pixels = model, flip, max_pixels
        self._lock = Lock()

    def read(self, data: bytes) -> Photo:
        """Decodes and embeds.

        Args:
            data: the encoded file.

        Raises:
            InputError: no image, a damaged, too large or too small one, or one without a usable embedding.
        """
        image = decode_image(data, "this file", self._max_pixels)
        size = self._model.preprocessing.size
        _check(image, size)
        height, width = image.shape[:2]
        batch = torch.from_numpy(np.ascontiguousarray(resize(image, size)))[None]
        with self._lock:
            vector = self._model.embed(batch, flip=self._flip).cpu().numpy()[0].astype(np.float64)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise InputError("this photo: the model gives it no usable embedding; try another one")
        return Photo(image, (vector / length).astype(np.float32), _note(height, width, size))


def _check(image: np.ndarray, size: tuple[int, int]) -> None:
    """Refuses what cannot show anybody."""
    height, width = image.shape[:2]
    rows, columns = size
    if height * LEAST_SHARE < rows or width * LEAST_SHARE < columns:
        raise InputError(
            f"this photo: {width} x {height} pixels show too little; the model looks at {columns} x {rows}, "
            "give at least a quarter of that per side"
        )
    if float(image.std()) < LEAST_CONTRAST:
        raise InputError("this photo: is of one colour and shows nobody; give another one")


def _note(height: int, width: int, size: tuple[int, int]) -> str:
    """What a reader should know before trusting a low score."""
    rows, columns = size
    if height < rows / 2 or width < columns / 2:
        return (
            f"The photo has {width} x {height} pixels, the model looks at {columns} x {rows}: "
            "expect lower scores."
        )
    stretch = (width / height) / (columns / rows)
    if not 2 / 3 <= stretch <= 3 / 2:
        return (
            f"The photo has {width} x {height} pixels and is pressed into {columns} x {rows}: "
            "cut it as the images of the run are cut, for better scores."
        )
    return ""
