"""The pairwise losses as one writes them in PyTorch from their definitions: dense matrices, autograd.

What `losses.py` measures beside ours. They hold for its data: unit rows, 4 images of each class in turn.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def triplet_all(x: Tensor, labels: Tensor) -> Tensor:
    """Every triplet in a cube."""
    d, (positive, negative) = torch.cdist(x, x), masks(labels)
    losses = (d[:, :, None] - d[:, None, :] + 0.05).relu()
    return mean_nonzero(losses * (positive[:, :, None] & negative[:, None, :]))


def triplet_hard(x: Tensor, labels: Tensor) -> Tensor:
    """Farthest positive, nearest negative."""
    d, (positive, negative) = torch.cdist(x, x), masks(labels)
    far = d.masked_fill(~positive, -math.inf).amax(dim=1)
    return mean_nonzero((far - d.masked_fill(~negative, math.inf).amin(dim=1) + 0.05).relu())


def contrastive(x: Tensor, labels: Tensor) -> Tensor:
    """Linear form, means over the pairs with a loss."""
    d, (positive, negative) = torch.cdist(x, x), masks(labels)
    return mean_nonzero(d[positive].relu()) + mean_nonzero((1 - d[negative]).relu())


def snr_contrastive(x: Tensor, labels: Tensor) -> Tensor:
    """The variance of all differences from those of the rows and their covariance."""
    positive, negative = masks(labels)
    even = x - x.mean(dim=1, keepdim=True)
    signal = even.square().sum(dim=1)
    ratio = (signal[:, None] + signal[None, :] - 2 * even @ even.T) / signal[:, None]
    return mean_nonzero(ratio[positive].relu()) + mean_nonzero((1 - ratio[negative]).relu())


def multi_similarity(x: Tensor, labels: Tensor) -> Tensor:
    """With its selection of pairs."""
    s, (positive, negative) = cosines(x), masks(labels)
    most = s.masked_fill(~negative, -math.inf).amax(dim=1, keepdim=True)
    least = s.masked_fill(~positive, math.inf).amin(dim=1, keepdim=True)
    near = (torch.exp(-2 * (s - 0.5)) * (positive & (s - 0.1 < most))).sum(dim=1)
    far = (torch.exp(50 * (s - 0.5)) * (negative & (s + 0.1 > least))).sum(dim=1)
    return (torch.log1p(near) / 2 + torch.log1p(far) / 50).mean()


def circle(x: Tensor, labels: Tensor) -> Tensor:
    """Two masked log-sum-exps."""
    s, (positive, negative) = cosines(x), masks(labels)
    near = -80 * (1.4 - s.detach()).relu() * (s - 0.6)
    far = 80 * (s.detach() + 0.4).relu() * (s - 0.4)
    return F.softplus(lse(near, positive) + lse(far, negative)).mean()


def supcon(x: Tensor, labels: Tensor) -> Tensor:
    """Mean over positives of the log-softmax."""
    logits, (positive, _) = cosines(x) / 0.1, masks(labels)
    logits = logits.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), -math.inf)
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)
    return -(log_p.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)).mean()


def ntxent(x: Tensor, labels: Tensor) -> Tensor:
    """Each positive against the sum of the negatives."""
    logits, (positive, negative) = cosines(x) / 0.07, masks(labels)
    return F.softplus(lse(logits, negative)[:, None] - logits)[positive].mean()


def margin(x: Tensor, labels: Tensor) -> Tensor:
    """With distance-weighted negatives, drawn row by row at once."""
    d, (positive, negative) = torch.cdist(x, x), masks(labels)
    with torch.no_grad():
        clipped = d.clamp(min=0.5)
        density = (x.shape[1] - 2) * clipped.log()
        density += 0.5 * (x.shape[1] - 3) * (1 - 0.25 * clipped.square()).clamp_min(1e-8).log()
        usable = negative & (d < 1.4)
        usable |= negative & ~usable.any(dim=1, keepdim=True)
        drawn = (-density).masked_fill(~usable, -math.inf).softmax(dim=1).multinomial(3, replacement=True)
    near, far = (0.2 + d[positive] - 1.2).relu(), (0.2 + 1.2 - d.gather(1, drawn)).relu()
    return (near.sum() + far.sum()) / ((near > 0).sum() + (far > 0).sum()).clamp_min(1)


def nca(x: Tensor, labels: Tensor) -> Tensor:
    """Two log-sum-exps of squared distances."""
    logits, (positive, negative) = -torch.cdist(x, x).square(), masks(labels)
    return (lse(logits, positive | negative) - lse(logits, positive)).mean()


def npair(x: Tensor, labels: Tensor) -> Tensor:
    """The first two images of each class."""
    return F.cross_entropy(x[::4] @ x[1::4].T, torch.arange(len(x) // 4, device=x.device))


def lifted_structure(x: Tensor, labels: Tensor) -> Tensor:
    """A log-sum-exp of each row serves both ends of a pair."""
    d, (positive, negative) = torch.cdist(x, x), masks(labels)
    pushed = lse(1 - d, negative)
    pair = torch.logaddexp(pushed[:, None], pushed[None, :]) + d
    return 0.5 * pair[positive].relu().square().mean()


def generalized_lifted(x: Tensor, labels: Tensor) -> Tensor:
    """Two log-sum-exps of distances."""
    d, (positive, negative) = torch.cdist(x, x), masks(labels)
    return (lse(d, positive) + lse(1 - d, negative)).relu().mean()


def angular(x: Tensor, labels: Tensor) -> Tensor:
    """All negatives of each positive pair."""
    (a, p), negative = masks(labels)[0].nonzero(as_tuple=True), masks(labels)[1]
    t = math.tan(math.radians(45)) ** 2
    exponents = 4 * t * (x[a] + x[p]) @ x.T - 2 * (1 + t) * (x[a] * x[p]).sum(dim=1, keepdim=True)
    return F.softplus(lse(exponents, negative[a])).mean()


def tuplet_margin(x: Tensor, labels: Tensor) -> Tensor:
    """All negatives of each positive pair."""
    s, (positive, negative) = cosines(x), masks(labels)
    near = torch.cos(s[positive].clamp(-1 + 1e-7, 1 - 1e-7).acos() - math.radians(5.73))
    pushed = lse(64 * s, negative)[:, None].expand_as(s)[positive]
    return F.softplus(pushed - 64 * near).mean()


def ranked_list(x: Tensor, labels: Tensor) -> Tensor:
    """Weighted means of the pairs within reach."""
    d, (positive, negative) = torch.cdist(x, x), masks(labels)
    near, far = (d - 0.8).relu() * positive, (1.2 - d).relu() * negative
    weights = torch.exp(5 * far) * (far > 0)
    pulled = near.sum(dim=1) / (near > 0).sum(dim=1).clamp_min(1)
    return (0.5 * pulled + 0.5 * (weights * far).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-30)).mean()


def histogram(x: Tensor, labels: Tensor) -> Tensor:
    """One pass over all pairs for each node."""
    s = cosines(x)
    values = [s[mask] for mask in masks(labels)]
    nodes = torch.linspace(-1, 1, 101).tolist()
    near, far = (torch.stack([(1 - (v - n).abs() * 50).relu().mean() for n in nodes]) for v in values)
    return (far * near.cumsum(0)).sum()


def fast_ap(x: Tensor, labels: Tensor) -> Tensor:
    """A histogram of each row, dense in the nodes."""
    positive, negative = masks(labels)
    place = (2 - 2 * cosines(x)) * 2.5
    mass = (1 - (place[:, :, None] - torch.arange(11, device=x.device)).abs()).relu()
    near = (mass * positive[:, :, None]).sum(dim=1)
    every = near + (mass * negative[:, :, None]).sum(dim=1)
    precision = near.cumsum(dim=1) / every.cumsum(dim=1).clamp_min(1e-12)
    return (1 - (near * precision).sum(dim=1) / positive.sum(dim=1)).mean()


def smooth_ap(x: Tensor, labels: Tensor) -> Tensor:
    """Ranks of all against all in a cube."""
    s, (positive, negative) = cosines(x), masks(labels)
    above = torch.sigmoid((s[:, None, :] - s[:, :, None]) / 0.01)
    every = 0.5 + (above * (positive | negative)[:, None, :]).sum(dim=2)
    among = 0.5 + (above * positive[:, None, :]).sum(dim=2)
    return (1 - (among / every * positive).sum(dim=1) / positive.sum(dim=1)).mean()


def masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positives without self, and negatives, [B, B] bool each."""
    same = labels[:, None] == labels[None, :]
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def cosines(x: Tensor) -> Tensor:
    """[B, B]."""
    z = F.normalize(x, dim=1)
    return z @ z.T


def lse(values: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp of each row over a mask."""
    return values.masked_fill(~mask, -math.inf).logsumexp(dim=1)


def mean_nonzero(losses: Tensor) -> Tensor:
    """Mean of the losses above 0."""
    return losses.sum() / (losses > 0).sum().clamp_min(1)


LOSSES: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (
        *(
            triplet_all,
            triplet_hard,
            contrastive,
            multi_similarity,
            circle,
            supcon,
            ntxent,
            margin,
            nca,
            npair,
        ),
        *(lifted_structure, generalized_lifted, angular, snr_contrastive, tuplet_margin, ranked_list),
        *(histogram, fast_ap, smooth_ap),
    )
}
