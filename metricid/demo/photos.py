"""From the bytes of an uploaded photo to its embedding."""

from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from metricid.data.decode import MAX_PIXELS, decode_image
from metricid.data.query_photo import alignment_note, check_photo, photo_note
from metricid.data.transforms import resize
from metricid.errors import InputError
from metricid.models.inference import InferenceModel


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
        aligned: the faces of the gallery are aligned; a photo of another size gets a note.
    """

    def __init__(
        self, model: InferenceModel, *, flip: bool, max_pixels: int = MAX_PIXELS, aligned: bool = False
    ):
        self._model, self._flip, self._max_pixels, self._aligned = model, flip, max_pixels, aligned
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
        check_photo(image, size, "this photo")
        note = (self._aligned and alignment_note(image, size)) or photo_note(image, size)
        batch = torch.from_numpy(np.ascontiguousarray(resize(image, size)))[None]
        with self._lock:
            vector = self._model.embed(batch, flip=self._flip).cpu().numpy()[0].astype(np.float64)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise InputError("this photo: the model gives it no usable embedding; try another one")
        return Photo(image, (vector / length).astype(np.float32), f"The photo {note}." if note else "")
