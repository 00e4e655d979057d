"""Regularisers of parameters: class vectors that keep apart, orthogonal rows, small weights.

Each maps one or more parameters to a scalar: `loss(head.weight)`. `REGULARISERS` knows them by name.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metricid.losses.center import unit_rows
from metricid.losses.checks import check_options, compute_dtype, no_autocast
from metricid.losses.regularisers import nearest_rows
from metricid.registry import Registry

REGULARISERS = Registry("regulariser", key="loss")

SeparationForm = Literal["inverse", "energy"]
Penalty = Callable[[Tensor], Tensor]
FLOOR = 1e-6  # squared distance of unit rows below which the energy no longer grows


def regularface(weight: Tensor) -> Tensor:
    """Mean cosine between a class vector and the nearest other one (Zhao et al., CVPR 2019).

    1/C sum_i max over j != i of cos(w_i, w_j). Only the nearest pairs stay in memory for backward.

    Args:
        weight: [C, D], any float dtype.

    Returns:
        Scalar in [-1, 1]; 0 with a graph for one class.

    Raises:
        ValueError: not a float matrix with rows.
    """
    _check_matrix(weight)
    with no_autocast(weight):
        unit = unit_rows(weight.to(compute_dtype(weight)))
        if len(unit) == 1:
            return 0 * unit.sum()
        return (unit * unit[nearest_rows(unit.detach())]).sum(dim=1).mean()


def separation_loss(
    weight: Tensor, *, form: SeparationForm = "inverse", power: float = 2.0, block: int = 1 << 22
) -> Tensor:
    """Mean repulsion of all pairs of class vectors.

    'inverse': 1 / (1 + |w_i - w_j|) (UniformFace: Duan et al., CVPR 2019). 'energy': with u the
    directions |u_i - u_j|^-s, for s = 0 -log |u_i - u_j| (hyperspherical energy: Liu et al., NeurIPS 2018).
    Rows that coincide have no gradient, and their squared distance counts as 1e-6 in the energy.

    Args:
        weight: [C, D], any float dtype.
        form: 'inverse' or 'energy'.
        power: s >= 0 of 'energy'.
        block: pairs that are held at once; backward computes them again.

    Returns:
        Scalar, mean over the C (C - 1) ordered pairs; 0 with a graph for one class.

    Raises:
        ValueError: not a float matrix with rows.
    """
    _check_matrix(weight)
    with no_autocast(weight):
        w = weight.to(compute_dtype(weight))
        count = len(w) * (len(w) - 1)
        if count == 0:
            return 0 * w.sum()
        # In float32 the differences of nearby rows would drown in rounding; Apple GPUs have no other.
        wide = (unit_rows(w) if form == "energy" else w - w.mean(dim=0)).to(
            torch.float32 if w.device.type == "mps" else torch.float64
        )
        total = wide.new_zeros(())
        step = max(1, block // len(w))
        repel = partial(_repulsion, form=form, power=power)
        for start in range(0, len(w), step):
            total = total + checkpoint(
                repel, wide, start, step, use_reentrant=False, preserve_rng_state=False
            )
        return (total / count).to(w.dtype)


def orthogonality_loss(weight: Tensor) -> Tensor:
    """Squared gap to orthonormal rows or columns (Bansal et al., NeurIPS 2018).

    |W W^T - I|^2 in the Frobenius norm where W has no more rows than columns, else |W^T W - I|^2: the other
    product cannot be the identity.

    Args:
        weight: [C, D], any float dtype; other shapes are read as [first, rest], as convolutions are.

    Returns:
        Scalar.

    Raises:
        ValueError: not a float tensor with at least two dimensions.
    """
    _check_matrix(weight.flatten(1) if weight.ndim > 2 else weight)
    with no_autocast(weight):
        w = weight.flatten(1).to(compute_dtype(weight))
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        return (gram - torch.eye(len(gram), dtype=w.dtype, device=w.device)).square().sum()


def l1_penalty(*parameters: Tensor) -> Tensor:
    """Sum of the absolute values of all entries (Tibshirani, JRSS B 1996). At least one tensor."""
    return _summed(parameters, lambda w: w.abs().sum())


def l2_penalty(*parameters: Tensor) -> Tensor:
    """Half the sum of squares of all entries, of which the gradient is w itself. At least one tensor."""
    return _summed(parameters, lambda w: 0.5 * w.square().sum())


def _repulsion(w: Tensor, start: int, step: int, *, form: SeparationForm, power: float) -> Tensor:
    """Sum over the pairs of some rows with all rows, without those of a row with itself."""
    rows = w[start : start + step]
    norms = w.square().sum(dim=1)
    own = norms[start : start + step, None]
    squared = own + norms - 2 * rows @ w.T
    itself = torch.zeros_like(squared, dtype=torch.bool)
    itself.diagonal(start).fill_(True)
    equal = squared.detach() <= 512 * torch.finfo(w.dtype).eps * torch.minimum(own, norms).detach()
    if form == "inverse":
        distances = squared.masked_fill(equal, 1).sqrt().masked_fill(equal, 0)
        values = 1 / (1 + distances)
    else:
        squared = squared.masked_fill(equal, FLOOR).clamp_min(FLOOR)
        values = squared ** (-power / 2) if power > 0 else -0.5 * squared.log()
    return values.masked_fill(itself, 0).sum()


def _summed(parameters: tuple[Tensor, ...], penalty: Penalty) -> Tensor:
    if not parameters or not all(p.is_floating_point() for p in parameters):
        raise ValueError("a penalty on parameters needs at least one, all of them float tensors")
    dtype = compute_dtype(*parameters)
    with no_autocast(parameters[0]):
        return torch.stack([penalty(p.to(dtype)) for p in parameters]).sum()


def _check_matrix(weight: Tensor) -> None:
    if weight.ndim != 2 or not weight.is_floating_point() or len(weight) == 0:
        raise ValueError(
            f"class vectors must be a float tensor [C, D], C >= 1, got {weight.dtype} {list(weight.shape)}"
        )


@REGULARISERS.register("regularface")
class RegularFace(nn.Module):
    """Keeps each class vector away from the nearest other one; `regularface` has the formula."""

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "1/C sum_i max_{j != i} cos(w_i, w_j)"
    use: ClassVar[str] = "on the weight of a softmax or margin head, for classes that crowd"
    source: ClassVar[str] = "Zhao et al., CVPR 2019"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, weight: Tensor) -> Tensor:
        """Loss of class vectors [C, D]."""
        return regularface(weight)


@REGULARISERS.register("separation")
class SeparationLoss(nn.Module):
    """Repels all pairs of class vectors or centers; `separation_loss` has the formulas.

    Args:
        form: 'inverse' (UniformFace) or 'energy' (minimum hyperspherical energy).
        power: s >= 0 of 'energy'; the paper takes 0, 1 or 2.
    """

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "mean_{i != j} 1 / (1 + |w_i - w_j|)"
    use: ClassVar[str] = "on the weight of a head or the centers, to fill the space evenly"
    source: ClassVar[str] = "Duan et al., CVPR 2019; Liu et al., NeurIPS 2018"

    def __init__(self, *, form: SeparationForm = "inverse", power: float = 2.0):
        super().__init__()
        check_options(
            form=(form in ("inverse", "energy"), f"must be 'inverse' or 'energy', got {form!r}"),
            power=(0 <= power < math.inf, f"must be at least 0, got {power}"),
        )
        self.form: SeparationForm = form
        self.power = power

    def forward(self, weight: Tensor) -> Tensor:
        """Loss of class vectors [C, D]."""
        return separation_loss(weight, form=self.form, power=self.power)

    def extra_repr(self) -> str:
        return f"form={self.form}, power={self.power}"


@REGULARISERS.register("orthogonality")
class OrthogonalityLoss(nn.Module):
    """Draws the rows (or columns) of a weight to an orthonormal set; `orthogonality_loss` has the formula."""

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "|W W^T - I|_F^2"
    use: ClassVar[str] = "on a projection or the last layers, for decorrelated dimensions"
    source: ClassVar[str] = "Bansal et al., NeurIPS 2018"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, weight: Tensor) -> Tensor:
        """Loss of a weight [C, D]; a convolution's is flattened to two dimensions."""
        return orthogonality_loss(weight)


@REGULARISERS.register("l1")
class L1Penalty(nn.Module):
    """Sum of absolute values of parameters; drives entries to exactly 0 only with a proximal step."""

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "sum |w|"
    use: ClassVar[str] = "on parameters that should be sparse"
    source: ClassVar[str] = "Tibshirani, JRSS B 1996"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *parameters: Tensor) -> Tensor:
        """Penalty of one or more parameters of any shape."""
        return l1_penalty(*parameters)


@REGULARISERS.register("l2")
class L2Penalty(nn.Module):
    """Half the sum of squares of parameters; under Adam not the same as decoupled weight decay."""

    kind: ClassVar[str] = "regulariser"
    formula: ClassVar[str] = "1/2 sum w^2"
    use: ClassVar[str] = "on a part of the parameters; for all of them take the optimiser's weight decay"
    source: ClassVar[str] = "Hoerl and Kennard, Technometrics 1970; Krogh and Hertz, NeurIPS 1991"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *parameters: Tensor) -> Tensor:
        """Penalty of one or more parameters of any shape."""
        return l2_penalty(*parameters)
