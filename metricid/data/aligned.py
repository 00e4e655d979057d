"""A source of images whose faces are aligned by the landmarks of a manifest as they are read."""

import bisect
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metricid.data.align import landmark_problem, mirrored, size_problem, warp_face
from metricid.data.manifest import LANDMARK_COLUMNS, Manifest
from metricid.data.sources import ImageSource
from metricid.errors import InputError

COLUMNS_TEXT = f"{', '.join(LANDMARK_COLUMNS[:2])}, ..., {', '.join(LANDMARK_COLUMNS[-2:])}"


class AlignedSource:
    """The images of another source, each warped to the template by its row's landmarks.

    Whatever reads images by path (training, evaluation, export, the pages) then gets aligned faces. It is as
    safe in threads and processes as the source behind it. The rows are found by bisection in sorted Arrow
    text, which processes share, not in a dictionary, of which each would soon have a copy.
    """

    def __init__(
        self, photos: ImageSource, table: Manifest, size: tuple[int, int], option: str, hint: str = ""
    ):
        """
        Args:
            photos: where the images are.
            table: one row per image, with landmarks in pixels of the image as it is read.
            size: (height, width) of the aligned images.
            option: what asked for the alignment, for messages.
            hint: what else may be done where there are no landmarks.

        Raises:
            InputError: no template of that size, no landmarks, or landmarks that place no face.
        """
        if problem := size_problem(size):
            raise InputError(f"{option}: {problem}")
        landmarks = table.landmarks()
        if landmarks is None:
            raise InputError(
                f"{option}: {table.name} has no landmarks; give a table with the columns {COLUMNS_TEXT} "
                f"(five points in pixels){hint and f', or {hint}'}"
            )
        _check(table, landmarks, option)
        self.photos, self.name, self.size, self._table_name = photos, photos.name, size, table.name
        column = table.table["path"].combine_chunks()
        order = pc.sort_indices(column)
        self._paths = _Texts(column.take(order))
        self._landmarks = landmarks[order.to_numpy()]

    def read(self, path: str) -> np.ndarray:
        """[*size, 3] uint8, RGB.

        Raises:
            ImageError: the file is no usable image.
            InputError: the file is missing, or has no landmarks.
        """
        return warp_face(self.photos.read(path), self.landmarks_of(path), self.size)

    def landmarks_of(self, path: str) -> np.ndarray:
        """[5, 2] float32, (x, y) in pixels of the image before it is aligned.

        Raises:
            InputError: the table has no such row.
        """
        place = bisect.bisect_left(self._paths, path)
        if place == len(self._paths) or self._paths[place] != path:
            raise InputError(f"{self._table_name}: has no landmarks of {path}, which cannot be aligned")
        return self._landmarks[place]

    def paths(self) -> list[str]:
        """The paths of all images, sorted; also of those without landmarks."""
        return self.photos.paths()

    def __contains__(self, path: object) -> bool:
        return path in self.photos


class _Texts(Sequence[str]):
    """An Arrow column as Python's bisection wants it."""

    def __init__(self, column: pa.Array):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: int) -> str:  # type: ignore[override]  # nobody slices it
        return self._column[place].as_py()


def _check(table: Manifest, landmarks: np.ndarray, option: str) -> None:
    """Every row places a face, and left and right are not exchanged throughout."""
    for row in np.flatnonzero(~np.isfinite(landmarks).all(axis=(1, 2)) | (np.ptp(landmarks, 1).max(1) < 1)):
        if problem := landmark_problem(landmarks[row]):
            raise InputError(f"{table.name}: {table.path_at(int(row))}: {problem}; mend or remove the row")
    swapped = mirrored(landmarks.astype(np.float64))
    if 2 * swapped.sum() > len(table):
        raise InputError(
            f"{option}: {table.name}: the landmarks of {swapped.sum()} of {len(table)} rows are mirrored; "
            "their order is left eye, right eye, nose, left and right corner of the mouth, as one sees them"
        )
