"""What a miner chooses among the pairs of a loss."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.losses.distances import DistanceRows, row_blocks
from metricid.losses.hardest import hardest_by_half, takes_half
from metricid.losses.matrices import Pairs
from metricid.mining.inbatch import Triplets
from metricid.mining.miners import (
    BatchAll,
    BatchHard,
    Beside,
    Mined,
    Miner,
    TripletSet,
    build_miner,
    pair_weights,
)

MinerChoice = str | Mapping[str, Any] | Miner | None
# As the constructors of losses take it, where a recipe is checked against their hints.
MinerOption = str | dict[str, Any] | None


def miner_of(choice: MinerChoice) -> Miner | None:
    """The miner that is asked for; None for 'batch_all', which is what every loss does without one."""
    found = build_miner(choice)
    return None if isinstance(found, BatchAll) else found


def may_mine(choice: MinerChoice) -> tuple[bool, str]:
    """Rule for `check_options`: no miner, or one that can be built."""
    try:
        build_miner(choice)
    except ValueError as error:
        return False, str(error)
    return True, ""


def no_miner(choice: MinerOption, reason: str) -> tuple[bool, str]:
    """Rule for `check_options` of a loss for which no pairs can be chosen."""
    return choice is None, f"is not for this loss, which {reason}; leave it out"


@torch.no_grad()
def keep(pairs: Pairs, miner: Miner | None, *, squared: bool = False) -> Pairs:
    """The pairs with the miner's weights; just as they are without a miner.

    Args:
        pairs: from `compare`.
        miner: any.
        squared: give it squared distances where it takes distances.
    """
    if miner is None:
        return pairs
    weights: Tensor | None = None
    for rows, sheet, found in _found(pairs, miner, squared):
        part = pair_weights(found, sheet)
        if len(part) == len(pairs.x):
            weights = part
            continue
        weights = pairs.x.new_empty(len(pairs.x), len(pairs.y)) if weights is None else weights
        weights[rows] = part
    assert weights is not None  # a batch has a row
    miner.tally.add(torch.count_nonzero(weights))
    return replace(pairs, weights=weights)


@torch.no_grad()
def choose(pairs: Pairs, miner: Miner, *, squared: bool, sheet: Tensor | None = None) -> Triplets:
    """The triplets of a miner that gives some.

    Args:
        pairs: from `compare`.
        miner: one with `in_triplets`.
        squared: give it squared distances where it takes distances.
        sheet: [A, N], these distances, where they are known.
    """
    if sheet is not None and miner.measure == "distance":
        found = [miner(sheet, *pairs.masks())]
    elif type(miner) is BatchHard and takes_half(pairs):
        found = [hardest_by_half(pairs)]
    else:
        found = [part for _, _, part in _found(pairs, miner, squared)]
    parts = [part for part in found if isinstance(part, Triplets)]
    width = max(part.valid.shape[1] for part in parts)
    wide = (Triplets(*(F.pad(t, (0, width - t.shape[1])) for t in part)) for part in parts)
    triplets = Triplets(*(torch.cat(columns) for columns in zip(*wide, strict=True)))
    miner.tally.add(torch.count_nonzero(triplets.valid))
    return triplets


def triplets_of(
    pairs: Pairs, miner: TripletSet, sheet: Tensor, *, squared: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The triplets of a miner with a rule for single ones, in blocks, as `batch_all` gives them.

    Args:
        pairs: from `compare`.
        miner: whose.
        sheet: [A, N] distances, outside of the graph.
        squared: they are squared ones.
    """
    count = torch.zeros((), dtype=torch.int64, device=sheet.device)
    if squared and not miner.takes_squares:
        sheet = sheet.sqrt()
    for columns, valid in miner.triplets(sheet, *pairs.masks(), _beside(pairs, miner)):
        count += torch.count_nonzero(valid)
        yield columns, valid
    miner.tally.add(count)


def _found(pairs: Pairs, miner: Miner, squared: bool) -> Iterator[tuple[slice, Tensor, Mined]]:
    """Rows, their sheet, and what the miner makes of it; all rows at once if they depend on each other."""
    beside = _beside(pairs, miner)
    for rows, sheet in _sheets(pairs, miner, squared):
        yield rows, sheet, miner(sheet, *pairs.masks(rows), beside)


def _sheets(pairs: Pairs, miner: Miner, squared: bool) -> Iterator[tuple[slice, Tensor]]:
    x, y = pairs.x, None if pairs.own else pairs.y
    if miner.measure != "distance":
        x, y = F.normalize(x, dim=1), None if y is None else F.normalize(y, dim=1)
    other = x if y is None else y
    blocks = list(row_blocks(x, len(other)))
    if not miner.by_rows:
        blocks = [slice(0, len(x))]
    if miner.measure == "cosine":
        yield from ((rows, x[rows] @ other.T) for rows in blocks)
    else:
        source = DistanceRows(x, y, squared and miner.takes_squares)
        yield from ((rows, source.block(rows)) for rows in blocks)


def _beside(pairs: Pairs, miner: Miner) -> Beside:
    if pairs.own or miner.by_rows:
        return Beside(pairs.x.shape[1])
    return Beside(pairs.x.shape[1], DistanceRows(pairs.y, None, squared=False).block)
