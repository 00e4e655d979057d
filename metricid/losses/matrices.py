"""What every pairwise loss starts from: anchors against references, who is a positive of whom, and one sheet.

A loss over pairs is a function of the matrix of similarities or distances [B, M]. Where it is a sum over
anchors, `mean_over_anchors` takes it a few rows at a time, forward and backward at once, so that a single
[B, M] sheet of slopes stays; nothing of the size B^3, nor a list of pairs or triplets, is made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metricid.losses.checks import check_batch, compute_dtype, no_autocast

Measure = Literal["dot", "distance", "squared"]


@dataclass(frozen=True)
class Pairs:
    """Anchors and what they are compared with.

    Attributes:
        x: [B, D], the anchors in the dtype of the arithmetic.
        y: [M, D], the references; `x` itself where the batch is its own reference.
        labels: [B] int64.
        other_labels: [M] int64.
        own: the batch is its own reference, and a sample no partner of itself.
    """

    x: Tensor
    y: Tensor
    labels: Tensor
    other_labels: Tensor
    own: bool

    def masks(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Positive [R, M] and negative [R, M] bool of some anchors; self is known by its index."""
        same = self.labels[rows, None] == self.other_labels[None, :]
        negative = ~same
        if self.own:
            same.diagonal(offset=rows.start or 0).fill_(False)
        return same, negative

    def distances(self, *, squared: bool = False) -> Tensor:
        """[B, M], as `pairwise_distances`."""
        return pairwise_distances(self.x, None if self.own else self.y, squared=squared)

    def dots(self) -> Tensor:
        """[B, M], the products; cosines where the pairs were normalised."""
        return self.x @ self.y.T

    def between(self, *, squared: bool = False) -> Tensor:
        """[M, M] distances among the references."""
        return pairwise_distances(self.y, squared=squared)

    def most_positives(self) -> int:
        """The largest number of positives of one anchor, or more, at least 1.

        On the CPU it is exact, which saves time; elsewhere the host would wait for the device to know it.
        """
        if self.x.device.type != "cpu":
            return len(self.y)
        counts = [self.masks(rows)[0].sum(dim=1).max() for rows in _row_blocks(self.x, len(self.y))]
        return max(1, int(torch.stack(counts).max()))

    def nan_or_zero(self) -> Tensor:
        """0 with a graph; NaN where an embedding is not finite, so that it shows if nothing is counted."""
        return 0 * self.x.sum() if self.own else 0 * self.x.sum() + 0 * self.y.sum()


