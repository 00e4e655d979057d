"""The pairwise losses as the papers write them: one anchor at a time, index lists, plain exp and log."""

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from metricid.losses import (
    AngularLoss,
    CircleLoss,
    ContrastiveLoss,
    FastAPLoss,
    GeneralizedLiftedLoss,
    HistogramLoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NCALoss,
    NPairLoss,
    NTXentLoss,
    QuadrupletLoss,
    RankedListLoss,
    RecallAtKLoss,
    SmoothAPLoss,
    SNRContrastiveLoss,
    SupConLoss,
    TripletLoss,
    TupletMarginLoss,
    WeightedTripletLoss,
)
from metricid.losses.pairwise import PairwiseLoss


class Setting:
    """A batch and its references, with the indices that an anchor may be compared with.

    With `own` the references begin with the batch, and an anchor is not compared with itself there.
    """

    def __init__(self, x: Tensor, labels: Tensor, y: Tensor, others: Tensor, own: bool):
        self.x, self.y, self.labels, self.others, self.own = x, y, labels.tolist(), others.tolist(), own

    def sphere(self) -> "Setting":
        x, y = (t / t.norm(dim=1, keepdim=True) for t in (self.x, self.y))
        return Setting(x, torch.tensor(self.labels), y, torch.tensor(self.others), self.own)

    def anchors(self) -> Iterator[tuple[int, list[int], list[int]]]:
        for i, label in enumerate(self.labels):
            near = [j for j, o in enumerate(self.others) if o == label and not (self.own and i == j)]
            yield i, near, [j for j, o in enumerate(self.others) if o != label]

    def d(self, i: int, j: list[int]) -> Tensor:
        return self._distances[i][j]

    def s(self, i: int, j: list[int]) -> Tensor:
        return self._products[i][j]

    def between(self, j: int, k: list[int]) -> Tensor:
        """Distances of a reference to others."""
        return self._distances_between[j][k]

    def to(self, j: int, i: list[int]) -> Tensor:
        """Distances of a reference to samples of the batch."""
        return self._distances_to[j][i]

    @cached_property
    def _distances(self) -> tuple[Tensor, ...]:
        return (self.x[:, None] - self.y[None, :]).norm(dim=2).unbind()

    @cached_property
    def _distances_to(self) -> tuple[Tensor, ...]:
        return (self.y[:, None] - self.x[None, :]).norm(dim=2).unbind()

    @cached_property
    def _distances_between(self) -> tuple[Tensor, ...]:
        return (self.y[:, None] - self.y[None, :]).norm(dim=2).unbind()

    @cached_property
    def _products(self) -> tuple[Tensor, ...]:
        return (self.x[:, None] * self.y[None, :]).sum(dim=2).unbind()

    def zero(self) -> Tensor:
        return 0 * self.x.sum() + 0 * self.y.sum()


def mean(values: list[Tensor], setting: Setting) -> Tensor:
    """Of numbers, or of all entries of several lists of them."""
    joined = torch.cat([value.reshape(-1) for value in values]) if values else torch.empty(0)
    return joined.mean() if len(joined) else setting.zero()


def contrastive(c: Setting) -> Tensor:
    c = c.sphere()
    near = torch.cat([c.zero()[None], *(c.d(i, p) for i, p, _ in c.anchors() if p)])[1:]
    far = torch.cat([c.zero()[None], *(1 - c.d(i, n) for i, _, n in c.anchors() if n)])[1:]
    kept = [v[v > 0] ** 2 / 2 for v in (near, far)]
    return sum((v.mean() for v in kept if len(v)), c.zero())


def snr(c: Setting) -> Tensor:
    near, far = [], []
    for i, p, n in c.anchors():
        signal = c.x[i].var()
        near += [(c.x[i] - c.y[p]).var(dim=1) / signal] if p else []
        far += [1 - (c.x[i] - c.y[n]).var(dim=1) / signal] if n else []
    kept = [[v[v > 0] for v in values] for values in (near, far)]
    return mean(kept[0], c) + mean(kept[1], c)


