"""Hinge losses over a linear classifier (multi-class support vector machines)."""

from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import check_batch, check_options, compute_dtype, no_autocast
from metricid.losses.linear import LinearHead, as_multi_hot, linear_logits
from metricid.losses.margins import positive

HingeForm = Literal["crammer_singer", "one_vs_rest"]


def hinge_loss(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    form: HingeForm = "crammer_singer",
    squared: bool = False,
    margin: float = 1.0,
) -> Tensor:
    """Hinge loss of several classes, with z = W x + b and h(u) = max(0, u) or its square.

    'crammer_singer': h(m + max_{j != y} z_j - z_y) (Crammer & Singer, JMLR 2001). 'one_vs_rest': sum_j h(m -
    t_j z_j), t_j = 1 for the own class and -1 for others; squared it is the L2-SVM of Tang (arXiv 1306.0239,
    eq. 9).

    Args:
        embeddings: [B, D], any float dtype.
        labels: [B] int64 in [0, C).
        weight: [C, D].
        bias: [C] or None.
        form: which.
        squared: square the hinge.
        margin: m.

    Returns:
        Scalar, mean over the batch.

    Raises:
        ValueError: shapes disagree, or a label is outside [0, C).
    """
    check_batch(embeddings, labels, num_classes=len(weight), dim=weight.shape[1])
    dtype = compute_dtype(embeddings, weight)
    with no_autocast(embeddings):
        logits = linear_logits(embeddings, weight, bias)
        if form == "crammer_singer":
            own = logits.gather(1, labels[:, None]).squeeze(1)
            # Finite, and its half so that the difference stays finite: with one class there is no other.
            none = torch.finfo(dtype).min / 2
            gaps = F.relu(margin + logits.scatter(1, labels[:, None], none).amax(dim=1) - own)
            return (gaps.square() if squared else gaps).mean()
        signs = 2 * as_multi_hot(labels, len(weight), dtype) - 1
        gaps = F.relu(margin - signs * logits)
        return (gaps.square() if squared else gaps).sum(dim=1).mean()


@LOSSES.register("hinge")
class HingeLoss(LinearHead):
    """A multi-class support vector machine on the embedding; `hinge.hinge_loss` has the formula.

    Args:
        num_classes: C.
        embedding_dim: D.
        form: 'crammer_singer' (own class against the best other) or 'one_vs_rest' (every class by itself).
        squared: square the hinge, which pulls harder the farther off a sample is.
        margin: what the scores shall differ by.
        bias: add a learned bias per class.
    """

    formula: ClassVar[str] = "max(0, m + max_{c != y} z_c - z_y) or sum_c max(0, m - t_c z_c), or squared"
    use: ClassVar[str] = "few, well separated classes; a classifier that stops pulling when it is right"
    source: ClassVar[str] = "Crammer & Singer, JMLR 2001; Tang, arXiv 1306.0239"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        form: Literal["crammer_singer", "one_vs_rest"] = "crammer_singer",
        squared: bool = False,
        margin: float = 1.0,
        bias: bool = True,
    ):
        super().__init__(num_classes, embedding_dim, bias=bias)
        forms = get_args(HingeForm)
        check_options(
            form=(form in forms, f"must be one of {forms}, got {form!r}"),
            margin=positive(margin),
        )
        self.form: HingeForm = form
        self.squared = squared
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings [B, D] with labels [B] int64 in [0, C)."""
        return hinge_loss(
            embeddings,
            labels,
            self.weight,
            self.bias,
            form=self.form,
            squared=self.squared,
            margin=self.margin,
        )
