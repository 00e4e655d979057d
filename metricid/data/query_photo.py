"""Whether a single photo can be recognised by a model, and what lowers its scores."""

import numpy as np

from metricid.errors import InputError

LEAST_SHARE = 4  # fewer than 1/4 of the model's pixels per side show nobody
LEAST_CONTRAST = 2.0  # standard deviation of the values 0 to 255; a blank wall has less
MOST_STRETCH = 3 / 2  # of one side against the other, by the resize; beyond it, faces look like others


def check_photo(image: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Refuses what cannot show anybody.

    Args:
        image: [H, W, 3] uint8.
        size: (height, width) that the model takes.
        name: how the message calls the photo.

    Raises:
        InputError: too few pixels, or one colour.
    """
    height, width = image.shape[:2]
    rows, columns = (max(1, -(-side // LEAST_SHARE)) for side in size)
    if height < rows or width < columns:
        raise InputError(
            f"{name}: {width} x {height} pixels (width x height) show too little; the model looks at "
            f"{size[1]} x {size[0]}, give at least {columns} x {rows}"
        )
    # Per channel: a wall of one strong colour has a large deviation between its channels.
    if image.std(axis=(0, 1)).max() < LEAST_CONTRAST:
        raise InputError(f"{name}: is of one colour and shows nobody; give another image")


def photo_note(image: np.ndarray, size: tuple[int, int]) -> str:
    """What a reader should know before trusting a low score.

    Args:
        image: [H, W, 3].
        size: (height, width) that the model takes; the image is resized to it.

    Returns:
        One sentence whose subject, the photo, comes before it; empty where all is well.
    """
    height, width = image.shape[:2]
    rows, columns = size
    if height < rows / 2 or width < columns / 2:
        return f"has {width} x {height} pixels, the model looks at {columns} x {rows}: expect lower scores"
    stretch = (width / height) / (columns / rows)
    if not 1 / MOST_STRETCH <= stretch <= MOST_STRETCH:
        return (
            f"has {width} x {height} pixels and is pressed into {columns} x {rows}: "
            "cut it as the images of the model are cut, for better scores"
        )
    return ""


def alignment_note(image: np.ndarray, size: tuple[int, int]) -> str:
    """What a reader should know of a photo that is searched among aligned faces; as `photo_note`.

    Args:
        image: [H, W, 3].
        size: (height, width) of the aligned faces.
    """
    if image.shape[:2] == size:
        return ""
    height, width = image.shape[:2]
    return (
        f"has {width} x {height} pixels and is searched among faces aligned to {size[1]} x {size[0]}: "
        "align it in the same way, for better scores"
    )