def multi_similarity(c: Setting, epsilon: float | None) -> Tensor:
    c = c.sphere()
    values = []
    for i, p, n in c.anchors():
        near, far = c.s(i, p), c.s(i, n)
        if epsilon is not None:
            most = max(far.tolist(), default=-math.inf)
            least = min(near.tolist(), default=math.inf)
            near, far = near[near - epsilon < most], far[far + epsilon > least]
        values.append(
            (1 + (-2 * (near - 0.5)).exp().sum()).log() / 2 + (1 + (50 * (far - 0.5)).exp().sum()).log() / 50
        )
    return mean(values, c)


def circle(c: Setting) -> Tensor:
    c, m, g = c.sphere(), 0.4, 80.0
    values = []
    for i, p, n in c.anchors():
        if p and n:
            near, far = c.s(i, p), c.s(i, n)
            a, b = (1 + m - near.detach()).clamp(min=0), (far.detach() + m).clamp(min=0)
            values.append((1 + (g * b * (far - m)).exp().sum() * (-g * a * (near - 1 + m)).exp().sum()).log())
    return mean(values, c)


def margin(c: Setting) -> Tensor:
    c = c.sphere()
    values = []
    for i, p, n in c.anchors():
        values += [0.2 + c.d(i, p) - 1.25, 0.2 + 1.25 - c.d(i, n)]
    return mean([v[v > 0] for v in values], c)


def triplets(c: Setting, choose: Callable[[Tensor, Tensor], list[tuple[Tensor, Tensor]]]) -> Tensor:
    values = []
    for i, p, n in c.anchors():
        if p and n:
            values += [(near - far + 0.3).clamp(min=0) for near, far in choose(c.d(i, p), c.d(i, n))]
    return mean(values, c)


def triplet_all(c: Setting) -> Tensor:
    total, count = c.zero(), 0
    for i, p, n in c.anchors():
        if p and n:
            total = total + (c.d(i, p)[:, None] - c.d(i, n)[None, :] + 0.3).clamp(min=0).sum()
            count += len(p) * len(n)
    return total / max(count, 1)


def triplet_soft_swap(c: Setting) -> Tensor:
    c = c.sphere()
    total, count = c.zero(), 0
    for i, p, n in c.anchors():
        for j in p:
            if n:
                far = torch.minimum(c.d(i, n), c.between(j, n))
                total = total + (1 + (c.d(i, [j]) - far).exp()).log().sum()
                count += len(n)
    return total / max(count, 1)


def weighted_triplet(c: Setting) -> Tensor:
    values = []
    for i, p, n in c.anchors():
        if p and n:
            near, far = c.d(i, p), c.d(i, n)
            w, v = near.exp() / near.exp().sum(), (-far).exp() / (-far).exp().sum()
            values.append((1 + ((w * near).sum() - (v * far).sum()).exp()).log())
    return mean(values, c)


def quadruplet(c: Setting) -> Tensor:
    c = c.sphere()
    values = []
    between = (c.y[:, None] - c.y[None, :]).square().sum(dim=2)
    others = torch.tensor(c.others)
    unlike = others[:, None] != others[None, :]
    for i, p, n in c.anchors():
        if not p or not n:
            continue
        near, far = c.d(i, p).max() ** 2, c.d(i, n).min() ** 2
        foreign = others != c.labels[i]
        pairs = between[unlike & foreign[:, None] & foreign[None, :]]
        second = (near - pairs.min() + 0.5).clamp(min=0) if len(pairs) else 0 * near
        values.append((near - far + 1).clamp(min=0) + second)
    return mean(values, c)


def lifted(c: Setting) -> Tensor:
    values = []
    for i, p, n in c.anchors():
        for j in p:
            pushed = (1 - c.d(i, n)).exp().sum()
            rows = [k for k, label in enumerate(c.labels) if label != c.others[j]]
            pushed = pushed + (1 - c.to(j, rows)).exp().sum()
            if n or rows:
                values.append((pushed.log() + c.d(i, [j])[0]).clamp(min=0) ** 2 / 2)
    return mean(values, c)


