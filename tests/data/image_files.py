"""Pictures that the tests of this folder make."""

import cv2
import numpy as np


def picture(seed: int, height: int = 24, width: int = 20) -> np.ndarray:
    """A smooth picture of its own mean colour, so that JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def encoded(image: np.ndarray, suffix: str = ".jpg", *options: int) -> bytes:
    """An RGB image as a file's bytes."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, image, list(options))
    assert done
    return data.tobytes()
