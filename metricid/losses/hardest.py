"""The hardest triplet of each anchor of a batch, from half of its distances."""

import torch
from torch import Tensor

from metricid.losses.distances import ROWS, DistanceRows, mirrors
from metricid.losses.matrices import Pairs
from metricid.mining.inbatch import Triplets


def takes_half(pairs: Pairs) -> bool:
    """Whether `hardest_by_half` is for these pairs: all of a batch, large, where products are dear."""
    whole = pairs.own and pairs.used is None and pairs.weights is None
    return whole and len(pairs.x) > 2 * ROWS and mirrors(pairs.x, None)


@torch.no_grad()
def hardest_by_half(pairs: Pairs) -> Triplets:
    """As `batch_hard` of all distances, each of which is computed once and looked at from both of its ends.

    Rows of one label stand together: an anchor's positives are then near the diagonal, and what is beyond
    needs no mask. No more than `ROWS` rows of distances are held.

    Args:
        pairs: from `compare`, with `takes_half`.

    Returns:
        One triplet for each anchor, T = 1.
    """
    size = len(pairs.x)
    order, runs = _by_label(pairs.labels)
    ends = torch.searchsorted(runs, runs, right=True)  # of the rows with the same label
    source = DistanceRows(pairs.x if order is None else pairs.x[order], None, squared=True)
    farthest, nearest = _Least(pairs.x), _Least(pairs.x)
    place = pairs.x.new_empty(min(size, ROWS) * size)
    for start in range(0, size, ROWS):
        rows = slice(start, min(start + ROWS, size))
        shape = len(runs[rows]), size - start
        sheet = source.fill(rows, place[: shape[0] * shape[1]].view(shape))
        end = int(ends[rows.stop - 1])
        same = runs[rows, None] == runs[start:end]
        here = sheet[:, : end - start]
        opposite = -here
        here.masked_fill_(same, torch.inf)
        nearest.take(start, sheet)
        farthest.take(start, opposite.masked_fill_(~same.fill_diagonal_(False), torch.inf))
    counts = ends - torch.searchsorted(runs, runs)
    positive, negative, valid = farthest.places, nearest.places, (counts > 1) & (counts < size)
    if order is not None:
        back = order.argsort()
        positive, negative, valid = order[positive][back], order[negative][back], valid[back]
    return Triplets(positive[:, None], negative[:, None], valid[:, None])


def _by_label(labels: Tensor) -> tuple[Tensor | None, Tensor]:
    """An order that brings equal labels together, or None where they are; and their numbers [B] there."""
    found, runs = labels.unique_consecutive(return_inverse=True)
    if len(found) == len(found.unique()):
        return None, runs
    labels, order = labels.sort()
    return order, labels.unique_consecutive(return_inverse=True)[1]


class _Least:
    """The smallest value in each row of a symmetric sheet, so far, and its column.

    Attributes:
        values: [B], infinite where there is none.
        places: [B] int64.
    """

    def __init__(self, like: Tensor):
        self.values = like.new_full((len(like),), torch.inf)
        self.places = torch.zeros(len(like), dtype=torch.int64)

    def take(self, start: int, upper: Tensor) -> None:
        """Looks at some rows from `start` on, [R, W] from their diagonal on, and at what mirrors them."""
        rows = slice(start, start + len(upper))
        values, places = upper.min(dim=1)
        better = values < self.values[rows]
        self.values[rows] = values.where(better, self.values[rows])
        self.places[rows] = (places + start).where(better, self.places[rows])
        beyond = upper[:, len(upper) :]
        values = beyond.amin(dim=0)
        # After the first rows few columns have a new least value, and to look for its place is slow.
        better = (values < self.values[rows.stop : rows.stop + len(values)]).nonzero()[:, 0]
        self.values[rows.stop + better] = values[better]
        self.places[rows.stop + better] = start + beyond.index_select(1, better).argmin(dim=0)