def generalized_lifted(c: Setting) -> Tensor:
    values = [
        (c.d(i, p).exp().sum().log() + (1 - c.d(i, n)).exp().sum().log()).clamp(min=0)
        for i, p, n in c.anchors()
        if p and n
    ]
    return mean(values, c)


def angular(c: Setting) -> Tensor:
    c, t = c.sphere(), math.tan(math.radians(45)) ** 2
    values = []
    for i, p, n in c.anchors():
        for j in p if n else []:
            f = 4 * t * (c.y[n] @ (c.x[i] + c.y[j])) - 2 * (1 + t) * (c.x[i] @ c.y[j])
            values.append((1 + f.exp().sum()).log())
    return mean(values, c)


def supcon(c: Setting, inside: bool) -> Tensor:
    c = c.sphere()
    values = []
    for i, p, n in c.anchors():
        if p:
            share = (c.s(i, p) / 0.1).exp() / (c.s(i, p + n) / 0.1).exp().sum()
            values.append(-share.mean().log() if inside else -share.log().mean())
    return mean(values, c)


def ntxent(c: Setting) -> Tensor:
    c = c.sphere()
    values = []
    for i, p, n in c.anchors():
        near, far = (c.s(i, p) / 0.1).exp(), (c.s(i, n) / 0.1).exp().sum()
        values.append(-(near / (near + far)).log())
    return mean(values, c)


def nca(c: Setting, expected: bool) -> Tensor:
    values = []
    for i, p, n in c.anchors():
        if p:
            weights = (-(c.d(i, p + n) ** 2)).exp()
            share = weights[: len(p)].sum() / weights.sum()
            values.append(1 - share if expected else -share.log())
    return mean(values, c)


def npair(c: Setting) -> Tensor:
    first: dict[int, int] = {}
    second: dict[int, int] = {}
    for j, label in enumerate(c.others):
        if label in first:
            second.setdefault(label, j)
        first.setdefault(label, j)
    chosen = second if c.own else first
    values = []
    for i, label in enumerate(c.labels):
        if label in chosen and (not c.own or first[label] == i):
            far = [j for other, j in chosen.items() if other != label]
            values.append((1 + (c.s(i, far) - c.x[i] @ c.y[chosen[label]]).exp().sum()).log())
    return mean(values, c)


def tuplet(c: Setting) -> Tensor:
    c, angle = c.sphere(), math.radians(5.73)
    values, near, far = [], [], []
    for i, p, n in c.anchors():
        for j in p:
            slack = (c.s(i, [j]).acos() - angle).cos()
            values.append((1 + (64 * (c.s(i, n) - slack)).exp().sum()).log())
        near.append(c.s(i, p))
        far.append(c.s(i, n))
    total = mean(values, c)
    if any(map(len, near)):
        cosines = torch.cat(near)
        total = total + 0.5 * (0.99 * cosines.mean() - cosines).clamp(min=0).square().mean()
    if any(map(len, far)):
        cosines = torch.cat(far)
        total = total + 0.5 * (cosines - 1.01 * cosines.mean()).clamp(min=0).square().mean()
    return total


def ranked_list(c: Setting) -> Tensor:
    c = c.sphere()
    values = []
    for i, p, n in c.anchors():
        near, far = c.d(i, p) - 0.8, 1.2 - c.d(i, n)
        near, far = near[near > 0], far[far > 0]
        weights = (10 * far).exp()
        pushed = (weights / weights.sum() * far).sum() if len(far) else c.zero()
        values.append(0.5 * (near.mean() if len(near) else c.zero()) + 0.5 * pushed)
    return mean(values, c)


def triangle(values: Tensor, nodes: Tensor) -> Tensor:
    """Mass of each value at each node, [N, R]."""
    return (1 - (values[:, None] - nodes[None, :]).abs() / (nodes[1] - nodes[0])).clamp(min=0)


def histogram(c: Setting) -> Tensor:
    c = c.sphere()
    nodes = torch.linspace(-1, 1, 101, dtype=torch.float64)
    near = torch.cat([c.zero()[None], *(c.s(i, p) for i, p, _ in c.anchors())])[1:]
    far = torch.cat([c.zero()[None], *(c.s(i, n) for i, _, n in c.anchors())])[1:]
    if not len(near) or not len(far):
        return c.zero()
    h_near, h_far = triangle(near, nodes).mean(dim=0), triangle(far, nodes).mean(dim=0)
    return sum(h_far[r] * h_near[: r + 1].sum() for r in range(101))  # type: ignore[return-value]


