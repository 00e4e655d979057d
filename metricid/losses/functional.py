"""Losses as pure functions of tensors; those that compare samples with each other live in `pairs`.

Arithmetic is float32 (float64 stays float64) whatever the dtype of the input, also inside an autocast region,
and no argument is changed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.losses.checks import check_batch, compute_dtype, no_autocast
from metricid.losses.heads import margin_softmax_loss, with_target
from metricid.losses.linear import check_per_class, check_targets, linear_logits
from metricid.losses.margins import ArcMargin, Gradient, arc_margin
from metricid.losses.matrices import pairwise_distances
from metricid.losses.pairs import (
    circle_loss,
    contrastive_loss,
    distance_margin_loss,
    multi_similarity_loss,
    snr_contrastive_loss,
)
from metricid.losses.ranking import (
    fast_ap_loss,
    histogram_loss,
    ranked_list_loss,
    recall_at_k_loss,
    smooth_ap_loss,
)
from metricid.losses.softmax_pairs import nca_loss, npair_loss, ntxent_loss, supcon_loss, tuplet_margin_loss
from metricid.losses.triplets import triplet_loss, weighted_triplet_loss
from metricid.losses.tuples import (
    angular_loss,
    generalized_lifted_loss,
    lifted_structure_loss,
    quadruplet_loss,
)

__all__ = [
    "angular_loss",
    "arc_margin",
    "arcface_loss",
    "center_loss",
    "center_steps",
    "circle_loss",
    "contrastive_loss",
    "distance_margin_loss",
    "fast_ap_loss",
    "generalized_lifted_loss",
    "histogram_loss",
    "lifted_structure_loss",
    "margin_softmax_loss",
    "multi_similarity_loss",
    "nca_loss",
    "npair_loss",
    "ntxent_loss",
    "pairwise_distances",
    "quadruplet_loss",
    "ranked_list_loss",
    "recall_at_k_loss",
    "smooth_ap_loss",
    "snr_contrastive_loss",
    "softmax_loss",
    "supcon_loss",
    "triplet_loss",
    "tuplet_margin_loss",
    "weighted_triplet_loss",
    "with_target",
]


def softmax_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the softmax over a linear classifier.

    With z = W x + b: -sum_c q_c log softmax(z)_c, q_c = (1 - eps) [c = y] + eps / C (Szegedy et al., CVPR
    2016, section 7), as PyTorch counts eps; some toolkits spread it over the C - 1 other classes instead.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C), or one-hot or soft targets [B, C] in a float dtype, whose rows sum to 1.
        weight: [C, D].
        bias: [C] or None.
        label_smoothing: eps in [0, 1).
        class_weights: [C], factor on the part of each class in the sum.

    Returns:
        Scalar, in nats: the mean over the batch, for integer labels with class weights the weighted mean, as
        PyTorch counts.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_targets(embeddings, labels, weight, distribution=True)
    check_per_class("class_weights", class_weights, len(weight))
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        logits = linear_logits(embeddings, weight, bias)
        target = labels.to(dtype) if labels.is_floating_point() else labels
        weights = None if class_weights is None else class_weights.to(dtype)
        return F.cross_entropy(logits, target, weight=weights, label_smoothing=label_smoothing)


def arcface_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    margin: float = 0.5,
    scale: float = 64.0,
    easy_margin: bool = False,
    sub_centers: int = 1,
    label_smoothing: float = 0.0,
    gradient: Gradient = "exact",
) -> Tensor:
    """Cross-entropy over scaled cosines, the target's with an angular margin (Deng et al., CVPR 2019, eq. 3).

    With theta_c the angle between x and W_c: -log( e^{s cos(theta_y + m)} / (e^{s cos(theta_y + m)} +
    sum_{c != y} e^{s cos theta_c}) ). With K sub-centers cos(theta_c) is the largest over the class's K rows
    (Deng et al., ECCV 2020). `arc_margin` says what happens beyond pi and at cos = 1.

    Args:
        embeddings: [B, D], any float dtype; their length does not matter.
        labels: [B] int64 in [0, C).
        weight: [C * K, D]; rows c * K to c * K + K - 1 belong to class c; their length does not matter.
        margin: m in radians.
        scale: s.
        easy_margin: apply the margin where cos(theta) > 0 only.
        sub_centers: K.
        label_smoothing: eps / C on every class.
        gradient: 'exact', or 'straight_through' the margin, as in the authors' code.

    Returns:
        Scalar, mean over the batch, in nats.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    rule = ArcMargin(margin, scale, easy_margin=easy_margin, gradient=gradient)
    return margin_softmax_loss(
        embeddings, labels, weight, rule, sub_centers=sub_centers, label_smoothing=label_smoothing
    )


def center_loss(embeddings: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Half the squared distance of each embedding to the center of its class (Wen et al., ECCV 2016, eq. 2).

    Args:
        embeddings: [B, D], any float dtype; not normalised.
        labels: [B] int64 in [0, C).
        centers: [C, D].

    Returns:
        Scalar. The paper sums over the batch; this is the mean, so that a weight does not depend on B.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(centers), dim=centers.shape[1])
    dtype = compute_dtype(embeddings, centers)
    with no_autocast(embeddings):
        return 0.5 * (embeddings.to(dtype) - centers[labels].to(dtype)).square().sum(dim=1).mean()


def center_steps(embeddings: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """What each sample adds to minus delta of its own class's center (Wen et al., ECCV 2016, eq. 4).

    delta_j = sum_{y_i = j} (c_j - x_i) / (1 + n_j), with n_j the number of samples of class j in the batch.
    The terms come one by one, so that nothing of the size of `centers` is made:
    `centers.index_add_(0, labels, center_steps(...), alpha=alpha)` is c_j - alpha delta_j for all j.

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C).
        centers: [C, D].

    Returns:
        [B, D]: (x_i - c_{y_i}) / (1 + n_{y_i}), in the dtype of `centers`.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(centers), dim=centers.shape[1])
    counts = torch.zeros(len(centers), dtype=centers.dtype, device=centers.device)
    counts.index_add_(0, labels, counts.new_ones(len(labels)))
    return (embeddings.to(centers.dtype) - centers[labels]) / (1 + counts[labels])[:, None]
