"""All lists of probably wrong labels at once, with a guard that fits the embeddings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metricid.mining.neighbours import CHUNK
from metricid.mining.noise import (
    GAP,
    SuspectImages,
    compare_images,
    far_images,
    identity_sums,
    pick_suspects,
    suspect_pairs,
    unit_rows,
)

__all__ = ["HALVES", "Suspects", "find_suspects", "halves_cosine", "typical_images"]

HALVES = 0.25  # of the identities have halves less alike than a guard that is not given; docs/suspects.md


@dataclass(frozen=True)
class Suspects:
    """What may be wrong with the labels of a set.

    Attributes:
        guard: the cosine above which pairs are listed.
        pairs: [S, 2] identities that are probably one person, the most alike first.
        cosines: [S] of their centers.
        images: probably wrong labels.
        far: images far from everybody.
    """

    guard: float
    pairs: Tensor
    cosines: Tensor
    images: SuspectImages
    far: SuspectImages

    def __len__(self) -> int:
        return len(self.pairs) + len(self.images) + len(self.far)


def find_suspects(
    embeddings: Tensor,
    labels: Tensor,
    *,
    guard: float | None = None,
    gap: float = GAP,
    seed: int = 0,
    device: torch.device | str | None = None,
    advance: Callable[[int], Any] | None = None,
) -> Suspects:
    """Pairs of identities that are probably one, images with probably wrong labels, images far from all.

    Images of one identity of such a pair are no suspects for resembling the other.

    Args:
        embeddings: [N, D], any float dtype, any length.
        labels: [N] int64 from 0 on.
        guard: cosine of two centers above which a pair is listed; if None the lower quartile of
            `halves_cosine`.
        gap: as in `suspect_images`.
        seed: of the halves.
        device: where the scores are computed; that of the embeddings if None.
        advance: is told of so many images more that are done.

    Raises:
        ValueError: as in `suspect_images` and `suspect_pairs`, or no guard is given and no identity has two
            images.
    """
    if guard is None:
        halves = halves_cosine(embeddings, labels, seed=seed, device=device)
        if not len(halves):
            raise ValueError("no identity has two images to take the guard from; give one")
        # A cosine of 1 has nothing above it: identities of identical images.
        guard = min(float(halves.quantile(HALVES)), 1 - 1e-6)
    if not 0 <= gap < 2:
        raise ValueError(f"gap must be at least 0 and below 2, not {gap}")
    pairs, cosines = suspect_pairs(embeddings, labels, guard, device=device)
    found = compare_images(embeddings, labels, apart=pairs, device=device, advance=advance)
    return Suspects(guard, pairs, cosines, pick_suspects(found, gap), far_images(found))


@torch.no_grad()
def halves_cosine(
    embeddings: Tensor, labels: Tensor, *, seed: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """How alike two halves of one identity are: what a person under two names would look like.

    The images of each identity are divided at random into two halves.

    Args:
        embeddings: [N, D].
        labels: [N] int64 from 0 on.
        seed: of the division.
        device: where sums are computed; that of the embeddings if None.

    Returns:
        [H] cosines of the centers of the two halves, ascending, on the CPU, for each identity with two
        or more images.
    """
    home = labels.cpu()
    chance = torch.randperm(len(home), generator=torch.Generator().manual_seed(seed))
    order = chance[home[chance].argsort(stable=True)]
    counts = torch.bincount(home)
    rank = torch.empty_like(home)
    rank[order] = torch.arange(len(home)) - (counts.cumsum(0) - counts)[home[order]]
    sums, parts = identity_sums(embeddings, 2 * home + rank % 2, 2 * len(counts), device=device)
    whole = (parts.view(-1, 2) > 0).all(dim=1).nonzero().squeeze(1)
    found = [
        (unit_rows(sums[2 * some]) * unit_rows(sums[2 * some + 1])).sum(dim=1).cpu()
        for some in whole.split(CHUNK)
    ]
    return torch.cat([torch.empty(0), *found]).sort().values


@torch.no_grad()
def typical_images(
    embeddings: Tensor, labels: Tensor, wanted: Tensor, count: int, *, leave_out: Tensor | None = None
) -> dict[int, list[int]]:
    """The images nearest to the centers of some identities.

    Args:
        embeddings: [N, D].
        labels: [N] int64.
        wanted: [W] identities.
        count: so many images of each.
        leave_out: [S] rows that are named last, such as suspects.

    Returns:
        For each identity its rows, the nearest to the center first.
    """
    home = labels.cpu()
    wanted = wanted.cpu().unique()
    rows = torch.isin(home, wanted).nonzero().squeeze(1)
    code = torch.searchsorted(wanted, home[rows])
    sums = torch.zeros(len(wanted), embeddings.shape[1])
    for part, to in zip(rows.split(CHUNK), code.split(CHUNK), strict=True):
        sums.index_add_(0, to, unit_rows(embeddings[part.to(embeddings.device)]).cpu())
    centers, near = unit_rows(sums), torch.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part, to = rows[start : start + CHUNK], code[start : start + CHUNK]
        unit = unit_rows(embeddings[part.to(embeddings.device)]).cpu()
        near[start : start + CHUNK] = (unit * centers[to]).sum(dim=1)
    if leave_out is not None:
        near[torch.isin(rows, leave_out.cpu())] -= 4  # below every cosine, in the same order
    order = near.argsort(descending=True, stable=True)
    order = order[code[order].argsort(stable=True)]
    parts = rows[order].split(torch.bincount(code, minlength=len(wanted)).tolist())
    return {int(name): part[:count].tolist() for name, part in zip(wanted, parts, strict=True)}
