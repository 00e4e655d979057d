"""Proxy losses: learned vectors stand for the classes, and samples are compared with them."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_batch, check_options, compute_dtype, no_autocast
from metricid.losses.heads import MarginHead
from metricid.losses.margins import Margin, positive, softplus, within


def proxy_anchor_loss(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, *, alpha: float = 32.0, margin: float = 0.1
) -> Tensor:
    """Each proxy against all samples of the batch (Kim et al., CVPR 2020, eq. 4).

    1 / |P+| sum over the proxies with a sample in the batch of log(1 + sum_{x of p} e^{-a (s(x, p) - d)}) +
    1 / |P| sum over all proxies of log(1 + sum_{x not of p} e^{a (s(x, p) + d)}), s the cosine.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C).
        proxies: [C, D].
        alpha: a.
        margin: d.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(proxies), dim=proxies.shape[1])
    dtype = compute_dtype(embeddings, proxies)
    with no_autocast(embeddings):
        cosines = F.linear(F.normalize(embeddings.to(dtype), dim=1), F.normalize(proxies.to(dtype), dim=1))
        none = torch.finfo(dtype).min / 2  # finite, so that a sum over no sample has a gradient of 0
        own = cosines.gather(1, labels[:, None]).squeeze(1)
        same = labels[:, None] == labels
        near = (-alpha * (own - margin)).expand(len(own), -1).masked_fill(~same, none).logsumexp(dim=1)
        size = same.sum(dim=1).to(dtype)  # each class appears once for each of its samples
        pulled = (softplus(near) / size).sum() / (1 / size).sum().round()
        far = (alpha * (cosines + margin)).scatter(1, labels[:, None], none).logsumexp(dim=0)
        return pulled + softplus(far).mean()