def fast_ap(c: Setting) -> Tensor:
    c = c.sphere()
    nodes = torch.linspace(0, 4, 11, dtype=torch.float64)
    values = []
    for i, p, n in c.anchors():
        if p:
            near = triangle(2 - 2 * c.s(i, p), nodes).sum(dim=0)
            every = triangle(2 - 2 * c.s(i, p + n), nodes).sum(dim=0)
            up_to, up_to_all = near.cumsum(0), every.cumsum(0)
            filled = up_to_all > 0
            values.append(1 - (near * up_to)[filled].div(up_to_all[filled]).sum() / len(p))
    return mean(values, c)


def soft_ranks(c: Setting, i: int, near: list[int], among: list[int]) -> list[Tensor]:
    return [
        1 + torch.sigmoid((c.s(i, [j for j in among if j != p]) - c.s(i, [p])) / 0.01).sum() for p in near
    ]


def smooth_ap(c: Setting) -> Tensor:
    c = c.sphere()
    values = []
    for i, p, n in c.anchors():
        if p:
            ranks = zip(soft_ranks(c, i, p, p), soft_ranks(c, i, p, p + n), strict=True)
            values.append(1 - torch.stack([near / every for near, every in ranks]).mean())
    return mean(values, c)


def recall_at_k(c: Setting) -> Tensor:
    c = c.sphere()
    values = []
    for i, p, n in c.anchors():
        if p:
            ranks = torch.stack(soft_ranks(c, i, p, p + n))
            values.append(1 - torch.stack([torch.sigmoid(k - ranks).mean() for k in (1, 2, 4, 8, 16)]).mean())
    return mean(values, c)


TABLE: dict[str, tuple[PairwiseLoss, Callable[[Setting], Tensor]]] = {
    "contrastive": (ContrastiveLoss(), contrastive),
    "snr_contrastive": (SNRContrastiveLoss(), snr),
    "multi_similarity": (MultiSimilarityLoss(), lambda c: multi_similarity(c, 0.1)),
    "multi_similarity_all": (MultiSimilarityLoss(epsilon=None), lambda c: multi_similarity(c, None)),
    "circle": (CircleLoss(), circle),
    "margin": (MarginLoss(negatives="all", beta=1.25), margin),
    "triplet_hard": (TripletLoss(), lambda c: triplets(c, lambda near, far: [(near.max(), far.min())])),
    "triplet_all": (TripletLoss(miner="batch_all"), triplet_all),
    "triplet_soft_swap": (
        TripletLoss(miner="batch_all", margin=None, swap=True, normalize=True),
        triplet_soft_swap,
    ),
    "weighted_triplet": (WeightedTripletLoss(), weighted_triplet),
    "quadruplet": (QuadrupletLoss(), quadruplet),
    "lifted_structure": (LiftedStructureLoss(), lifted),
    "generalized_lifted": (GeneralizedLiftedLoss(), generalized_lifted),
    "angular": (AngularLoss(), angular),
    "supcon": (SupConLoss(), lambda c: supcon(c, inside=False)),
    "supcon_in": (SupConLoss(form="in"), lambda c: supcon(c, inside=True)),
    "ntxent": (NTXentLoss(), ntxent),
    "nca": (NCALoss(), lambda c: nca(c, expected=False)),
    "nca_probability": (NCALoss(form="probability"), lambda c: nca(c, expected=True)),
    "npair": (NPairLoss(), npair),
    "tuplet_margin": (TupletMarginLoss(variance_weight=0.5), tuplet),
    "ranked_list": (RankedListLoss(), ranked_list),
    "histogram": (HistogramLoss(), histogram),
    "fast_ap": (FastAPLoss(), fast_ap),
    "smooth_ap": (SmoothAPLoss(), smooth_ap),
    "recall_at_k": (RecallAtKLoss(), recall_at_k),
}
