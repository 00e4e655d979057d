"""Miners of open-metric-learning, written anew from their definitions, with triplets in lists.

What `mining.py` measures beside ours, so that this toolkit need not be installed. Each gives the loss of the
triplets: mean of [d(a, p) - d(a, n) + margin]+.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

MARGIN = 0.2
Triplet = tuple[int, int, int]


def _candidates(labels: Tensor) -> Iterator[tuple[int, list[int], list[int]]]:
    """Each anchor with the numbers of its positives and of its negatives."""
    named = labels.tolist()
    everyone = set(range(len(named)))
    of_label: dict[int, set[int]] = {}
    for number, label in enumerate(named):
        of_label.setdefault(label, set()).add(number)
    for anchor, label in enumerate(named):
        same = of_label[label]
        yield anchor, sorted(same - {anchor}), sorted(everyone - same)


def _all_triplets(x: Tensor, labels: Tensor) -> list[Triplet]:
    return [(a, p, n) for a, same, others in _candidates(labels) for p in same for n in others]


def _hardest(x: Tensor, labels: Tensor) -> list[Triplet]:
    """The farthest positive and the nearest negative of each anchor, by masks."""
    distances, same = torch.cdist(x, x), labels[:, None] == labels
    far = distances.masked_fill(~same, -torch.inf).argmax(dim=1).tolist()
    near = distances.masked_fill(same, torch.inf).argmin(dim=1).tolist()
    return list(zip(range(len(x)), far, near, strict=True))


def _hard(x: Tensor, labels: Tensor, positives: int, negatives: int) -> list[Triplet]:
    """The farthest positives with the nearest negatives of each anchor."""
    distances = torch.cdist(x, x).cpu()
    found = []
    for anchor, same, others in _candidates(labels):
        near = distances[anchor, others].topk(min(negatives, len(others)), largest=False).indices
        far = distances[anchor, same].topk(min(positives, len(same))).indices
        found += [(anchor, same[p], others[n]) for p in far.tolist() for n in near.tolist()]
    return found


def _with_loss(mine: Callable[[Tensor, Tensor], list[Triplet]]) -> Callable[[Tensor, Tensor], Tensor]:
    def step(x: Tensor, labels: Tensor) -> Tensor:
        anchor, positive, negative = torch.tensor(mine(x.detach(), labels), device=x.device).T
        near = (x[anchor] - x[positive]).norm(dim=1)
        return (near - (x[anchor] - x[negative]).norm(dim=1) + MARGIN).relu().mean()

    return step


STEPS = {
    "batch_all": _with_loss(_all_triplets),
    "batch_hard": _with_loss(_hardest),
    "hard_top_k": _with_loss(lambda x, labels: _hard(x, labels, positives=1, negatives=10)),
}
