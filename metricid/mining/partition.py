"""Approximate nearest neighbours of very many vectors, on the CPU.

The vectors are partitioned by k-means (of FAISS), as for an inverted file, and each is compared with the
members of the lists nearest to it. An inverted file reads vectors query by query and waits for the memory;
here all queries that visit a list meet its members in one matrix product, in 16 bits where the processor
multiplies these natively. The best of each are then compared once more in float32.
"""

import math
from collections.abc import Iterator

import faiss
import torch
from torch import Tensor
from torch.nn import functional as F

from metricid.mining.topk import Check, exact_search, keep, merge_tables, never

__all__ = ["partitioned_search"]

TARGET = 0.925  # of the true neighbours in the lists visited, as chosen on a sample
MOST_VISITED = 0.5  # of the lists
SAMPLE = 300
TRAIN_PER_LIST = 64
BLOCK = 16_384  # queries at a time
DENSE = 4  # nearest lists, whose best set the bar for the others
HELD = 1 << 22  # candidates before they are merged
GROUP = 16  # columns compared with the bar by their largest
FILL = 64  # numbers of rows and of columns of a product are multiples of it
TOGETHER = 1024  # most rows of a product
CHUNK = 2048  # rows of a matrix product
FEW = 128  # rows whose candidates fit into the processor cache


def partitioned_search(
    unit: Tensor,
    known: Tensor,
    k: int,
    rows: Tensor | None = None,
    owners: Tensor | None = None,
    *,
    seed: int = 0,
    check: Check = never,
) -> tuple[Tensor, Tensor]:
    """The k nearest others of each row by dot product, most of them.

    How many lists are visited follows from the true neighbours of a sample. Memory beyond the vectors
    and the result: blocks of a fixed size.

    Args:
        unit: [C, D] float16 or float32 on the CPU, rows of length 1.
        known: [C] bool; the others have no neighbours and are nobody's.
        k: columns of the result.
        rows: [R] int64, whose neighbours; all if None.
        owners: [C]; rows of the same owner are not each other's neighbours. None: all may be.
        seed: of the sample and of k-means.
        check: called before each list of each block.

    Returns:
        ids [R, k] int32 (-1 where empty), values [R, k] float16 (0 where empty).
    """
    here = torch.arange(len(unit)) if rows is None else rows
    ids = torch.full((len(here), k), -1, dtype=torch.int32)
    values = torch.zeros((len(here), k), dtype=torch.float16)
    members = known.nonzero().squeeze(1)
    if len(members) < 2:
        return ids, values
    lists = _Lists(unit, members, seed, check)
    visits = _enough_visits(unit, known, lists, k, seed, owners)
    for place in known[here].nonzero().squeeze(1).split(BLOCK):
        ids[place], values[place] = _search_block(unit, lists, here[place], visits, k, owners)
    return ids, values


class _Lists:
    """The partition: centres, and the members of each list in the order of their numbers."""

    def __init__(self, unit: Tensor, rows: Tensor, seed: int, check: Check):
        self.check = check
        number = 2 ** round(math.log2(math.sqrt(len(rows))))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(rows), generator=generator)[: number * TRAIN_PER_LIST]
        means = faiss.Kmeans(unit.shape[1], number, niter=8, spherical=True, seed=seed + 1)
        means.cp.max_points_per_centroid = TRAIN_PER_LIST
        means.cp.min_points_per_centroid = 1
        means.train(unit[rows[chosen]].float().numpy())
        self.unit = unit
        self.dtype = torch.bfloat16 if _fast_bfloat16() else torch.float32
        self.centers = torch.from_numpy(means.centroids).to(self.dtype)
        self.owner = torch.full((len(unit),), -1, dtype=torch.int32)
        for part in rows.split(CHUNK):
            check()
            self.owner[part] = self.scores(part).argmax(dim=1).int()
        owner = self.owner[rows]
        self.sizes = torch.bincount(owner, minlength=number)
        self.members = rows[owner.argsort(stable=True)].split(self.sizes.tolist())

    def scores(self, rows: Tensor) -> Tensor:
        """[R, lists], of some rows with the centres."""
        return self.vectors(rows) @ self.centers.T

    def vectors(self, rows: Tensor) -> Tensor:
        """[R, D] as they are multiplied."""
        return self.unit.index_select(0, rows).to(self.dtype)  # several times as fast as `unit[rows]`

    def nearest(self, rows: Tensor, visits: int) -> Tensor:
        """[R, visits] int32, the list of each row, and those nearest to it, nearest first."""
        parts = []
        for part in rows.split(CHUNK):
            scores = self.scores(part)
            # Its own is the nearest, but where centres coincide others are as near, and may have no members.
            scores.scatter_(1, self.owner[part, None].long(), torch.inf)
            parts.append(scores.topk(visits, dim=1).indices.int())
        return torch.cat(parts)


