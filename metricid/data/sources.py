"""Where images come from: a folder, or a tar archive read in place."""

import os
import posixpath
import tarfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from metricid.data.decode import MAX_PIXELS, decode_image
from metricid.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}


@runtime_checkable
class ImageSource(Protocol):
    """Images by path; safe to use from several processes."""

    name: str

    def read(self, path: str) -> np.ndarray:
        """The image at `path`: [H, W, 3] uint8, RGB."""
        ...

    def paths(self) -> list[str]:
        """The paths of all images, sorted."""
        ...

    def __contains__(self, path: object) -> bool: ...


class FolderSource:
    """The image files below a folder; paths are relative to it, with forward slashes."""

    def __init__(
        self,
        root: str | Path,
        *,
        max_pixels: int = MAX_PIXELS,
        suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
    ):
        """
        Args:
            root: an existing folder.
            max_pixels: larger images are refused before they are decoded.
            suffixes: what `paths()` lists; lower case, case is ignored.

        Raises:
            InputError: `root` is no folder.
        """
        if not Path(root).is_dir():
            raise InputError(f"{root}: no such folder; check the path")
        self.name = str(root)
        self.max_pixels = max_pixels
        self.suffixes = suffixes

    def read_bytes(self, path: str) -> bytes:
        """The content of any file below the root.

        Raises:
            InputError: the file is missing or cannot be read.
        """
        try:
            with open(os.path.join(self.name, path), "rb") as file:
                return file.read()
        except OSError as error:
            raise InputError(f"{self.name}/{path}: cannot be read ({error.strerror})") from None

    def read(self, path: str) -> np.ndarray:
        """[H, W, 3] uint8, RGB.

        Raises:
            ImageError: the file is no usable image.
            InputError: the file is missing.
        """
        return decode_image(self.read_bytes(path), f"{self.name}/{path}", self.max_pixels)

    def paths(self) -> list[str]:
        """All image files, sorted; hidden files and folders are left out.

        Links to folders are followed, but not back into a folder that they are in.

        Raises:
            InputError: a folder cannot be read; its images would be missed in silence.
        """
        found = []
        for folder, folders, files in os.walk(self.name, followlinks=True, onerror=_unreadable):
            relative = os.path.relpath(folder, self.name).replace(os.sep, "/")
            parts = [] if relative == "." else relative.split("/")
            folders[:] = [f for f in folders if not f.startswith(".") and not self._leads_back(parts, f)]
            found += ["/".join([*parts, file]) for file in files if _is_image(file, self.suffixes)]
        return sorted(found)

    def _leads_back(self, parts: list[str], name: str) -> bool:
        """Whether a folder's entry is a link to one of the folders on the way to it."""
        link = os.path.join(self.name, *parts, name)
        if not os.path.islink(link):
            return False
        way = (os.path.join(self.name, *parts[:depth]) for depth in range(len(parts) + 1))
        return os.path.realpath(link) in map(os.path.realpath, way)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and os.path.isfile(os.path.join(self.name, path))


class TarSource:
    """The images in an uncompressed tar archive, read where they lie.

    The headers are read once; after that an image is one `pread`. The object can be pickled and forked: every
    process opens the archive itself.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        max_pixels: int = MAX_PIXELS,
        suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
    ):
        """
        Args:
            file: the archive.
            max_pixels: larger images are refused before they are decoded.
            suffixes: what `paths()` lists; lower case, case is ignored.

        Raises:
            InputError: no such file, not a tar, compressed, or cut off.
        """
        self.name = str(file)
        self.max_pixels = max_pixels
        self.suffixes = suffixes
        self._index, self._stamp = _tar_index(Path(file))
        self._handle: int | None = None
        self._process = 0

    def read_bytes(self, path: str) -> bytes:
        """The content of any member.

        Raises:
            InputError: no such member, or the archive changed since it was opened.
        """
        try:
            offset, size = self._index[path]
        except KeyError:
            raise InputError(f"{self.name}/{path}: not in the archive") from None
        data = os.pread(self._descriptor(), size, offset)
        if len(data) != size:
            raise InputError(f"{self.name}: changed while it was in use; start again")
        return data

    def read(self, path: str) -> np.ndarray:
        """[H, W, 3] uint8, RGB.

        Raises:
            ImageError: the member is no usable image.
            InputError: no such member.
        """
        return decode_image(self.read_bytes(path), f"{self.name}/{path}", self.max_pixels)

    def paths(self) -> list[str]:
        """All image members, sorted; hidden ones and those in hidden folders are left out."""
        return sorted(path for path in self._index if _is_image(path, self.suffixes))

    def __contains__(self, path: object) -> bool:
        return path in self._index

    def _descriptor(self) -> int:
        if self._handle is None or self._process != os.getpid():
            handle = os.open(self.name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            if _stamp(handle) != self._stamp:
                os.close(handle)
                raise InputError(f"{self.name}: changed while it was in use; start again")
            self._handle, self._process = handle, os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_process": 0}

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and self._process == os.getpid():
            os.close(self._handle)  # type: ignore[arg-type]


def open_source(
    root: str | Path, *, max_pixels: int = MAX_PIXELS, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> FolderSource | TarSource:
    """A folder or a tar archive, whichever `root` is.

    Raises:
        InputError: `root` does not exist, or is a file but not a tar archive.
    """
    if Path(root).is_dir():
        return FolderSource(root, max_pixels=max_pixels, suffixes=suffixes)
    return TarSource(root, max_pixels=max_pixels, suffixes=suffixes)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _is_image(path: str, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return not hidden and path.lower().endswith(suffixes)


def _stamp(handle: int) -> tuple[int, int]:
    state = os.fstat(handle)
    return state.st_size, state.st_mtime_ns


def _tar_index(file: Path) -> tuple[dict[str, tuple[int, int]], tuple[int, int]]:
    """Path -> (offset, size) of every regular member, links resolved; and the file's size and time."""
    if not file.is_file():
        raise InputError(f"{file}: does not exist; give a folder of images or a .tar file")
    try:
        opened = file.open("rb")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    with opened as raw:
        stamp = _stamp(raw.fileno())
        start = raw.read(2)
        if start in _COMPRESSED:
            raise InputError(
                f"{file}: is compressed and allows no random access; unpack it once with {_COMPRESSED[start]}"
            )
        raw.seek(0)
        index: dict[str, tuple[int, int]] = {}
        links: list[tuple[str, str]] = []
        try:
            with tarfile.open(fileobj=raw, mode="r:") as archive:
                for member in archive:
                    path = posixpath.normpath(member.name)
                    if member.issparse():
                        raise InputError(
                            f"{file}: {path} is stored as a sparse file; pack it again without -S"
                        )
                    if member.isreg():
                        index[path] = (member.offset_data, member.size)
                    elif member.islnk():
                        links.append((path, posixpath.normpath(member.linkname)))
                    elif member.issym():
                        target = posixpath.join(posixpath.dirname(path), member.linkname)
                        links.append((path, posixpath.normpath(target)))
                end = archive.offset
        except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
            raise InputError(
                f"{file}: not a whole tar archive ({error}); make or download it again"
            ) from None
        # The module stops silently at a damaged header, so that only the zero block at the end proves
        # completeness.
        raw.seek(end)
        if raw.read(512) != bytes(512) or any(offset + size > stamp[0] for offset, size in index.values()):
            raise InputError(f"{file}: the tar archive is cut off or damaged; make or download it again")
    for path, target in links:
        if target in index:
            index[path] = index[target]
    return index, stamp
