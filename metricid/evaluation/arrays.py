"""The door of the room: embeddings and ids come in here, are checked once, and leave in one known form."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_ROWS = 4096  # rows worked on at a time where a float64 copy of everything would be wasteful


def check_embeddings(embeddings: ArrayLike, name: str = "embeddings") -> FloatArray:
    """Embeddings as a C-contiguous float32 array, or one clear line about what is wrong with them.

    Args:
        embeddings: [N, D] numbers; anything NumPy can read, a CPU tensor included.
        name: how messages call the array.

    Returns:
        [N, D] float32; the given array itself where it already has this form.

    Raises:
        ValueError: not two-dimensional, not real numbers, empty, or a row with NaN or infinity.
    """
    array = np.asarray(embeddings)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must be a [N, D] array of real numbers, not shape {list(array.shape)} of {array.dtype}"
        )
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise ValueError(f"{name} is empty (shape {list(array.shape)}): nothing can be evaluated")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    for rows in slices(len(array), _ROWS):
        finite = np.isfinite(array[rows]).all(axis=1)
        if not finite.all():
            row = rows.start + int(np.argmin(finite))
            raise ValueError(
                f"{name} row {row} (counted from 0) holds NaN or infinity: "
                "the model diverged, or the file is damaged"
            )
    return array


def slices(total: int, step: int) -> Iterator[slice]:
    """Consecutive slices that cover `range(total)`."""
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def normalise(embeddings: FloatArray, name: str = "embeddings", dtype: Any = np.float32) -> NDArray[Any]:
    """Rows divided by their L2 norm; the arithmetic is float64, so that scaled copies stay copies.

    Raises:
        ValueError: a row is the zero vector, which has no direction.
    """
    unit = np.empty(embeddings.shape, dtype=dtype)
    for rows in slices(len(embeddings), _ROWS):
        wide = embeddings[rows].astype(np.float64)
        norm = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        if not norm.all():
            row = rows.start + int(np.argmin(norm))
            raise ValueError(
                f"{name} row {row} (counted from 0) is the zero vector, for which cosine is not defined"
            )
        unit[rows] = wide / norm[:, None]
    return unit


def combine_flip(
    embeddings: ArrayLike, flipped: ArrayLike | None = None, mode: str = "sum"
) -> NDArray[np.float32]:
    """One unit embedding per image from the image and its mirror image.

    Args:
        embeddings: [N, D] of the images, as the model gave them (not normalised).
        flipped: [N, D] of the mirrored images; needed by `sum`.
        mode: `sum` adds the raw embeddings and normalises once; `none` only normalises.

    Returns:
        [N, D] float32 with unit rows.

    Raises:
        ValueError: unknown mode, shapes disagree, or a sum is the zero vector.

    Example:
        >>> combine_flip([[3.0, 0.0]], [[0.0, 4.0]]).round(3).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    straight = check_embeddings(embeddings)
    if mode == "none":
        return normalise(straight)
    if mode != "sum":
        raise ValueError(f"flip mode must be 'sum' or 'none', not {mode!r}")
    if flipped is None:
        raise ValueError("flip mode 'sum' needs the embeddings of the mirrored images")
    mirrored = check_embeddings(flipped, "flipped embeddings")
    if mirrored.shape != straight.shape:
        raise ValueError(
            f"embeddings {list(straight.shape)} and flipped embeddings {list(mirrored.shape)} differ in shape"
        )
    return normalise(straight + mirrored, "the sum of embeddings and flipped embeddings")


def as_column(values: ArrayLike) -> NDArray[Any]:
    """An array of labels as they are given; NumPy alone would make text of the numbers in `[7, "7"]`."""
    array = np.asarray(values)
    return np.asarray(values, dtype=object) if array.dtype.kind in "US" else array


def encode(columns: Sequence[tuple[str, ArrayLike, int]]) -> list[IntArray]:
    """Numbers the distinct values of several columns together: equal values get equal codes.

    Integers of any size and strings are compared exactly; nothing passes through floating point.

    Args:
        columns: (name for messages, values, expected length) each.

    Returns:
        One int64 array of codes per column.

    Raises:
        ValueError: a wrong length, values that are neither strings nor integers, columns of different kinds.
    """
    lists: list[list[Any]] = []
    kinds: set[type] = set()
    for name, values, length in columns:
        array = as_column(values)
        if array.ndim != 1 or len(array) != length:
            raise ValueError(f"{name} has shape {list(array.shape)}, but {length} values are needed")
        items = array.tolist()
        column_kinds = {str if isinstance(v, str) else int if isinstance(v, int) else type(v) for v in items}
        strange = column_kinds - {str, int}
        if strange:
            row = next(i for i, v in enumerate(items) if not isinstance(v, str | int))
            raise ValueError(
                f"{name} must be strings or integers; row {row} (counted from 0) is {items[row]!r}"
            )
        kinds |= column_kinds
        lists.append(items)
    if len(kinds) > 1:
        names = " and ".join(dict.fromkeys(name for name, _, _ in columns))
        raise ValueError(f"{names} mix strings and integers: 7 and '7' would never match")
    codes: dict[Any, int] = {}
    return [
        np.fromiter((codes.setdefault(v, len(codes)) for v in items), dtype=np.int64, count=len(items))
        for items in lists
    ]


def unique_rows(array: NDArray[Any]) -> tuple[NDArray[Any], IntArray] | None:
    """The distinct rows and, for each row, which of them it is; None where all rows differ.

    Matrix products give equal rows slightly different scores, depending on where they lie in the matrix.
    Scores computed once per distinct row make equal embeddings tie exactly.
    """
    plain = np.ascontiguousarray(array + 0.0)  # -0.0 becomes 0.0: equal numbers, equal bytes
    as_bytes = plain.view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()
    order = np.argsort(as_bytes, kind="stable")
    first = np.ones(len(order), dtype=bool)
    first[1:] = as_bytes[order[1:]] != as_bytes[order[:-1]]
    if first.all():
        return None
    which = np.empty(len(order), dtype=np.int64)
    which[order] = np.cumsum(first) - 1
    return plain[order[first]], which
