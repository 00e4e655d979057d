"""The files of an index: written as a new generation, put in force by one rename, checked when read."""

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet

from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.search.kinds import KINDS, VectorIndex, faiss

CARD = "card.json"
LOCK = "lock"
FORMAT = 1
CHECKED_BYTES = 2**30  # larger files are checked by size unless asked for: reading them takes seconds
_OURS = re.compile(r"(vectors-\d+\.faiss|rows-\d+\.parquet)$|\.(vectors-|rows-|card\.json).*\.tmp$")
_TRIES = 5  # who loses files to a writer starts again
_held: set[Path] = set()  # locks of fcntl do not exclude threads of one process
_guard = threading.Lock()


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Makes this thread the only writer of the folder.

    Raises:
        InputError: another one is writing.
    """
    place = folder.resolve()
    with _guard:
        if place in _held:
            raise _busy(folder, os.getpid())
        _held.add(place)
    try:
        with _open_lock(folder) as file:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
    finally:
        with _guard:
            _held.discard(place)


def _open_lock(folder: Path) -> IO[str]:
    """The lock file, locked; once more where a build that was refused removed it at the same moment."""
    for _ in range(_TRIES):
        try:
            file = (folder / LOCK).open("a+")
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}); check the rights of it and its files"
            ) from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                return file
        except FileNotFoundError:
            pass
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise _busy(folder, holder) from None
        file.close()
    raise _busy(folder, "unknown")


def _busy(folder: Path, process: int | str) -> InputError:
    return InputError(f"{folder}: process {process} is changing this index; try again when it is done")


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an index.

    Raises:
        InputError: no index, or a card that cannot be understood.
    """
    file = folder / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: is no index (it has no {CARD}); make one with search build") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check its rights") from None
    except ValueError as error:
        raise InputError(f"{file}: cannot be read ({error}); build the index again") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        version = card.get("format") if isinstance(card, dict) else None
        raise InputError(f"{file}: has format {version}, this metricid reads {FORMAT}")
    wrong = next((name for name, fits in _FACTS.items() if not _holds(fits, card.get(name))), None)
    if wrong is None and _file_names(card) != names(card["generation"]):
        wrong = "files"
    if wrong is not None:
        raise InputError(
            f"{file}: is not the card of an index ({wrong!r} is missing or was changed); "
            "build the index again"
        )
    return card


def _holds(fits: Callable[[Any], bool], value: Any) -> bool:
    try:
        return fits(value)
    except (AttributeError, KeyError, TypeError):  # what is within is missing, or of another type
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_file(told: Any) -> bool:
    return all(isinstance(told[part], str) for part in ("name", "sha256")) and _is_count(told["bytes"])


def _is_recall(told: Any) -> bool:
    value = told["value"]
    return (value is None or isinstance(value, int | float)) and all(
        _is_count(told[part]) for part in ("at", "queries", "rows")
    )


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


# What the code relies on in a card; the rest is for people, or checked where it is used.
_FACTS: dict[str, Callable[[Any], bool]] = {
    "kind": KINDS.__contains__,
    "wanted": ("auto", *KINDS).__contains__,
    "target": lambda value: 0 < value <= 1,
    "generation": _is_count,
    "rows": _is_count,
    "dimension": _is_count,
    "effort": lambda value: _is_count(value) and value < 2**24,
    "recall": _is_recall,
    "files": lambda told: told.keys() == {"vectors", "rows"} and all(map(_is_file, told.values())),
    "model_path": _is_text,
    "changed": lambda value: isinstance(value, str),
}


def _file_names(card: dict[str, Any]) -> tuple[str, str]:
    return card["files"]["vectors"]["name"], card["files"]["rows"]["name"]


def load(folder: Path, mapped: bool, verify: bool) -> tuple[dict[str, Any], VectorIndex, pa.Table]:
    """The generation in force: card, vectors, rows.

    Args:
        folder: of the index.
        mapped: leave the vectors on the disk until they are needed.
        verify: compare the checksum of the vectors however large they are.

    Raises:
        InputError: a file is missing, cut off, damaged, or does not belong to the others.
    """
    for _ in range(_TRIES):
        card = read_card(folder)
        try:
            return card, _load_vectors(folder, card, mapped, verify), _load_rows(folder, card)
        except FileNotFoundError as error:
            missing = error
            if read_card(folder)["generation"] == card["generation"]:
                break
        except OSError as error:
            raise InputError(
                f"{error.filename or folder}: cannot be read ({error.strerror}); "
                "check its rights, or build the index again"
            ) from None
    raise InputError(f"{missing.filename}: is missing; build the index again")