def compare(
    embeddings: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Pairs:
    """Checks a batch and its references, and brings them to the dtype of the arithmetic.

    Args:
        embeddings: [B, D], any float dtype: the anchors.
        labels: [B] int64, any values.
        references: [M, D], from which positives and negatives come; None for the batch itself without its
            self-pairs. Pass the batch as references to count those, too.
        reference_labels: [M] int64, with `references`.
        normalize: put all rows on the unit sphere.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or one of references and their labels is missing.
    """
    check_batch(embeddings, labels)
    if (references is None) != (reference_labels is None):
        raise ValueError("references [M, D] and reference_labels [M] go together: one of them is missing")
    with no_autocast(embeddings):
        if references is None or reference_labels is None:
            x = _prepare(embeddings, compute_dtype(embeddings), normalize)
            return Pairs(x, x, labels, labels, own=True)
        try:
            check_batch(references, reference_labels, dim=embeddings.shape[1])
        except ValueError as error:
            raise ValueError(f"references: {error}") from None
        if references.device != embeddings.device:
            raise ValueError(
                f"references are on {references.device}, embeddings on {embeddings.device}: move one of them"
            )
        dtype = compute_dtype(embeddings, references)
        x, y = (_prepare(t, dtype, normalize) for t in (embeddings, references))
        return Pairs(x, y, labels, reference_labels, own=False)


def pairwise_distances(
    embeddings: Tensor, references: Tensor | None = None, *, squared: bool = False
) -> Tensor:
    """Euclidean distances between all rows, right also where rows nearly coincide.

    The product behind |x|^2 + |y|^2 - 2 x.y runs in float64 on centered rows: in float32 (or TF32) the
    cancellation would turn small distances into noise. Rows nearer to each other than float32 can tell (by
    3.4e-7 of the smaller of their distances from the mean of the batch) have distance 0 and there the
    subgradient 0; any other pair has the full gradient of unit length (`squared` fades with the distance
    instead). Apple GPUs have no float64: there the product is float32 and the limit 7.8e-3, so that nearly
    equal rows count as equal.

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


class Rows(NamedTuple):
    """What a loss makes of some rows of the sheet.

    Attributes:
        losses: [R], summed over the pairs of each anchor.
        counted: [R], how much each row adds to the divisor of the mean; bool or number.
        slopes: [R, M], derivatives of `losses` where the function knows them; None leaves them to autograd.
    """

    losses: Tensor
    counted: Tensor
    slopes: Tensor | None = None


RowLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Rows]


def mean_over_anchors(
    pairs: Pairs, measure: Measure, function: RowLoss, *, given: Tensor | None = None, width: int = 1
) -> Tensor:
    """Sum of the losses of all anchors over the sum of what they count for.

    Args:
        pairs: from `compare`.
        measure: what the sheet holds: products, distances or squared distances.
        function: (values [R, M], positive [R, M], negative [R, M], given [R] or None) -> `Rows`; must not
            change its arguments.
        given: [B], one more number for each anchor; gets a gradient if it requires one.
        width: numbers that the function holds for each entry of the sheet; bounds its memory.

    Returns:
        Scalar; 0 with a graph where nothing counts, NaN where an embedding is not finite.
    """
    other = None if pairs.own else pairs.y
    return (
        _MeanOverAnchors.apply(pairs.x, other, given, pairs, measure, function, width) + pairs.nan_or_zero()
    )


def log_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """log sum exp over the masked entries of each row [R, M]; if none, hugely negative, but finite."""
    return values.masked_fill(~mask, -torch.finfo(values.dtype).max).logsumexp(dim=1)


def with_slopes(sheet: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    """A value that was computed from a sheet outside of the graph, with the slopes that belong to it."""
    return _WithSlopes.apply(sheet, value, slopes)


def _prepare(rows: Tensor, dtype: torch.dtype, normalize: bool) -> Tensor:
    return F.normalize(rows.to(dtype), dim=1) if normalize else rows.to(dtype)


def _row_blocks(x: Tensor, columns: int, width: int = 1) -> Iterator[slice]:
    """Rows that fit a cache on a CPU, and few launches on a GPU."""
    entries = 1 << 18 if x.device.type == "cpu" else 1 << 25
    size = max(1, entries // (columns * width))
    return (slice(start, min(start + size, len(x))) for start in range(0, len(x), size))


class _Centered(NamedTuple):
    """Rows around one mean in the dtype of the products, with their squared lengths."""

    x: Tensor
    y: Tensor
    x_norms: Tensor
    y_norms: Tensor

    @classmethod
    def of(cls, anchors: Tensor, references: Tensor | None) -> "_Centered":
        wide = torch.float32 if anchors.device.type == "mps" else torch.float64  # no float64 on Apple GPUs
        x = anchors.to(wide)
        mean = x.mean(dim=0)
        x = x - mean
        y = x if references is None else references.to(wide) - mean
        return cls(x, y, x.square().sum(dim=1), y.square().sum(dim=1))

    def distances(self, rows: slice, squared: bool, dtype: torch.dtype) -> Tensor:
        x_norms = self.x_norms[rows, None]
        result = torch.addmm(self.y_norms[None, :], self.x[rows], self.y.T, alpha=-2).add_(x_norms)
        rounding = 512 * torch.finfo(self.x.dtype).eps * torch.minimum(x_norms, self.y_norms[None, :])
        result.masked_fill_(result <= rounding, 0)  # equal, but for rounding
        return (result if squared else result.sqrt_()).to(dtype)


def _pull(slopes: Tensor, distances: Tensor, squared: bool) -> Tensor:
    """dL/dx_i = sum_j pull_ij (x_i - x_j): 2 slopes, or slopes / d with the subgradient 0 at d = 0."""
    return 2 * slopes if squared else (slopes / distances).masked_fill_(distances == 0, 0)


def _from_pull(x: Tensor, y: Tensor | None, pull: Tensor, needs_y: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of the rows from the pull of each pair; y None means x, and one product serves both."""
    dx = torch.empty_like(x)
    both = _with_transpose(pull) if y is None else pull
    for rows in _row_blocks(x, pull.shape[1]):
        part = both[rows].to(x.dtype)
        dx[rows] = part.sum(dim=1, keepdim=True) * x[rows] - part @ (x if y is None else y)
    if y is None or not needs_y:
        return dx, None
    dy = pull.sum(dim=0, dtype=x.dtype)[:, None] * y
    for rows in _row_blocks(x, pull.shape[1]):
        dy -= pull[rows].to(x.dtype).T @ x[rows]
    return dx, dy


def _from_dot(x: Tensor, y: Tensor | None, slopes: Tensor, needs_y: bool) -> tuple[Tensor, Tensor | None]:
    """The same for the products of the rows."""
    if y is not None:
        return slopes @ y, slopes.T @ x if needs_y else None
    return _with_transpose(slopes) @ x, None


def _with_transpose(sheet: Tensor) -> Tensor:
    """S + S^T; a transpose that is copied first is several times faster than one that is read on the fly."""
    return sheet.T.contiguous().add_(sheet)


class _Distances(torch.autograd.Function):
    """Distance matrix that keeps one [B, M] sheet for backward, and takes one product there for x = y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, squared: bool) -> Tensor:
        rows = _Centered.of(x, y)
        result = torch.cat([rows.distances(part, squared, x.dtype) for part in _row_blocks(x, len(rows.y))])
        ctx.squared = squared
        ctx.save_for_backward(rows.x, None if y is None else rows.y, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, y, distances = ctx.saved_tensors
        pull = _pull(gradients[0], distances, ctx.squared)
        dx, dy = _from_pull(x, y, pull, ctx.needs_input_grad[1])
        return dx.to(distances.dtype), None if dy is None else dy.to(distances.dtype), None


class _MeanOverAnchors(torch.autograd.Function):
    """Loss and slopes in one pass over blocks of rows; backward multiplies the slopes with the rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        given: Tensor | None,
        pairs: Pairs,
        measure: Measure,
        function: RowLoss,
        width: int,
    ) -> Tensor:
        slopes_wanted = any(ctx.needs_input_grad)
        centered = None if measure == "dot" else _Centered.of(x, y)
        other = x if y is None else y
        sheet = x.new_empty(len(x), len(other)) if slopes_wanted else None
        given_slopes = None if given is None else torch.zeros_like(given)
        total, count = x.new_zeros(()), x.new_zeros(())
        for rows in _row_blocks(x, len(other), width):
            if centered is None:
                values = x[rows] @ other.T
            else:
                values = centered.distances(rows, measure == "squared", x.dtype)
            own = None if given is None else given[rows].detach()
            with torch.set_grad_enabled(slopes_wanted):
                values.requires_grad_(slopes_wanted)
                if own is not None and ctx.needs_input_grad[2]:
                    own.requires_grad_()
                result = function(values, *pairs.masks(rows), own)
            total += result.losses.detach().sum()
            count += result.counted.sum()
            if sheet is None:
                continue
            slopes = result.slopes
            if slopes is None:
                leaves = [values] if own is None or not own.requires_grad else [values, own]
                slopes, *rest = torch.autograd.grad(result.losses, leaves, torch.ones_like(result.losses))
                if rest and given_slopes is not None:
                    given_slopes[rows] = rest[0]
            if centered is not None:
                slopes = _pull(slopes, values.detach(), measure == "squared")
            sheet[rows] = slopes
        count.clamp_min_(1)
        ctx.measure = measure
        if centered is None:
            ctx.save_for_backward(x, y, sheet, given_slopes, count)
        else:
            ctx.save_for_backward(centered.x, None if y is None else centered.y, sheet, given_slopes, count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, sheet, given_slopes, count = ctx.saved_tensors
        scale = gradients[0] / count
        product = _from_dot if ctx.measure == "dot" else _from_pull
        dx, dy = product(x, y, sheet, ctx.needs_input_grad[1])
        dx = (dx * scale).to(sheet.dtype)
        dy = None if dy is None else (dy * scale).to(sheet.dtype)
        dg = None if given_slopes is None else given_slopes * scale
        return dx, dy, dg, None, None, None, None


class _WithSlopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sheet: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradients[0] * slopes, None, None