def soft_triple_loss(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    tau: float = 0.2,
) -> Tensor:
    """Softmax over similarities to several centers of each class (Qian et al., ICCV 2019).

    S_c = sum_k softmax_k(x.w_ck / gamma) x.w_ck; cross-entropy of scale (S_y - margin) against scale S_c;
    plus tau times the mean over classes and pairs of centers of |w_s - w_t|, which merges centers that a
    class does not need. The paper sums each pair once and divides by K (K - 1); so do we.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C).
        centers: [C, K, D]; only their directions matter.
        scale: lambda.
        gamma: temperature among the centers of a class.
        margin: delta.
        tau: weight of the regulariser.

    Returns:
        Scalar, mean over the batch.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(centers), dim=centers.shape[2])
    dtype = compute_dtype(embeddings, centers)
    with no_autocast(embeddings):
        x, w = F.normalize(embeddings.to(dtype), dim=1), F.normalize(centers.to(dtype), dim=2)
        cosines = F.linear(x, w.flatten(0, 1)).unflatten(1, w.shape[:2])
        pooled = ((cosines / gamma).softmax(dim=2) * cosines).sum(dim=2)
        logits = scale * pooled.scatter_add(1, labels[:, None], pooled.new_full((len(labels), 1), -margin))
        loss = F.cross_entropy(logits, labels)
        count = w.shape[1]
        if count == 1 or tau == 0:
            return loss
        return loss + tau * _spread(w) / (len(w) * count * (count - 1))


def _spread(centers: Tensor) -> Tensor:
    """Sum over classes and pairs of centers of their distance; centers that coincide have a gradient of 0."""
    first, second = torch.triu_indices(centers.shape[1], centers.shape[1], 1, device=centers.device)
    return torch.linalg.vector_norm(centers[:, first] - centers[:, second], dim=2).sum()


@LOSSES.register("proxy_anchor")
class ProxyAnchor(nn.Module):
    """Each class's proxy pulls its samples of the batch and pushes all others; `proxy_anchor_loss` has it.

    Args:
        num_classes: C.
        embedding_dim: D.
        margin: delta, on the cosine.
        alpha: scale.
    """

    pairwise: ClassVar[bool] = True  # the samples of a proxy share one logarithm
    kind: ClassVar[str] = "proxy"
    formula: ClassVar[str] = (
        "mean_{P+} log(1 + sum_{x of p} e^(-a (s - d))) + mean_P log(1 + sum_{x not of p} e^(a (s + d)))"
    )
    use: ClassVar[str] = "retrieval of products, cars, birds; no sampler needed"
    source: ClassVar[str] = "Kim et al., CVPR 2020"

    def __init__(self, num_classes: int, embedding_dim: int, *, margin: float = 0.1, alpha: float = 32.0):
        super().__init__()
        check_options(
            num_classes=(num_classes >= 1, f"must be at least 1, got {num_classes}"),
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
            margin=within(margin, 0, math.inf),
            alpha=positive(alpha),
        )
        self.margin = margin
        self.alpha = alpha
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return proxy_anchor_loss(embeddings, labels, self.weight, alpha=self.alpha, margin=self.margin)

    def extra_repr(self) -> str:
        classes, dim = self.weight.shape
        return f"num_classes={classes}, embedding_dim={dim}, margin={self.margin}, alpha={self.alpha}"


@LOSSES.register("proxy_nca")
class ProxyNCA(MarginHead):
    """Proxy-NCA++: softmax over squared distances between unit vectors, to one proxy a class.

    |x - p|^2 = 2 - 2 cos, of which the constant drops out: a softmax over cosines times 2 / T.

    Args:
        num_classes: C.
        embedding_dim: D.
        temperature: T, of the squared distances.
    """

    kind: ClassVar[str] = "proxy"
    formula: ClassVar[str] = "-log(e^(-d_y / T) / sum_c e^(-d_c / T)), d_c = |x - p_c|^2 of unit vectors"
    use: ClassVar[str] = "retrieval of products, cars, birds; no sampler needed"
    source: ClassVar[str] = "Teh et al., ECCV 2020"

    def __init__(self, num_classes: int, embedding_dim: int, *, temperature: float = 1 / 9):
        check_options(temperature=positive(temperature))
        super().__init__(num_classes, embedding_dim, Margin(2 / temperature))


@LOSSES.register("soft_triple")
class SoftTriple(nn.Module):
    """Several centers a class, softly chosen among; `proxies.soft_triple_loss` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        centers: K, for each class.
        scale: lambda.
        gamma: temperature among the centers of a class.
        margin: delta, on the similarity.
        tau: weight of the regulariser that merges centers.
    """

    pairwise: ClassVar[bool] = False
    kind: ClassVar[str] = "proxy"
    formula: ClassVar[str] = (
        "softmax of l (S_y - d) against l S_c, S_c = sum_k softmax_k(s_ck / g) s_ck, + t R(w)"
    )
    use: ClassVar[str] = "retrieval where a class has several looks"
    source: ClassVar[str] = "Qian et al., ICCV 2019"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        centers: int = 10,
        scale: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        tau: float = 0.2,
    ):
        super().__init__()
        check_options(
            num_classes=(num_classes >= 1, f"must be at least 1, got {num_classes}"),
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
            centers=(centers >= 1, f"must be at least 1, got {centers}"),
            scale=positive(scale),
            gamma=positive(gamma),
            margin=within(margin, 0, math.inf),
            tau=within(tau, 0, math.inf),
        )
        self.scale, self.gamma, self.margin, self.tau = scale, gamma, margin, tau
        self.weight = nn.Parameter(torch.empty(num_classes, centers, embedding_dim))
        nn.init.normal_(self.weight, std=1 / math.sqrt(embedding_dim))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return soft_triple_loss(
            embeddings,
            labels,
            self.weight,
            scale=self.scale,
            gamma=self.gamma,
            margin=self.margin,
            tau=self.tau,
        )

    def extra_repr(self) -> str:
        classes, count, dim = self.weight.shape
        return (
            f"num_classes={classes}, embedding_dim={dim}, centers={count}, scale={self.scale}, "
            f"gamma={self.gamma}, margin={self.margin}, tau={self.tau}"
        )
