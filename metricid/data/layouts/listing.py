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
        InputError: there is not one image, or a name is not UTF-8.
    """
    paths = source.paths()
    if not paths:
        raise InputError(f"{source.name}: no images found; expected {expected}")
    unreadable = [ascii(path) for path in paths if not _is_text(path)]
    if unreadable:
        raise InputError(
            f"{source.name}: {len(unreadable)} file names are not UTF-8; rename them: "
            + ", ".join(unreadable[:3])
            + (", ..." if len(unreadable) > 3 else "")
        )
    return paths


def _is_text(path: str) -> bool:
    """Whether a name can be written down; Python keeps foreign bytes of a file name as lone surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


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