def _load_vectors(folder: Path, card: dict[str, Any], mapped: bool, verify: bool) -> VectorIndex:
    told = card["files"]["vectors"]
    file = folder / told["name"]
    size = file.stat().st_size
    if size != told["bytes"]:
        raise InputError(
            f"{file}: has {size} bytes, the card says {told['bytes']}: cut off or replaced; "
            "build the index again"
        )
    if (verify or size <= CHECKED_BYTES) and checksum(file) != told["sha256"]:
        raise InputError(f"{file}: is damaged (its checksum differs from the card's); build the index again")
    try:
        index = VectorIndex.load(card["kind"], file, mapped)
    except InputError:
        file.stat()  # raises where a writer has just deleted it, and the caller starts again
        raise
    if (len(index), index.dimension) != (card["rows"], card["dimension"]):
        raise InputError(
            f"{file}: holds {len(index)} vectors of {index.dimension}, "
            f"the card says {card['rows']} of {card['dimension']}; build the index again"
        )
    return index


def _load_rows(folder: Path, card: dict[str, Any]) -> pa.Table:
    told = card["files"]["rows"]
    file = folder / told["name"]
    # In memory of Arrow's own: a thread of its pool may be the last to let go of it, and dies when it lets go
    # of `bytes` while Python ends ("terminate called without an active exception").
    content = pa.allocate_buffer(file.stat().st_size)
    with file.open("rb") as source:
        source.readinto(content)
    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: is cut off or damaged ({reason}); build the index again") from None
    if len(table) != card["rows"]:
        raise InputError(f"{file}: has {len(table)} rows for {card['rows']} vectors; build the index again")
    if hashlib.sha256(content).hexdigest() != told["sha256"]:
        raise InputError(f"{file}: was changed (its checksum differs from the card's); build the index again")
    return table.combine_chunks()


def checksum(file: Path) -> str:
    """SHA-256 of a file, as hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def names(generation: int) -> tuple[str, str]:
    """The vector file and the row file of a generation."""
    return f"vectors-{generation}.faiss", f"rows-{generation}.parquet"


def disk_bytes(folder: Path) -> int:
    """What the files of the folder take; a writer may be deleting some."""
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


def write_vectors(index: VectorIndex, file: IO[bytes]) -> None:
    """Writes the FAISS index to an open file."""
    faiss.write_index(index.index, faiss.PyCallbackIOWriter(file.write, 1 << 20))


def commit(folder: Path, card: dict[str, Any]) -> None:
    """Puts the generation of the card in force, whose two files are there, and deletes all others."""
    files = dict(zip(("vectors", "rows"), names(card["generation"]), strict=True))
    described = {
        part: {"name": name, "bytes": (folder / name).stat().st_size, "sha256": checksum(folder / name)}
        for part, name in files.items()
    }
    with atomic_write(folder / CARD, "w") as file:
        json.dump({"format": FORMAT, **card, "files": described}, file, indent=2, allow_nan=False)
        file.write("\n")
    sweep(folder, set(files.values()))


def sweep(folder: Path, keep: set[str]) -> None:
    """Deletes what belongs to no generation in force: older ones, and what a killed writer left.

    Only the holder of the lock may call it.
    """
    for file in folder.iterdir():
        if _OURS.search(file.name) and file.name not in keep:
            with suppress(FileNotFoundError):
                file.unlink()


def abandon(folder: Path, before: set[str]) -> None:
    """Deletes what a build wrote that did not end, and the lock if there is no index to lock.

    Only the holder of the lock may call it.

    Args:
        folder: of the index.
        before: names in it when the build began, kept where no card says what is in force.
    """
    try:
        keep = {told["name"] for told in read_card(folder)["files"].values()}
    except InputError:
        keep = before
    sweep(folder, keep)
    if not (folder / CARD).exists():
        (folder / LOCK).unlink(missing_ok=True)


def only_leftovers(folder: Path) -> bool:
    """The folder holds nothing but what an interrupted build leaves."""
    return all(file.name == LOCK or _OURS.search(file.name) for file in folder.iterdir())
