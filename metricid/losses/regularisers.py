"""Regularisers of embeddings: their length, their mean and how evenly they fill the sphere."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.center import unit_rows
from metricid.losses.checks import check_batch, check_options, compute_dtype, no_autocast

MeanOf = Literal["batch", "vector"]


def norm_loss(embeddings: Tensor, radius: float | Tensor) -> Tensor:
    """Half the squared gap between the length of an embedding and a radius (Zheng et al., CVPR 2018).

    1/2 (|x| - R)^2, mean over the batch. The subgradient of the length at x = 0 is 0.

    Args:
        embeddings: [B, D], any float dtype; not normalised.
        radius: R, a number or a scalar tensor that may be learned.

    Returns:
        Scalar.
    """
    _check_rows(embeddings)
    with no_autocast(embeddings):
        lengths = torch.linalg.vector_norm(embeddings.to(compute_dtype(embeddings)), dim=1)
        return 0.5 * (lengths - radius).square().mean()


def zero_mean_loss(embeddings: Tensor, *, of: MeanOf = "batch") -> Tensor:
    """Distance of the embeddings from zero mean.

    'batch': |1/B sum_i x_i|^2, for embeddings that lie around the origin. 'vector': mean over i of
    |sum_d x_id|, for vectors whose own entries cancel (as pytorch-metric-learning counts).

    Args:
        embeddings: [B, D], any float dtype.
        of: whose mean is to be 0.

    Returns:
        Scalar.
    """
    _check_rows(embeddings)
    with no_autocast(embeddings):
        x = embeddings.to(compute_dtype(embeddings))
        return x.mean(dim=0).square().sum() if of == "batch" else x.sum(dim=1).abs().mean()


def uniformity_loss(embeddings: Tensor, *, t: float = 2.0) -> Tensor:
    """How unevenly embeddings fill the unit sphere (Wang and Isola, ICML 2020).

    log of the mean over pairs i < j of exp(-t |z_i - z_j|^2), z the embeddings on the unit sphere.

    Args:
        embeddings: [B, D], any float dtype.
        t: > 0; larger looks harder at the nearest pairs.

    Returns:
        Scalar, between -4 t and 0; 0 with a graph for a batch of one.
    """
    _check_rows(embeddings)
    with no_autocast(embeddings):
        z = unit_rows(embeddings.to(compute_dtype(embeddings)))
        if len(z) == 1:
            return 0 * z.sum()
        logits = (2 * t * (z @ z.T - 1)).flatten()[1:]
        # Without its first entry the diagonal is the last of every B + 1 entries.
        pairs = logits.view(len(z) - 1, len(z) + 1)[:, :-1]
        return pairs.logsumexp(dim=(0, 1)) - math.log(pairs.numel())


def koleo_loss(embeddings: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Minus the log distance to the nearest other embedding (Sablayrolles et al., ICLR 2019).

    -1/B sum_i log(min over j != i of |z_i - z_j| + eps), z the embeddings on the unit sphere. It estimates
    minus their entropy (Kozachenko and Leonenko).

    Args:
        embeddings: [B, D], any float dtype.
        eps: added to the distance (Oquab et al., TMLR 2024), so that equal embeddings cost -log(eps); they
            have no gradient, as no direction is better than another.

    Returns:
        Scalar; 0 with a graph for a batch of one.
    """
    _check_rows(embeddings)
    with no_autocast(embeddings):
        z = unit_rows(embeddings.to(compute_dtype(embeddings)))
        if len(z) == 1:
            return 0 * z.sum()
        gaps = torch.linalg.vector_norm(z - z[nearest_rows(z.detach())], dim=1)
        return -(gaps + eps).log().mean()


