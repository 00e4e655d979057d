"""How new images come to look like those of an index: aligned or not, as its card says."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricid.cli.photos import TABLES, open_photos
from metricid.data.aligned import AlignedSource
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource
from metricid.errors import InputError

Face = tuple[str, np.ndarray | None]
_FORM = "x1,y1,...,x5,y5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the actions that take images."""
    parser.add_argument(
        "--landmarks",
        action="append",
        default=[],
        metavar=_FORM,
        help="five points of a face, in pixels, for an index of aligned faces; one for each image",
    )
    parser.add_argument("--aligned", action="store_true", help="the images are aligned as the index's are")


@dataclass(frozen=True)
class Alignment:
    """What an index wants of images.

    Attributes:
        place: the index, for messages.
        wanted: images have to be aligned by landmarks.
        landmarks: of single images, as the command line gives them.
    """

    place: str
    wanted: bool
    landmarks: Sequence[str]

    @classmethod
    def of(
        cls, card: Mapping[str, Any], options: argparse.Namespace, place: str, *, images: bool
    ) -> "Alignment":
        """What the card of an index says, and the command line to it.

        Args:
            card: of the index.
            options: of the command line.
            place: the index, for messages.
            images: whether the command line names any.

        Raises:
            InputError: they do not fit.
        """
        given = "--landmarks" if options.landmarks else "--aligned" if options.aligned else None
        if given is not None and not images:
            raise InputError(f"{given}: is for images, and none is given; leave it out")
        if card.get("aligned") is not True and given is not None:
            said = "are not aligned" if card.get("aligned") is False else "are not known to be aligned"
            raise InputError(
                f"{given}: the images of {place} {said}; leave it out, or build an index from embeddings of "
                "aligned faces (metricid embed --align, --aligned)"
            )
        if options.landmarks and options.aligned:
            raise InputError("--aligned: an aligned image needs no --landmarks; leave out one of the two")
        return cls(place, card.get("aligned") is True and not options.aligned, options.landmarks)

    def queries(self, words: Sequence[str]) -> list[Face]:
        """The image files that the words name, each with its landmarks [5, 2] where these are wanted.

        Args:
            words: image files, and tables of image files (`.csv`, `.parquet`).

        Raises:
            InputError: landmarks are wanted and not there, or there are more of them than images.
        """
        points = iter([_points(text) for text in self.landmarks])
        found: list[Face] = []
        for word in words:
            if Path(word).suffix.lower() in TABLES:
                found += self._rows(word)
                continue
            mine = next(points, None)
            if self.wanted and mine is None:
                raise InputError(self._lacking(word, f"--landmarks {_FORM}"))
            found.append((word, mine))
        if rest := len(list(points)):
            raise InputError(
                f"--landmarks: {len(self.landmarks)} are given for {len(self.landmarks) - rest} single "
                "images; give one for each"
            )
        return found

    def _rows(self, file: str) -> list[Face]:
        """The images of a table, which lie below its folder."""
        _, table = open_photos(file, say=lambda line: None)
        paths = [str(Path(file).parent / path) for path in table.paths]
        if not self.wanted:
            return [(path, None) for path in paths]
        marks = table.landmarks()
        if marks is None:
            raise InputError(self._lacking(file, "the columns x1, y1, ..., x5, y5"))
        return list(zip(paths, marks, strict=True))

    def source(self, source: ImageSource, table: Manifest, data: str, size: tuple[int, int]) -> ImageSource:
        """Images of a folder, archive or table as the index wants them.

        Raises:
            InputError: landmarks are wanted and not there, or are given where the table has its own.
        """
        if self.landmarks:
            raise InputError("--landmarks: is for single images; a table has them in the columns x1 to y5")
        if not self.wanted:
            return source
        if table.landmarks() is None:
            raise InputError(self._lacking(data, "a table with the columns x1, y1, ..., x5, y5"))
        return AlignedSource(source, table, size, data)

    def _lacking(self, what: str, how: str) -> str:
        return (
            f"{what}: {self.place} holds aligned faces; give landmarks in pixels ({how}), or --aligned where "
            "this is aligned already"
        )


def _points(text: str) -> np.ndarray:
    """[5, 2] float64 of ten numbers with commas between."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 10 or not all(map(math.isfinite, values)):
        raise InputError(f"--landmarks {text}: takes ten numbers, {_FORM}, in pixels of the image")
    return np.array(values).reshape(5, 2)