def _fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively; elsewhere this is slower than float32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def _enough_visits(
    unit: Tensor, known: Tensor, lists: _Lists, k: int, seed: int, owners: Tensor | None
) -> int:
    """The least number of lists that hold the wanted share of the true neighbours of a sample."""
    generator = torch.Generator().manual_seed(seed + 1)
    rows = known.nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=generator)[:SAMPLE]]
    truth = exact_search(unit, known, k, rows, owners)[0]
    order = lists.scores(rows).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1]).expand_as(order).contiguous()
    )
    needed = rank.gather(1, lists.owner[truth.clamp_min(0)].long())[truth >= 0].sort().values
    if not len(needed):  # all of one owner
        return min(DENSE, len(lists.members))
    enough = int(needed[math.ceil(TARGET * len(needed)) - 1]) + 1
    number = len(lists.members)
    return min(max(enough, DENSE), max(int(MOST_VISITED * number), DENSE), number)


def _search_block(
    unit: Tensor, lists: _Lists, mine: Tensor, visits: int, k: int, owners: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The rows of the result that are `mine` ([B]): ids and values, [B, k]."""
    wide = k + max(8, k // 4) + 1  # the row itself, and what 16 bits may misplace
    probes = lists.nearest(mine, visits)
    dense = min(DENSE, visits)
    best = torch.full((len(mine), dense * wide), -torch.inf)
    best_ids = torch.full((len(mine), dense * wide), -1, dtype=torch.int32)
    left = lists.vectors(mine)
    for members, queries, place, scores in _visits(lists, left, probes[:, :dense]):
        scores = scores[:, : len(members)].float()
        _hide_own(scores, mine[queries], members, owners)
        value, column = scores.topk(min(wide, len(members)), dim=1)
        columns = place[:, None] * wide + torch.arange(value.shape[1])
        best[queries[:, None], columns] = value
        best_ids[queries[:, None], columns] = members[column].int()
    best, order = best.topk(min(wide, best.shape[1]), dim=1)
    top = _Top(best, best_ids.gather(1, order), lists.dtype)
    for members, queries, _, scores in _visits(lists, left, probes[:, dense:]):
        _hide_own(scores[:, : len(members)], mine[queries], members, owners)
        top.add(queries, members, scores)
    top.merge()
    ids = torch.full((len(mine), k), -1, dtype=torch.int32)
    values = torch.zeros((len(mine), k), dtype=torch.float16)
    for first in range(0, len(mine), FEW):
        here = mine[first : first + FEW]
        near = top.ids[first : first + FEW].sort(dim=1).values
        others = unit.index_select(0, near.clamp_min(0).flatten()).view(*near.shape, -1)
        exact = torch.bmm(others.float(), unit.index_select(0, here)[:, :, None].float()).squeeze(2)
        hidden = (near < 0) | (near == here[:, None])
        if owners is not None:
            hidden |= owners[near.clamp_min(0).long()] == owners[here, None]
        exact.masked_fill_(hidden, -torch.inf)
        exact, order = exact.sort(dim=1, descending=True, stable=True)
        keep(ids, values, slice(first, first + FEW), exact[:, :k], near.gather(1, order[:, :k]))
    return ids, values


def _hide_own(scores: Tensor, rows: Tensor, members: Tensor, owners: Tensor | None) -> None:
    """Sets the scores [R, M] of rows [R] with members [M] of the same owner to minus infinity."""
    if owners is not None:
        scores.masked_fill_(owners[rows, None] == owners[members], -torch.inf)


def _visits(lists: _Lists, left: Tensor, probes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The scores of a block with the lists that it visits, some rows and one list at a time.

    Products have one of a few shapes, since each new shape is first compiled, which takes longer than many
    a product.

    Args:
        lists: the partition.
        left: [B, D], the vectors of the block.
        probes: [B, visits] int32, which lists each row visits.

    Yields:
        members [M] of a list, rows [R] of the block, as which of their nearest lists they visit it [R], and
        the scores [R, at least M, a multiple of `FILL`], the further columns being of nobody.
    """
    flat = probes.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(lists.members)).tolist()
    for members, visitors in zip(lists.members, order.split(counts), strict=True):
        if not len(members) or not len(visitors):
            continue
        lists.check()
        right = F.pad(lists.vectors(members), (0, 0, 0, -len(members) % FILL)).T
        for part in visitors.split(TOGETHER):
            rows = part // probes.shape[1]
            scores = left.index_select(0, F.pad(rows, (0, -len(rows) % FILL))) @ right
            yield members, rows, part % probes.shape[1], scores[: len(rows)]


