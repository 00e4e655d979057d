"""Opens the images that a command line names: a folder, an archive, a table, or a known layout."""

import posixpath
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from metricid.config import expand
from metricid.data.aligned import AlignedSource
from metricid.data.decode import MAX_PIXELS
from metricid.data.factory import SYNTHETIC, layout_names, layout_options, open_layout
from metricid.data.layouts.listing import image_paths
from metricid.data.manifest import LANDMARK_COLUMNS, Manifest, check_files
from metricid.data.sources import ImageSource, open_source
from metricid.data.table_io import has_header, read_table
from metricid.errors import InputError
from metricid.registry import unknown

TABLES = (".csv", ".parquet")


def open_photos(
    data: str,
    *,
    root: str | None = None,
    layout: str | None = None,
    option: Sequence[str] = (),
    split: str | None = None,
    max_pixels: int = MAX_PIXELS,
    size: tuple[int, int] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[ImageSource, Manifest]:
    """Opens images of people known or not.

    Without a layout, the identity of an image is the folder that holds it. An image in no folder, or in a row
    of a table without identities, is an identity of its own, named by its path: nothing then claims that two
    images show the same person.

    Args:
        data: a folder, a tar file, a table (`.csv`, `.parquet`), or the name of generated images.
        root: where the images of a table are; its own folder if None.
        layout: name of a known layout instead of guessing by folders.
        option: `NAME=VALUE` options of the layout.
        split: only rows whose `split` column has this value.
        max_pixels: limit on the pixels of one image.
        size: (height, width) of generated images, unless an option says otherwise.
        say: is told where images have no identity; standard error if None.

    Raises:
        InputError: anything that cannot be found or does not fit.
    """
    say = say or _warn
    is_table = Path(data).suffix.lower() in TABLES
    if data in SYNTHETIC and layout is None and not Path(data).exists():
        layout = data
    if root is not None and not is_table:
        raise InputError("--root: is for the images of a table; a folder or tar file is given as DATA")
    if layout is None and option:
        raise InputError("--option: is of a layout; give --layout, or the name of generated images as DATA")
    if layout is not None:
        source, table = _by_layout(layout, data, option, max_pixels, size)
    elif is_table:
        source, table = _by_table(data, root, max_pixels, say)
    else:
        source, table = _by_folders(data, max_pixels, say)
    if split is not None:
        column = table.column("split")
        if column is None or not (column == split).any():
            raise InputError(f"--split: no image of {source.name} has split {split!r}")
        table = table.select(column == split)
    if not len(table):
        raise InputError(f"{table.name}: has no images")
    return source, table


def align_photos(
    source: ImageSource, table: Manifest, size: tuple[int, int], *, align: bool, by_recipe: bool
) -> ImageSource:
    """The images as a model takes them: aligned by the landmarks of their table where it is asked for.

    Args:
        source, table: from `open_photos` or a layout.
        size: (height, width) that the model takes.
        align: the command line asks for it.
        by_recipe: the model's recipe does, and `--aligned` does not say that it is done already.

    Raises:
        InputError: no landmarks, some that place no face, or a size without a template.
    """
    if align:
        return AlignedSource(source, table, size, "--align")
    if by_recipe:
        return AlignedSource(
            source, table, size, "data.align of the run", "--aligned where the images are aligned already"
        )
    return source


def check_layout(layout: str) -> None:
    """`--layout` names images as they are kept by others.

    Raises:
        InputError: it does not.
    """
    if layout not in layout_names():
        raise InputError(f"--layout: {unknown('layout', layout, layout_names())}")
    if layout == "manifest":
        raise InputError("--layout manifest: give the table as DATA, without --layout")


def _by_layout(
    layout: str,
    data: str,
    option: Sequence[str],
    max_pixels: int,
    size: tuple[int, int] | None,
) -> tuple[ImageSource, Manifest]:
    check_layout(layout)
    options: dict[str, Any] = layout_options(layout, option)
    if layout in SYNTHETIC:
        if data != layout:
            raise InputError(f"--layout {layout}: generates its images; give {layout} in place of {data}")
        if size is not None:
            options.setdefault("size", size)
    root = None if layout in SYNTHETIC else data
    return open_layout(layout, root=root, options=options, max_pixels=max_pixels, option="DATA")


def _by_table(
    data: str, root: str | None, max_pixels: int, say: Callable[[str], None]
) -> tuple[ImageSource, Manifest]:
    file = expand(data, "DATA")
    source = open_source(expand(root, "--root") if root else file.parent, max_pixels=max_pixels)
    table = read_table(file, numbers=LANDMARK_COLUMNS)
    if "identity" not in table.column_names and "path" in table.column_names:
        table = table.append_column("identity", table["path"])
        say(f"{file}: has no column 'identity'; each image is an identity of its own, named by its path")
    manifest = Manifest(table, str(file), header=has_header(file))
    check_files(manifest, source)
    return source, manifest


def _by_folders(data: str, max_pixels: int, say: Callable[[str], None]) -> tuple[ImageSource, Manifest]:
    source = open_source(expand(data, "DATA"), max_pixels=max_pixels)
    paths = image_paths(source, "images (.jpg, .png, ...), in one folder per identity or in none")
    identities = [posixpath.dirname(path) or path for path in paths]
    alone = sum(identity == path for identity, path in zip(identities, paths, strict=True))
    if alone:
        say(
            f"{source.name}: {alone} of {len(paths)} images lie in no folder of an identity; "
            "each of them is an identity of its own, named by its path"
        )
    columns = pa.table({"path": pa.array(paths, pa.string()), "identity": pa.array(identities, pa.string())})
    return source, Manifest(columns, source.name)


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
