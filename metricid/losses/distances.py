"""Euclidean distances between rows, fast and right also where rows nearly coincide."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metricid.losses.checks import compute_dtype, no_autocast

# Float32 loses digits of |x|^2 + |y|^2 - 2 x.y where it is below this share of |x|^2 + |y|^2.
_NEAR = 1 / 16
# More near pairs than one in so many are cheaper as a float64 product than one by one.
_FEW = 128
# Of a sheet, computed at a time: many enough for a fast product.
ROWS = 128
# Rows whose gradients are one product: beside the sheet there is memory for more of them.
_ROWS_BACK = 512


def pairwise_distances(
    embeddings: Tensor, references: Tensor | None = None, *, squared: bool = False
) -> Tensor:
    """Euclidean distances between all rows, right also where rows nearly coincide.

    The product behind |x|^2 + |y|^2 - 2 x.y would turn small distances into noise in float32 (or TF32). On
    the CPU pairs that are near for their length are computed again from their difference; elsewhere, and
    where such pairs are many, the product of the centered rows runs in float64. Rows nearer to each other
    than float32 can tell (by 3.4e-7 of the smaller of their distances from the mean of the batch) may then
    have distance 0 and there the subgradient 0; any other pair has the full gradient of unit length
    (`squared` fades with the distance instead). Apple GPUs have no float64: there the product is float32 and
    the limit 7.8e-3, so that nearly equal rows count as equal.

    Args:
        embeddings: [B, D], any float dtype.
        references: [M, D]; None for the embeddings themselves.
        squared: return d^2 and not d.

    Returns:
        [B, M], float32 (float64 for float64 input).
    """
    with no_autocast(embeddings):
        if references is None:
            return _Distances.apply(embeddings.to(compute_dtype(embeddings)), None, squared)
        dtype = compute_dtype(embeddings, references)
        return _Distances.apply(embeddings.to(dtype), references.to(dtype), squared)


def row_blocks(x: Tensor, columns: int, width: int = 1, *, least: int = 1) -> Iterator[slice]:
    """Rows that fit a cache on a CPU, and few launches on a GPU; `least` or more, for a fast product."""
    entries = 1 << 18 if x.device.type == "cpu" else 1 << 25
    size = max(least, entries // max(1, columns * width))
    return (slice(start, min(start + size, len(x))) for start in range(0, len(x), size))


def mirrors(x: Tensor, y: Tensor | None) -> bool:
    """Whether to compute half of a sheet [B, B]: where products are dear beside copies."""
    return y is None and x.device.type == "cpu"


def mirrored(sheet: Tensor, upper: Callable[[slice, Tensor], Any]) -> Iterator[slice]:
    """Fills a symmetric sheet [B, B] from `upper`, and yields rows that are complete; they may then change.

    Args:
        sheet: to be filled.
        upper: (R rows, their place in the sheet from the diagonal on [R, B - start]) -> fills the place.
    """
    for start in range(0, len(sheet), ROWS):
        rows = slice(start, min(start + ROWS, len(sheet)))
        values = sheet[rows, start:]
        upper(rows, values)
        # A transposed copy is fast between contiguous blocks alone, as it goes by tiles there.
        sheet[rows.stop :, rows] = values[:, len(values) :].contiguous().T.contiguous()
        yield rows


class DistanceRows:
    """Distances of anchors to references, a block of rows at a time.

    Attributes:
        x: [B, D], centered, in the dtype of the products.
        y: [M, D] alike; None where the anchors are their own references.
    """

    def __init__(self, anchors: Tensor, references: Tensor | None, squared: bool):
        self.anchors, self.references, self.squared = anchors, references, squared
        self._near = [torch.empty(2, 0, dtype=torch.int64, device=anchors.device)]
        self._center(anchors.dtype if anchors.device.type in ("cpu", "mps") else torch.float64)

    def _center(self, dtype: torch.dtype) -> None:
        x = self.anchors.to(dtype)
        mean = x.mean(dim=0)
        self.x = x - mean
        self.y = None if self.references is None else self.references.to(dtype) - mean
        self._x_norms = _squared_norms(self.x)
        self._y_norms = self._x_norms if self.y is None else _squared_norms(self.y)

    def block(self, rows: slice) -> Tensor:
        """Distances [R, M] of some anchors, squared if so wanted, in the dtype of the anchors."""
        shape = len(self.x[rows]), len(self._y_norms)
        return self.fill(rows, self.anchors.new_empty(shape), upper=False)

    def fill(self, rows: slice, out: Tensor, *, upper: bool = True) -> Tensor:
        """As `block`, into `out`: from the diagonal on [R, B - start], for `mirrored`, or all [R, M]."""
        first = rows.start if upper else 0
        other = (self.x if self.y is None else self.y)[first:]
        x_norms, y_norms = self._x_norms[rows, None], self._y_norms[None, first:]
        place = out if out.dtype == self.x.dtype else None
        result = torch.addmm(y_norms, self.x[rows], other.T, alpha=-2, out=place)
        result += x_norms
        if result.dtype == torch.float64 or result.device.type != "cpu":
            rounding = 512 * torch.finfo(result.dtype).eps * torch.minimum(x_norms, y_norms)
            result.masked_fill_(result <= rounding, 0)  # equal, but for rounding
        else:
            own = result.diagonal(offset=rows.start - first)[: 0 if self.y is not None else None]
            own.fill_(torch.inf)
            least = result.amin() if result.numel() else torch.inf
            # Few batches need to look at each pair.
            if not least >= _NEAR * (x_norms.amax() + y_norms.amax()):
                near = result < _NEAR * (x_norms + y_norms)
                own.fill_(0)
                if not self._fix(result, near, rows, upper):
                    self._center(torch.float64)
                    return self.fill(rows, out, upper=upper)
            own.fill_(0)
        if result is not out:
            out.copy_(result)
        return out if self.squared else out.sqrt_()

    def _fix(self, result: Tensor, near: Tensor, rows: slice, upper: bool) -> bool:
        """Computes the near pairs of a block again, unless they are too many."""
        i, j = near.nonzero().T
        if not len(i):  # NaN alone
            return True
        if len(i) > len(near) * len(self._y_norms) // _FEW:
            return False
        found = torch.stack([i + rows.start, j + rows.start if upper else j])
        gaps = _gaps(self.anchors, self.references, found)
        result[i, j] = torch.cat([gap.square_().sum(dim=1) for _, gap in gaps])
        self._near.append(found)
        if upper:
            self._near.append(found[:, found[1] >= rows.stop].flip(0))
        return True

    def near(self) -> Tensor:
        """[2, N] int64: the pairs whose pull the product would lose to rounding; anchors, references."""
        return torch.cat(self._near, dim=1)


def _squared_norms(rows: Tensor) -> Tensor:
    """[N], without a sheet of squares."""
    return torch.linalg.vector_norm(rows, dim=1).square_()


def pull_of(slopes: Tensor, distances: Tensor, squared: bool, out: Tensor | None = None) -> Tensor:
    """dL/dx_i = sum_j pull_ij (x_i - x_j): 2 slopes, or slopes / d with the subgradient 0 at d = 0.

    `out` may be the memory of `distances`.
    """
    if squared:
        return torch.mul(slopes, 2, out=out)
    pull = distances.sign().mul_(slopes)
    return torch.div(pull, distances.clamp_min(torch.finfo(distances.dtype).tiny), out=out)


def gradients(
    x: Tensor,
    y: Tensor | None,
    sheet: Tensor,
    weights: Callable[[slice], Tensor] | None,
    *,
    pull: bool,
    wanted: int,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the rows, in their dtype, from a sheet of slopes.

    Args:
        x: [B, D].
        y: [M, D]; None for x, where one product serves both sides.
        sheet: [B, M].
        weights: rows -> what their slopes are multiplied with, [R, M]; symmetric where `y` is None.
        pull: the sheet holds the pull between rows, and not the slope in their product.
        wanted: rows of `y`, from the first on, that get a gradient; without any the second one is None.
    """
    other = x if y is None else y
    dx = torch.empty_like(x)
    dy = torch.zeros_like(other[:wanted]) if y is not None and wanted else None
    for rows in row_blocks(x, len(other), least=_ROWS_BACK):
        block = sheet[rows]
        if y is None:  # contiguous copies make the transposition fast
            block = sheet[:, rows].contiguous().T.contiguous().add_(block)
        if weights is not None:
            block = weights(rows).mul_(block)
        block = block.to(x.dtype)
        torch.mm(block, other, out=dx[rows])
        if dy is not None:
            dy.addmm_(block[:, :wanted].T, x[rows])
        if pull:
            torch.addcmul(-dx[rows], block.sum(dim=1, keepdim=True), x[rows], out=dx[rows])
            if dy is not None:
                dy.addcmul_(block[:, :wanted].sum(dim=0)[:, None], other[:wanted], value=-1)
    if dy is not None and pull:
        dy.neg_()
    return dx, dy


