"""Losses around a center per class: center, contrastive-center and island."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_batch, check_options, compute_dtype, no_autocast
from metricid.losses.functional import center_loss, center_steps

PairReduction = Literal["sum", "mean"]


def contrastive_center_loss(
    embeddings: Tensor, labels: Tensor, centers: Tensor, *, delta: float = 1.0
) -> Tensor:
    """Distance to the own center relative to that to all others (Qi and Su, ICIP 2017).

    1/2 |x - c_y|^2 / (sum over j != y of |x - c_j|^2 + delta). The sum is C |x - mean c|^2 plus the spread of
    the centers, so that no [B, C] matrix is made.

    Args:
        embeddings: [B, D], any float dtype; not normalised.
        labels: [B] int64 in [0, C).
        centers: [C, D].
        delta: > 0, in squared units of the embeddings.

    Returns:
        Scalar. The paper sums over the batch; this is the mean.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(centers), dim=centers.shape[1])
    dtype = compute_dtype(embeddings, centers)
    with no_autocast(embeddings):
        x, c = embeddings.to(dtype), centers.to(dtype)
        middle = c.mean(dim=0)
        own = (x - c[labels]).square().sum(dim=1)
        every = len(c) * (x - middle).square().sum(dim=1) + (c - middle).square().sum()
        return 0.5 * (own / ((every - own).clamp_min(0) + delta)).mean()


def center_island_penalty(centers: Tensor, *, reduction: PairReduction = "sum") -> Tensor:
    """How much centers point the same way (Cai et al., FG 2018, the second term).

    Sum over ordered pairs j != k of cos(c_j, c_k) + 1. As sum cos = |sum u|^2 - sum |u|^2 over the directions
    u, it takes O(C D) and not O(C^2 D). A center of zero length has cosine 0 with any other.

    Args:
        centers: [C, D], any float dtype.
        reduction: 'sum' as the paper, or 'mean' over the C (C - 1) pairs, which does not grow with C.

    Returns:
        Scalar; 0 with a graph for one class.
    """
    with no_autocast(centers):
        unit = unit_rows(centers.to(compute_dtype(centers)))
        pairs = len(unit) * (len(unit) - 1)
        total = unit.sum(dim=0).square().sum() - unit.square().sum() + pairs
        return total if reduction == "sum" else total / max(pairs, 1)


def island_loss(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    pair_weight: float = 10.0,
    reduction: PairReduction = "sum",
) -> Tensor:
    """Center loss, and centers pushed apart in angle (Cai et al., FG 2018).

    1/2 mean |x - c_y|^2 + lambda_1 sum over j != k of (cos(c_j, c_k) + 1).

    Args:
        embeddings: [B, D], any float dtype; not normalised.
        labels: [B] int64 in [0, C).
        centers: [C, D].
        pair_weight: lambda_1.
        reduction: of the pairs of centers: 'sum', or 'mean'.

    Returns:
        Scalar, mean over the batch (the paper sums).

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    return center_loss(embeddings, labels, centers) + pair_weight * center_island_penalty(
        centers, reduction=reduction
    )


def unit_rows(x: Tensor) -> Tensor:
    """Rows [N, D] on the unit sphere; a row of zeros stays zero, with a finite gradient."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norms.where(norms > 0, 1.0)


@LOSSES.register("center")
class CenterLoss(nn.Module):
    """Pulls each embedding towards the center of its class; use beside a softmax loss.

    `functional.center_loss` has the formula. The centers follow in one of two ways:

    - 'gradient': they are parameters, trained by the optimiser with everything else.
    - 'alpha': the paper's own rule (Wen et al., ECCV 2016, eq. 4 and algorithm 1). They are a buffer which no
      optimiser and no forward pass touches; call `update_centers` once after each step, as
      `Objective.after_step` does.

    Args:
        num_classes: C.
        embedding_dim: D.
        update: how the centers move.
        alpha: step of the rule 'alpha', in (0, 1]; unused by 'gradient'.
        init_std: the centers start as normal noise of this spread.
    """

    kind: ClassVar[str] = "center"
    formula: ClassVar[str] = "1/2 |x - c_y|^2"
    use: ClassVar[str] = "beside softmax, to tighten the clusters; small weight, on the features"
    source: ClassVar[str] = "Wen et al., ECCV 2016, eq. 2"
    pairwise: ClassVar[bool] = False
    no_weight_decay: ClassVar[tuple[str, ...]] = ("centers",)
    centers: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        update: Literal["gradient", "alpha"] = "gradient",
        alpha: float = 0.5,
        init_std: float = 0.01,
    ):
        super().__init__()
        check_options(
            **_center_rules(num_classes, embedding_dim, init_std),
            update=(update in ("gradient", "alpha"), f"must be 'gradient' or 'alpha', got {update!r}"),
            alpha=(0 < alpha <= 1, f"must lie in (0, 1], got {alpha}"),
        )
        self.update = update
        self.alpha = alpha
        centers = torch.randn(num_classes, embedding_dim) * init_std
        if update == "gradient":
            self.centers = nn.Parameter(centers)
        else:
            self.register_buffer("centers", centers)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return center_loss(embeddings, labels, self.centers)

    @property
    def stateful(self) -> bool:
        """Whether `after_step` has something to move."""
        return self.update == "alpha"

    def after_step(self, embeddings: Tensor, labels: Tensor) -> None:
        """What an objective calls after each optimiser step: `update_centers`."""
        self.update_centers(embeddings, labels)

    @torch.no_grad()
    def update_centers(self, embeddings: Tensor, labels: Tensor) -> None:
        """Moves the centers of the classes in the batch by alpha times the paper's delta.

        With several ranks give the joined batch to each, so that all hold the same centers.

        Args:
            embeddings: [B, D], any float dtype.
            labels: [B] int64 in [0, C).

        Raises:
            ValueError: the centers are trained by the optimiser, or the batch does not fit.
        """
        if self.update != "alpha":
            raise ValueError("the centers belong to the optimiser: build CenterLoss with update='alpha'")
        steps = center_steps(embeddings, labels, self.centers)
        self.centers.index_add_(0, labels, steps, alpha=self.alpha)

    def extra_repr(self) -> str:
        classes, dim = self.centers.shape
        rule = self.update if self.update == "gradient" else f"alpha, alpha={self.alpha}"
        return f"num_classes={classes}, embedding_dim={dim}, update={rule}"


