"""What all layouts ask of a source's file list, and how they say that it is another one."""

from collections.abc import Sequence

from metricid.data.sources import ImageSource
from metricid.errors import InputError


def image_paths(source: ImageSource, expected: str) -> list[str]:
    """The source's images, sorted.

    Args:
        source: a folder or an archive.
        expected: the layout in a few words, for the message.

    Raises:
        InputError: there is not one image.
    """
    paths = source.paths()
    if not paths:
        raise InputError(f"{source.name}: no images found; expected {expected}")
    return paths


def check_names(source: ImageSource, wrong: Sequence[str], expected: str) -> None:
    """Raises an error that names the first paths that do not fit the layout, if there are any.

    Raises:
        InputError: `wrong` is not empty.
    """
    if wrong:
        shown = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise InputError(
            f"{source.name}: {len(wrong)} images are not named as expected ({expected}): {shown}"
        )