def add_near(x: Tensor, y: Tensor | None, pairs: Tensor, pull: Tensor, dx: Tensor, dy: Tensor | None) -> None:
    """Adds the pull [N] of near pairs [2, N] to gradients of rows that are not centered."""
    for part, gap in _gaps(x, y, pairs):
        gap *= pull[part, None]
        dx.index_add_(0, pairs[0, part], gap)
        if y is None or dy is not None:
            target, columns = dx if dy is None else dy, pairs[1, part]
            if y is not None and len(target) < len(y):
                inside = columns < len(target)
                columns, gap = columns[inside], gap[inside]
            target.index_add_(0, columns, gap, alpha=-1)


def _gaps(x: Tensor, y: Tensor | None, pairs: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """x_i - y_j of pairs [2, N], some at a time."""
    for start in range(0, pairs.shape[1], 4096):
        part = slice(start, start + 4096)
        i, j = pairs[:, part]
        yield part, x[i] - (x if y is None else y)[j]


class _Distances(torch.autograd.Function):
    """Distance matrix that keeps one [B, M] sheet for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, squared: bool) -> Tensor:
        source = DistanceRows(x, y, squared)
        result = x.new_empty(len(x), len(x if y is None else y))
        if mirrors(x, y):
            for _ in mirrored(result, source.fill):
                pass
        else:
            for rows in row_blocks(x, result.shape[1], least=ROWS):
                source.fill(rows, result[rows], upper=False)
        ctx.squared = squared
        ctx.save_for_backward(x, y, source.x, source.y, source.near(), result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, y, centered, centered_y, near, distances = ctx.saved_tensors
        sheet = pull_of(slopes[0], distances, ctx.squared)
        pull = sheet[near[0], near[1]]
        sheet[near[0], near[1]] = 0
        wanted = len(y) if ctx.needs_input_grad[1] else 0
        dx, dy = gradients(centered, centered_y, sheet, None, pull=True, wanted=wanted)
        dx, dy = dx.to(x.dtype), None if dy is None else dy.to(x.dtype)
        add_near(x, y, near, pull, dx, dy)
        return dx, dy, None
