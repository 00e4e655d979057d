"""The nearest others of each vector: of identities, or of images among those of other identities.

Exact: a block of rows against a block of columns at a time, so that memory never grows with the square of
the number of vectors. Approximate, on the CPU above a size: `metricid.mining.partition`.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from metricid.mining.checks import described
from metricid.mining.partition import partitioned_search
from metricid.mining.topk import Check, exact_search, never

__all__ = ["EXACT_UP_TO", "Neighbours", "check_table", "find_neighbours", "unit_vectors"]

EXACT_UP_TO = 200_000
SAMPLE = 500
CHUNK = 1 << 14  # rows that are scaled at a time


@dataclass(frozen=True)
class Neighbours:
    """A table of nearest identities, or images.

    Attributes:
        ids: [C, k] int32 on the CPU, nearest first, of equally near ones the smaller number first; -1 where
            one has no (further) neighbour.
        similarity: [C, k] float16 on the CPU, cosines; 0 where `ids` is -1.
        seconds: what the search took.
        recall: share of the true neighbours in the table, measured on a sample; 1.0 for an exact search.
    """

    ids: Tensor
    similarity: Tensor
    seconds: float = 0.0
    recall: float = 1.0

    def state(self) -> dict[str, object]:
        """What a checkpoint holds: plain tensors and numbers."""
        return {
            "ids": self.ids,
            "similarity": self.similarity,
            "seconds": self.seconds,
            "recall": self.recall,
        }


def unit_vectors(vectors: Tensor, exact_up_to: int = EXACT_UP_TO) -> Tensor:
    """The copy that a search works on: rows of length 1, or 0 for identities not seen yet.

    Args:
        vectors: [C, D], any float dtype, any device; later changes to it do not reach the copy.
        exact_up_to: as in `find_neighbours`.

    Returns:
        [C, D] float32; float16 for an approximate search, whose table is no finer.
    """
    dtype = torch.float32 if _is_exact(vectors, exact_up_to) else torch.float16
    copy = torch.empty_like(vectors, dtype=dtype, requires_grad=False)
    for part, into in zip(vectors.detach().split(CHUNK), copy.split(CHUNK), strict=True):
        part = part.float()
        into.copy_(part / part.norm(dim=1, keepdim=True).clamp_min(1e-12))
    return copy


def find_neighbours(
    vectors: Tensor,
    k: int = 50,
    *,
    exact_up_to: int = EXACT_UP_TO,
    normalized: bool = False,
    seed: int = 0,
    owners: Tensor | None = None,
    rows: Tensor | None = None,
    check: Check = never,
) -> Neighbours:
    """The k nearest others of each vector by cosine: of each identity, or of each image with `owners`.

    On a GPU always exact; on the CPU exact up to `exact_up_to` vectors, else approximate, with the recall
    measured on 500 of them. Exact means: up to rounding in the matrix products, whose precision
    on a GPU is PyTorch's setting (`torch.set_float32_matmul_precision`). Nobody is its own
    neighbour. A row of zeros stands for a vector that is not known: it has no neighbours and is nobody's.

    Args:
        vectors: [C, D], any float dtype; the search runs on its device.
        k: neighbours of each; with C <= k the last columns are empty.
        exact_up_to: most vectors for an exact search on the CPU.
        normalized: the rows have length 1 (or 0) and are used in place, which saves a copy.
        seed: of the partition and of the sample.
        owners: [C] integers, such as the identities of images: vectors of the same owner are not each
            other's neighbours. None: all may be.
        rows: [R] int64, whose neighbours are wanted; all if None.
        check: called many times; what it raises ends the search.

    Returns:
        The table, with R rows if `rows` are given; deterministic for the same vectors, device and number of
        threads.

    Raises:
        ValueError: not a [C, D] matrix, k below 1, another number of owners, or a value that is not finite.

    Example:
        >>> find_neighbours(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), k=1).ids.tolist()
        [[1], [0], [1]]
    """
    if not isinstance(vectors, Tensor) or vectors.dim() != 2:
        raise ValueError(f"vectors must be a tensor [C, D], not {described(vectors)}")
    if not vectors.is_floating_point():
        raise ValueError(f"vectors must be floats, not {vectors.dtype}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if owners is not None and owners.shape != vectors.shape[:1]:
        raise ValueError(f"{len(vectors)} vectors need as many owners, not {tuple(owners.shape)}")
    owners = None if owners is None else owners.to(vectors.device)
    began = time.perf_counter()
    with torch.no_grad():
        unit = vectors.detach() if normalized else unit_vectors(vectors, exact_up_to)
        lengths = torch.cat([part.float().norm(dim=1) for part in unit.split(CHUNK)])
        if not bool(lengths.isfinite().all()):
            raise ValueError("a vector holds a value that is not finite; has the training diverged?")
        known = lengths > 0
        recall = 1.0
        if _is_exact(unit, exact_up_to):
            table = exact_search(unit, known, k, rows, owners, check)
        else:
            table = partitioned_search(unit, known, k, rows, owners, seed=seed, check=check)
            recall = _recall(unit, known, table[0], seed, rows, owners)
    ids, similarity = (part.cpu() for part in table)
    return Neighbours(ids, similarity, time.perf_counter() - began, recall)


def check_table(table: Neighbours, number: int, what: str) -> None:
    """Refuses a table that is not of so many identities, or images.

    Raises:
        ValueError: another number of rows, ids and similarities of different shapes, or ids beyond the rows.
    """
    if len(table.ids) != number:
        raise ValueError(f"the neighbour table has {len(table.ids)} rows for {number} {what}")
    if table.ids.dim() != 2 or not table.ids.shape[1] or table.similarity.shape != table.ids.shape:
        raise ValueError(
            f"a neighbour table has ids and similarities of one shape [{number}, k], not "
            f"{tuple(table.ids.shape)} and {tuple(table.similarity.shape)}"
        )
    if int(table.ids.min()) < -1 or int(table.ids.max()) >= number:
        raise ValueError(f"a neighbour table of {number} {what} has ids from 0 to {number - 1}, or -1")


def _is_exact(vectors: Tensor, exact_up_to: int) -> bool:
    return len(vectors) <= exact_up_to or vectors.device.type != "cpu"


def _recall(
    unit: Tensor,
    known: Tensor,
    ids: Tensor,
    seed: int,
    rows: Tensor | None = None,
    owners: Tensor | None = None,
) -> float:
    """Share of the true neighbours of a sample that the table holds; 1 where there are none."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(ids), generator=generator)[:SAMPLE].sort().values
    chosen = places if rows is None else rows[places]
    truth = exact_search(unit, known, ids.shape[1], chosen, owners)[0]
    found = (truth[:, :, None] == ids[places][:, None, :]).any(dim=2) & (truth >= 0)
    wanted = int((truth >= 0).sum())
    return float(found.sum()) / wanted if wanted else 1.0