@LOSSES.register("contrastive_center")
class ContrastiveCenterLoss(nn.Module):
    """Pulls each embedding to its center and away from the others; use beside a softmax loss.

    `contrastive_center_loss` has the formula. The centers are parameters.

    Args:
        num_classes: C.
        embedding_dim: D.
        delta: keeps the quotient finite; in squared units of the embeddings.
        init_std: the centers start as normal noise of this spread.
    """

    kind: ClassVar[str] = "center"
    formula: ClassVar[str] = "1/2 |x - c_y|^2 / (sum_{j != y} |x - c_j|^2 + delta)"
    use: ClassVar[str] = "as center, where classes should also move apart; bounded, so any scale of features"
    source: ClassVar[str] = "Qi and Su, ICIP 2017"
    pairwise: ClassVar[bool] = False
    no_weight_decay: ClassVar[tuple[str, ...]] = ("centers",)

    def __init__(self, num_classes: int, embedding_dim: int, *, delta: float = 1.0, init_std: float = 0.01):
        super().__init__()
        check_options(
            **_center_rules(num_classes, embedding_dim, init_std),
            delta=(0 < delta < float("inf"), f"must be positive, got {delta}"),
        )
        self.delta = delta
        self.centers = nn.Parameter(torch.randn(num_classes, embedding_dim) * init_std)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return contrastive_center_loss(embeddings, labels, self.centers, delta=self.delta)

    def extra_repr(self) -> str:
        classes, dim = self.centers.shape
        return f"num_classes={classes}, embedding_dim={dim}, delta={self.delta}"


@LOSSES.register("island")
class IslandLoss(nn.Module):
    """Center loss with centers that repel each other in angle; use beside a softmax loss.

    `island_loss` has the formula. The centers are parameters.

    Args:
        num_classes: C.
        embedding_dim: D.
        pair_weight: lambda_1, the weight of the pairs of centers.
        reduction: of the pairs of centers: 'sum' (the paper, of 7 classes) or 'mean', which does not grow
            with the square of the number of classes.
        init_std: the centers start as normal noise of this spread.
    """

    kind: ClassVar[str] = "center"
    formula: ClassVar[str] = "1/2 |x - c_y|^2 + lambda_1 sum_{j != k} (cos(c_j, c_k) + 1)"
    use: ClassVar[str] = "as center, for few classes; with many take reduction: mean"
    source: ClassVar[str] = "Cai et al., FG 2018"
    pairwise: ClassVar[bool] = False
    no_weight_decay: ClassVar[tuple[str, ...]] = ("centers",)

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        pair_weight: float = 10.0,
        reduction: PairReduction = "sum",
        init_std: float = 0.01,
    ):
        super().__init__()
        check_options(
            **_center_rules(num_classes, embedding_dim, init_std),
            pair_weight=(0 <= pair_weight < float("inf"), f"must be at least 0, got {pair_weight}"),
            reduction=(reduction in ("sum", "mean"), f"must be 'sum' or 'mean', got {reduction!r}"),
        )
        self.pair_weight = pair_weight
        self.reduction: PairReduction = reduction
        self.centers = nn.Parameter(torch.randn(num_classes, embedding_dim) * init_std)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return island_loss(
            embeddings, labels, self.centers, pair_weight=self.pair_weight, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        classes, dim = self.centers.shape
        return (
            f"num_classes={classes}, embedding_dim={dim}, pair_weight={self.pair_weight}, "
            f"reduction={self.reduction}"
        )


def _center_rules(num_classes: int, embedding_dim: int, init_std: float) -> dict[str, tuple[bool, str]]:
    """What all constructors here demand of the options that they share."""
    return {
        "num_classes": (num_classes >= 1, f"must be at least 1, got {num_classes}"),
        "embedding_dim": (embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
        "init_std": (0 <= init_std < float("inf"), f"must be at least 0, got {init_std}"),
    }
