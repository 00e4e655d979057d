"""Losses that draw a student to a teacher, both given as tensors.

Each maps (student, teacher) to a scalar; the teacher gets no gradient. `DISTILLATION` knows them by name.
"""

import math
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metricid.losses.center import unit_rows
from metricid.losses.checks import check_options, compute_dtype, no_autocast
from metricid.losses.functional import pairwise_distances
from metricid.losses.regression import huber
from metricid.registry import Registry

DISTILLATION = Registry("distillation loss", key="loss")

EmbeddingForm = Literal["mse", "l1", "smooth_l1", "cosine"]


def embedding_distillation_loss(
    student: Tensor, teacher: Tensor, *, form: EmbeddingForm = "mse", normalize: bool = False
) -> Tensor:
    """Gap between the embeddings of a student and a teacher (Romero et al., ICLR 2015, for 'mse').

    'mse' (s - t)^2, 'l1' |s - t| and 'smooth_l1' (threshold 1) are means over all entries; 'cosine' is
    1 - cos(s, t), mean over the batch.

    Args:
        student: [B, D], any float dtype.
        teacher: [B, D].
        form: as above.
        normalize: put both on the unit sphere first; 'cosine' always does.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    with no_autocast(student):
        s, t = _both(student, teacher)
        if normalize or form == "cosine":
            s, t = unit_rows(s), unit_rows(t)
        if form == "cosine":
            return 1 - (s * t).sum(dim=1).mean()
        gap = s - t
        if form == "mse":
            return gap.square().mean()
        return gap.abs().mean() if form == "l1" else huber(gap, 1.0).mean()


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation of distances (Park et al., CVPR 2019).

    Huber function (threshold 1) of |s_i - s_j| / mu_s - |t_i - t_j| / mu_t, mu the mean distance of the pairs
    in the batch. Mean over the B (B - 1) pairs; the authors' code divides by B^2. The widths may differ.

    Args:
        student: [B, D], any float dtype.
        teacher: [B, E].

    Returns:
        Scalar; 0 with a graph for a batch of one. Where all embeddings are equal all relations are 0.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    with no_autocast(student):
        s, t = _both(student, teacher, same_width=False)
        pairs = max(len(s) * (len(s) - 1), 1)
        relations = []
        for x in (s, t):
            distances = pairwise_distances(x)
            mean = distances.sum() / pairs
            relations.append(distances / mean.where(mean > 0, 1))
        return huber(relations[0] - relations[1], 1.0).sum() / pairs


def rkd_angle_loss(student: Tensor, teacher: Tensor, *, block: int = 1 << 24) -> Tensor:
    """Relational distillation of angles (Park et al., CVPR 2019).

    Huber function (threshold 1) of the gap between student and teacher in the cosine of the angle at x_j
    between x_i and x_k. Mean over the B (B - 1) (B - 2) triples of distinct i, j, k; the authors' code
    divides by B^3. The widths may differ.

    Args:
        student: [B, D], any float dtype.
        teacher: [B, E].
        block: numbers that are held at once; backward computes them again, so memory is not O(B^3).

    Returns:
        Scalar; 0 with a graph for a batch of less than three. Equal embeddings have no angle: cosine 0.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    with no_autocast(student):
        s, t = _both(student, teacher, same_width=False)
        size = len(s)
        step = max(1, block // (size * max(size, s.shape[1], t.shape[1])))
        total = 0 * s.sum()
        for start in range(0, size, step):
            total = total + checkpoint(
                _angle_gaps, s, t, start, step, use_reentrant=False, preserve_rng_state=False
            )
        return total / max(size * (size - 1) * (size - 2), 1)


def _angle_gaps(student: Tensor, teacher: Tensor, start: int, step: int) -> Tensor:
    """Sum over the angles at some of the embeddings."""
    s, t = (_cosines_at(x, start, step) for x in (student, teacher))
    sheet = huber(s - t, 1.0)
    return sheet.sum() - sheet.diagonal(dim1=1, dim2=2).sum()  # i = k is no angle


def _cosines_at(x: Tensor, start: int, step: int) -> Tensor:
    """[b, B, B]: the cosines of the angles at some embeddings; 0 where a side has no length."""
    sides = x[None, :, :] - x[start : start + step, None, :]
    unit = unit_rows(sides.flatten(0, 1)).view_as(sides)
    return unit @ unit.mT


def kl_distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Divergence of softened class probabilities (Hinton et al., arXiv 1503.02531, section 2).

    T^2 KL(softmax(t / T) || softmax(s / T)); T^2 keeps the gradient's size when T changes.

    Args:
        student: logits [B, C], any float dtype.
        teacher: logits [B, C].
        temperature: T > 0.

    Returns:
        Scalar, mean over the batch, in nats times T^2.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    with no_autocast(student):
        s, t = (F.log_softmax(x / temperature, dim=1) for x in _both(student, teacher))
        return temperature**2 * F.kl_div(s, t, log_target=True, reduction="batchmean")


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Gap between the similarity matrices of a batch (Tung and Mori, ICCV 2019).

    1/B^2 |G_t - G_s|^2 in the Frobenius norm, G = A A^T with each row at unit length. The widths may differ.

    Args:
        student: [B, D], any float dtype.
        teacher: [B, E].

    Returns:
        Scalar.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    with no_autocast(student):
        s, t = (unit_rows(x @ x.T) for x in _both(student, teacher, same_width=False))
        return (s - t).square().mean()


def _both(student: Tensor, teacher: Tensor, *, same_width: bool = True) -> tuple[Tensor, Tensor]:
    """Both in the dtype of the arithmetic, the teacher without its graph, after checks."""
    for name, x in (("student", student), ("teacher", teacher)):
        if x.ndim != 2 or not x.is_floating_point() or len(x) == 0:
            raise ValueError(f"{name} must be a float tensor [B, D], B >= 1, got {x.dtype} {list(x.shape)}")
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} rows of the student came with {len(teacher)} of the teacher")
    if same_width and student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the student has {student.shape[1]} dimensions, the teacher {teacher.shape[1]}: "
            "they must agree, or the module needs a projection"
        )
    if student.device != teacher.device:
        raise ValueError(
            f"the student is on {student.device}, the teacher on {teacher.device}: move one of them"
        )
    dtype = compute_dtype(student, teacher)
    return student.to(dtype), teacher.detach().to(dtype)


