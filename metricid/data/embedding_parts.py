"""The finished pieces of a long embedding run, on disk beside the file that they will become."""

import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from metricid.data.aligned import AlignedSource
from metricid.data.embedding_file import sidecars
from metricid.data.manifest import Manifest
from metricid.data.sources import FolderSource, ImageSource, TarSource
from metricid.errors import InputError
from metricid.files import atomic_write

BINDING = "binding.json"
LOCK = ".lock"


class PartFolder:
    """Pieces of equal numbers of images: `TARGET.parts/part-00000007.arrow`, each whole or absent.

    The folder is bound to a model and to the options that change a vector (`binding.json`), each part to its
    images (their paths, and size and time of their files): parts of images that have changed are made again.

    Args:
        target: the file that is being made.
        images: N, the rows of the table.
        part_images: rows per part; the last part may have fewer.
    """

    def __init__(self, target: Path, images: int, part_images: int):
        self.target, self.images, self.part_images = target, images, part_images
        self.folder = target.with_name(target.name + ".parts")

    def __len__(self) -> int:
        return -(-self.images // self.part_images)

    def rows(self, part: int) -> range:
        """The rows of the table that a part has."""
        return range(part * self.part_images, min((part + 1) * self.part_images, self.images))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other processes out of it; the lock ends with the process.

        A folder that holds no part when the block is left is removed.

        Raises:
            InputError: the folder cannot be made, is another's, or another process is at work.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / LOCK, "w")  # noqa: SIM115 (held while the block runs)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror}); "
                f"choose another place for {self.target.name}"
            ) from None
        with file:
            try:
                # Not flock: forked loader processes would hold it for a moment after this process is killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise InputError(
                    f"{self.target}: another process is making it; wait for it or choose another name"
                ) from None
            try:
                yield
            finally:
                if not any(self.folder.glob("part-*.arrow")):
                    self.remove()

    def bind(self, binding: dict[str, Any], *, afresh: bool) -> bool:
        """Takes the folder over for one model and its options.

        Args:
            binding: what a vector depends on besides its image; JSON.
            afresh: remove parts of another binding instead of refusing them.

        Returns:
            Whether parts of another binding were removed.

        Raises:
            InputError: the folder holds parts of another binding, or files of somebody else.
        """
        self._remove_temporary()
        file = self.folder / BINDING
        removed = False
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            old = None
            foreign = sorted(entry.name for entry in self.folder.iterdir() if entry.name != LOCK)
            if foreign:
                raise InputError(
                    f"{self.folder}: holds {foreign[0]}, which is no part of an embedding run; move it away"
                ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not readable ({error}); remove the folder") from None
        if old is not None and old != binding:
            if not afresh:
                names = [name for name in {**old, **binding} if old.get(name) != binding.get(name)]
                told = "; ".join(f"{name} {old.get(name)}, now {binding.get(name)}" for name in names)
                raise InputError(
                    f"{self.folder}: holds parts of another run ({told}); finish that one with the same "
                    "command, or start anew with --overwrite"
                )
            self._remove_parts()
            removed = True
        if old != binding:
            with atomic_write(file, "w") as out:
                json.dump(binding, out, indent=2)
        return removed

    def state(self, part: int, stamp: str) -> str:
        """`missing`, `changed` (made of other images), `partial` (images were left out) or `whole`."""
        try:
            with pa.memory_map(str(self._file(part))) as source:
                reader = pa.ipc.open_file(source)
                made_of = (reader.schema.metadata or {}).get(b"stamp", b"").decode()
                count = reader.get_batch(0).num_rows
        except FileNotFoundError:
            return "missing"
        except (pa.ArrowException, OSError, IndexError):
            return "changed"  # a damaged disk; what is in it is not to be had any more
        if made_of != stamp:
            return "changed"
        return "whole" if count == len(self.rows(part)) else "partial"

    def write(self, part: int, rows: np.ndarray, vectors: np.ndarray, stamp: str) -> None:
        """Writes a part.

        Args:
            part: its number.
            rows: [b] int64, rows of the table, ascending.
            vectors: [b, D] float32.
            stamp: what it was made of, see `stamp_images`.

        Raises:
            InputError: the disk is full or not writable.
        """
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        batch = pa.RecordBatch.from_arrays([pa.array(rows, pa.int64()), column], ["row", "vector"])
        schema = batch.schema.with_metadata({"stamp": stamp})
        with atomic_write(self._file(part)) as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))

    def read(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [b] int64 and vectors [b, D] float32 of a part.

        Raises:
            InputError: it is not there.
        """
        try:
            with pa.memory_map(str(self._file(part))) as source:
                batch = pa.ipc.open_file(source).get_batch(0)
                vectors = batch.column(1)
                shape = (batch.num_rows, vectors.type.list_size)
                return batch.column(0).to_numpy().copy(), np.array(
                    vectors.flatten().to_numpy().reshape(shape)
                )
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self._file(part)}: cannot be read ({' '.join(str(error).split())}); run the same command "
                "again, with a folder that all processes share"
            ) from None

    def remove(self) -> None:
        """Removes the parts, and the folder if nothing else is in it."""
        self._remove_parts()
        for name in (BINDING, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _file(self, part: int) -> Path:
        return self.folder / f"part-{part:08d}.arrow"

    def _remove_parts(self) -> None:
        for file in self.folder.glob("part-*.arrow"):
            file.unlink(missing_ok=True)

    def _remove_temporary(self) -> None:
        """Removes what a killed process was writing, here and beside the target."""
        made = [self.target, *(sidecars(self.target) if self.target.suffix.lower() == ".npy" else ())]
        leftovers = [
            file for one in made for file in self.target.parent.glob(f".{glob.escape(one.name)}.*.tmp")
        ]
        for file in (*self.folder.glob(".*.tmp"), *leftovers):
            file.unlink(missing_ok=True)


def stamp_images(source: ImageSource, table: Manifest, rows: Sequence[int]) -> str:
    """SHA-256 (hex) of the paths of some rows, and of size and time of the files behind them.

    For an archive these are the archive's own; the paths of generated images say all about them. Where faces
    are aligned, their landmarks belong to it.

    Raises:
        InputError: a file is missing.
    """
    digest = hashlib.sha256()
    if isinstance(source, AlignedSource):
        for row in rows:
            digest.update(source.landmarks_of(table.path_at(row)).astype("<f4").tobytes())
        source = source.photos
    if isinstance(source, TarSource):
        digest.update(_stamp(Path(source.name)))
    folder = source.name if isinstance(source, FolderSource) else None
    for row in rows:
        path = table.path_at(row)
        digest.update(path.encode() + b"\0")
        if folder is not None:
            digest.update(_stamp(os.path.join(folder, path)))
    return digest.hexdigest()


def _stamp(file: str | Path) -> bytes:
    try:
        state = os.stat(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    return f"{state.st_size} {state.st_mtime_ns}\0".encode()