class _Top:
    """The best of each query of a block, and candidates that beat the last of them."""

    def __init__(self, values: Tensor, ids: Tensor, dtype: torch.dtype):
        self.values, self.ids = values, ids
        self._dtype = dtype
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._held = 0
        self.bar = values[:, -1].to(dtype)

    def add(self, queries: Tensor, members: Tensor, scores: Tensor) -> None:
        """Keeps what is above the bar of its query.

        Args:
            queries: [Q].
            members: [M].
            scores: [Q, at least M, a multiple of GROUP], the further columns being of nobody.
        """
        bar = self.bar[queries]
        # Few are above the bar: first the largest of each group of columns, since comparing is slow.
        groups = scores.view(len(queries), GROUP, -1)
        width = groups.shape[2]
        high = (groups.amax(dim=1) > bar[:, None]).flatten().nonzero()
        row = high // width
        column = high % width + width * torch.arange(GROUP)
        found = scores.flatten()[row * scores.shape[1] + column]
        group, place = ((found > bar[row]) & (column < len(members))).nonzero(as_tuple=True)
        column = column[group, place]
        self._waiting.append((queries[row[group, 0]].int(), members[column].int(), found[group, place]))
        self._held += len(group)
        if self._held > HELD:
            self.merge()

    def merge(self) -> None:
        """Takes in the candidates and raises the bar."""
        if not self._held:
            return
        queries, ids, values = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._held = [], 0
        number, wide = self.values.shape
        # One whole number sorts by query and then by falling value, which lies in [-1, 1] but for rounding.
        keys = queries.long() << 32 | ((2 - values.float()) * 2**29).long()
        keys, order = keys.sort()
        queries, ids, values = queries[order].long(), ids[order], values[order].float()
        counts = torch.bincount(queries, minlength=number)
        place = torch.arange(len(queries)) - (counts.cumsum(0) - counts)[queries]
        kept = place < wide
        new = torch.full((number, wide), -torch.inf)
        new_ids = torch.full((number, wide), -1, dtype=torch.int32)
        new[queries[kept], place[kept]] = values[kept]
        new_ids[queries[kept], place[kept]] = ids[kept]
        self.values, self.ids = merge_tables(self.values, self.ids, new, new_ids, wide)
        self.bar = self.values[:, -1].to(self._dtype)