@DISTILLATION.register("embedding_distillation")
class EmbeddingDistillation(nn.Module):
    """Draws embeddings to those of a teacher; `embedding_distillation_loss` has the formulas.

    Where the widths differ, a learned linear map without bias lifts the student's to the teacher's.

    Args:
        embedding_dim: D of the student.
        teacher_dim: width of the teacher; None for the same.
        form: 'mse', 'l1', 'smooth_l1' or 'cosine'.
        normalize: put both on the unit sphere first; 'cosine' always does.
    """

    kind: ClassVar[str] = "distillation"
    formula: ClassVar[str] = "mean (s - t)^2"
    use: ClassVar[str] = "the student shall take the place of the teacher in the same index"
    source: ClassVar[str] = "Romero et al., ICLR 2015"
    pairwise: ClassVar[bool] = False

    def __init__(
        self,
        embedding_dim: int,
        *,
        teacher_dim: int | None = None,
        form: EmbeddingForm = "mse",
        normalize: bool = False,
    ):
        super().__init__()
        forms = ("mse", "l1", "smooth_l1", "cosine")
        check_options(
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
            teacher_dim=(
                teacher_dim is None or teacher_dim >= 1,
                f"must be at least 1, got {teacher_dim}",
            ),
            form=(form in forms, f"must be 'mse', 'l1', 'smooth_l1' or 'cosine', got {form!r}"),
        )
        self.form: EmbeddingForm = form
        self.normalize = normalize
        same = teacher_dim is None or teacher_dim == embedding_dim
        self.projection = None if same else nn.Linear(embedding_dim, teacher_dim or 0, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of embeddings [B, D] and those of the teacher [B, teacher_dim]."""
        if self.projection is not None:
            if student.ndim != 2 or student.shape[1] != self.projection.in_features:
                raise ValueError(
                    f"the student must be [B, {self.projection.in_features}], got {list(student.shape)}"
                )
            weight = self.projection.weight
            dtype = compute_dtype(student, weight)
            with no_autocast(student):
                student = F.linear(student.to(dtype), weight.to(dtype))
        return embedding_distillation_loss(student, teacher, form=self.form, normalize=self.normalize)

    def extra_repr(self) -> str:
        return f"form={self.form}, normalize={self.normalize}"


@DISTILLATION.register("rkd_distance")
class RKDDistance(nn.Module):
    """Keeps the teacher's ratios of distances; `rkd_distance_loss` has the formula."""

    kind: ClassVar[str] = "distillation"
    formula: ClassVar[str] = "mean_{i != j} huber(|s_i - s_j| / mu_s - |t_i - t_j| / mu_t)"
    use: ClassVar[str] = "widths or scales differ, neighbours shall agree; the paper's weight is 25 (1 alone)"
    source: ClassVar[str] = "Park et al., CVPR 2019"
    pairwise: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of embeddings [B, D] and those of the teacher [B, E]."""
        return rkd_distance_loss(student, teacher)


@DISTILLATION.register("rkd_angle")
class RKDAngle(nn.Module):
    """Keeps the teacher's angles in all triples; `rkd_angle_loss` has the formula. Time is O(B^3 D)."""

    kind: ClassVar[str] = "distillation"
    formula: ClassVar[str] = "mean_{i, j, k} huber(cos(angle s_i s_j s_k) - cos(angle t_i t_j t_k))"
    use: ClassVar[str] = "beside rkd_distance, weighted about twice as much; batches up to some hundred"
    source: ClassVar[str] = "Park et al., CVPR 2019"
    pairwise: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of embeddings [B, D] and those of the teacher [B, E]."""
        return rkd_angle_loss(student, teacher)


@DISTILLATION.register("logit_distillation")
class LogitDistillation(nn.Module):
    """Draws softened class probabilities to the teacher's; `kl_distillation_loss` has the formula.

    Args:
        temperature: T > 0; the paper tries 1 to 20.
    """

    kind: ClassVar[str] = "distillation"
    formula: ClassVar[str] = "T^2 KL(softmax(t / T) || softmax(s / T))"
    use: ClassVar[str] = "student and teacher classify the same identities"
    source: ClassVar[str] = "Hinton et al., arXiv 1503.02531, section 2"
    pairwise: ClassVar[bool] = False

    def __init__(self, *, temperature: float = 4.0):
        super().__init__()
        check_options(temperature=(0 < temperature < math.inf, f"must be positive, got {temperature}"))
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of logits [B, C] and those of the teacher."""
        return kl_distillation_loss(student, teacher, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


@DISTILLATION.register("similarity_preserving")
class SimilarityPreserving(nn.Module):
    """Keeps the teacher's matrix of similarities; `similarity_preserving_loss` has the formula."""

    kind: ClassVar[str] = "distillation"
    formula: ClassVar[str] = "1/B^2 |G_t - G_s|_F^2, G the rows of A A^T at unit length"
    use: ClassVar[str] = "on inner features of unlike width; the paper's weight is 3000"
    source: ClassVar[str] = "Tung and Mori, ICCV 2019"
    pairwise: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of activations [B, D] and those of the teacher [B, E]."""
        return similarity_preserving_loss(student, teacher)