@torch.no_grad()
def nearest_rows(unit: Tensor, *, block: int = 1 << 24) -> Tensor:
    """For each row the other row of the largest cosine, a block of rows at a time.

    Args:
        unit: [N, D], rows of unit length, N >= 2.
        block: cosines that are held at once.

    Returns:
        [N] int64.
    """
    found = []
    step = max(1, block // len(unit))
    for start in range(0, len(unit), step):
        cosines = unit[start : start + step] @ unit.T
        cosines.diagonal(start).fill_(-math.inf)
        found.append(cosines.argmax(dim=1))
    return torch.cat(found)


def _check_rows(embeddings: Tensor) -> None:
    check_batch(embeddings, torch.empty(len(embeddings), dtype=torch.int64, device=embeddings.device))


@LOSSES.register("ring")
class RingLoss(nn.Module):
    """Draws the length of all embeddings to one radius, which is learned; use beside a softmax loss.

    `norm_loss` has the formula. The paper weighs it with 0.01 and starts from the mean length of the first
    batch; here `radius` says where to start, as a forward pass changes no parameter.

    Args:
        radius: R at the start, in units of the embeddings; >= 0.
    """

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "1/2 (|x| - R)^2, R learned"
    use: ClassVar[str] = "beside softmax, for embeddings of like length; weight about 0.01"
    source: ClassVar[str] = "Zheng et al., CVPR 2018"
    pairwise: ClassVar[bool] = False
    no_weight_decay: ClassVar[tuple[str, ...]] = ("radius",)

    def __init__(self, *, radius: float = 1.0):
        super().__init__()
        check_options(radius=(0 <= radius < math.inf, f"must be at least 0, got {radius}"))
        self.radius = nn.Parameter(torch.tensor(float(radius)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D]; of the labels [B] only their number is used."""
        check_batch(embeddings, labels)
        return norm_loss(embeddings, self.radius)


@LOSSES.register("feature_norm")
class FeatureNormLoss(nn.Module):
    """Draws the length of all embeddings to a fixed radius.

    `norm_loss` has the formula; the paper counts it without the factor 1/2.

    Args:
        radius: the length, in units of the embeddings; 0 is an L2 penalty on embeddings.
    """

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "1/2 (|x| - R)^2, R fixed"
    use: ClassVar[str] = "lengths drift or explode; small weight"
    source: ClassVar[str] = "Xu et al., ICCV 2019 (hard feature norm)"
    pairwise: ClassVar[bool] = False

    def __init__(self, *, radius: float = 25.0):
        super().__init__()
        check_options(radius=(0 <= radius < math.inf, f"must be at least 0, got {radius}"))
        self.radius = float(radius)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D]; of the labels [B] only their number is used."""
        check_batch(embeddings, labels)
        return norm_loss(embeddings, self.radius)

    def extra_repr(self) -> str:
        return f"radius={self.radius}"


@LOSSES.register("zero_mean")
class ZeroMeanLoss(nn.Module):
    """Keeps the embeddings around the origin; `zero_mean_loss` has the formula.

    Args:
        of: 'batch' (the mean embedding is to be 0) or 'vector' (the mean of each embedding's entries).
    """

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "|1/B sum_i x_i|^2"
    use: ClassVar[str] = "embeddings share one direction, so that all cosines are high"
    source: ClassVar[str] = "first moment of a batch; 'vector' as in pytorch-metric-learning"
    pairwise: ClassVar[bool] = True

    def __init__(self, *, of: MeanOf = "batch"):
        super().__init__()
        check_options(of=(of in ("batch", "vector"), f"must be 'batch' or 'vector', got {of!r}"))
        self.of: MeanOf = of

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of embeddings [B, D]; of the labels [B] only their number is used."""
        check_batch(embeddings, labels)
        return zero_mean_loss(embeddings, of=self.of)

    def extra_repr(self) -> str:
        return f"of={self.of}"


@LOSSES.register("uniformity")
class UniformityLoss(nn.Module):
    """Spreads embeddings over the unit sphere; `uniformity_loss` has the formula.

    It pushes positives apart, too: use it beside a loss that pulls them together.

    Args:
        t: > 0; larger looks harder at the nearest pairs.
    """

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "log mean_{i < j} exp(-t |z_i - z_j|^2)"
    use: ClassVar[str] = "embeddings crowd a part of the sphere; beside a loss that pulls positives"
    source: ClassVar[str] = "Wang and Isola, ICML 2020"
    pairwise: ClassVar[bool] = True

    def __init__(self, *, t: float = 2.0):
        super().__init__()
        check_options(t=(0 < t < math.inf, f"must be positive, got {t}"))
        self.t = t

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of embeddings [B, D]; of the labels [B] only their number is used."""
        check_batch(embeddings, labels)
        return uniformity_loss(embeddings, t=self.t)

    def extra_repr(self) -> str:
        return f"t={self.t}"


@LOSSES.register("koleo")
class KoLeoLoss(nn.Module):
    """Pushes each embedding from its nearest neighbour on the sphere; `koleo_loss` has the formula.

    Args:
        eps: added to the distance, so that equal embeddings have a finite loss.
    """

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "-mean_i log(min_{j != i} |z_i - z_j| + eps)"
    use: ClassVar[str] = "as uniformity, but acts on nearest neighbours alone; one image per identity"
    source: ClassVar[str] = "Sablayrolles et al., ICLR 2019"
    pairwise: ClassVar[bool] = True

    def __init__(self, *, eps: float = 1e-8):
        super().__init__()
        check_options(eps=(0 < eps < math.inf, f"must be positive, got {eps}"))
        self.eps = eps

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of embeddings [B, D]; of the labels [B] only their number is used."""
        check_batch(embeddings, labels)
        return koleo_loss(embeddings, eps=self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
