"""Exact nearest neighbours in blocks, with ties in the order of the numbers."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Check", "exact_search", "first_largest", "merge_tables", "never"]

Check = Callable[[], None]  # called now and then; what it raises ends a search

CELLS_CPU = 1 << 23  # scores of one block: 32 MB
CELLS_OTHER = 1 << 28  # 1 GB, on a GPU
ROWS_CPU = 1024
ROWS_OTHER = 8192


def never() -> None:
    """The check of a search that nothing ends."""


def first_largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row in falling order, of equal ones the leftmost.

    `torch.topk` returns any of equal ones. Rows where it had a choice are done again, by counting.

    Args:
        scores: [R, M].
        k: at most M.

    Returns:
        values [R, k], columns [R, k] int64.
    """
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    again = (values[:, k - 1 : -1] == values[:, k:]).flatten().nonzero().squeeze(1)
    values, columns = values[:, :k].contiguous(), columns[:, :k].contiguous()
    if len(again):
        block, last = scores[again], values[again, -1:]
        above = block > last
        level = block == last
        room = k - above.sum(dim=1, keepdim=True)
        taken = above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= room))
        columns[again] = taken.nonzero()[:, 1].view(-1, k)
        values[again] = block.gather(1, columns[again])
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def merge_tables(
    values: Tensor, ids: Tensor, new_values: Tensor, new_ids: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of two tables side by side; of equal ones those of the first table come first.

    Args:
        values: [R, A], falling.
        ids: [R, A].
        new_values: [R, B], falling.
        new_ids: [R, B].
        k: columns of the result, fewer where A + B is less.

    Returns:
        values, ids [R, min(k, A + B)].
    """
    both, order = torch.cat([values, new_values], dim=1).sort(dim=1, descending=True, stable=True)
    return both[:, :k], torch.cat([ids, new_ids], dim=1).gather(1, order[:, :k])


def exact_search(
    unit: Tensor,
    known: Tensor,
    k: int,
    rows: Tensor | None = None,
    owners: Tensor | None = None,
    check: Check = never,
) -> tuple[Tensor, Tensor]:
    """The k nearest others of each row (or of some rows) by dot product.

    Time is O(R x C x D); memory beyond the vectors and the result is one block of scores.

    Args:
        unit: [C, D] float32, or float16 of which blocks are made float32.
        known: [C] bool; the others have no neighbours and are nobody's.
        k: columns of the result; those beyond C - 1 stay empty.
        rows: [R] int64, whose neighbours; all if None.
        owners: [C]; rows of the same owner are not each other's neighbours. None: all may be.
        check: called before each block.

    Returns:
        ids [R, k] int32 (-1 where empty), values [R, k] float16 (0 where empty), on the device of `unit`.
    """
    number, device = len(unit), unit.device
    here = torch.arange(number, device=device) if rows is None else rows.to(device)
    on_cpu = device.type == "cpu"
    high = ROWS_CPU if on_cpu else ROWS_OTHER
    wide = max((CELLS_CPU if on_cpu else CELLS_OTHER) // high, 1)
    ids = torch.full((len(here), k), -1, dtype=torch.int32, device=device)
    values = torch.zeros((len(here), k), dtype=torch.float16, device=device)
    hidden = None if bool(known.all()) else ~known
    for first in range(0, len(here), high):
        mine = here[first : first + high]
        queries = unit[mine].float()
        best = queries.new_empty(len(mine), 0)
        best_ids = torch.empty((len(mine), 0), dtype=torch.int32, device=device)
        for left in range(0, number, wide):
            check()
            scores = queries @ unit[left : left + wide].float().T
            hide(scores, mine, left, hidden)
            if owners is not None:
                same = owners[mine, None] == owners[left : left + wide]
                scores.masked_fill_(same, -torch.inf)
            value, column = first_largest(scores, min(k, scores.shape[1]))
            best, best_ids = merge_tables(best, best_ids, value, (column + left).int(), k)
        keep(ids, values, slice(first, first + high), best, best_ids)
    if hidden is not None:
        ids.masked_fill_(hidden[here][:, None], -1)
        values.masked_fill_(hidden[here][:, None], 0)
    return ids, values


def hide(scores: Tensor, rows: Tensor, left: int, hidden: Tensor | None) -> None:
    """Sets the scores [R, M] of each row with itself, and with hidden columns, to minus infinity.

    Args:
        scores: columns are the identities from `left` on.
        rows: [R] int64, the identities of the rows.
        left: number of the first column.
        hidden: [C] bool, or None.
    """
    place = rows - left
    inside = ((place >= 0) & (place < scores.shape[1])).nonzero().squeeze(1)
    scores[inside, place[inside]] = -torch.inf
    if hidden is not None:
        scores.masked_fill_(hidden[left : left + scores.shape[1]], -torch.inf)


def keep(ids: Tensor, values: Tensor, rows: slice, best: Tensor, best_ids: Tensor) -> None:
    """Writes a block into the result; what is hidden or missing stays empty."""
    real = best > -torch.inf
    ids[rows, : best.shape[1]] = torch.where(real, best_ids, -1)
    values[rows, : best.shape[1]] = torch.where(real, best, 0.0).half()
