"""What every pairwise loss starts from: anchors against references, who is a positive of whom, and one sheet.

A loss over pairs is a function of the matrix of similarities or distances [B, M]. Where it is a mean over
anchors, `mean_over_anchors` takes it a few rows at a time, values and slopes at once, so that a single [B, M]
sheet of slopes stays; nothing of the size B^3, nor a list of pairs or triplets, is made. Derivatives are of
the first order: do not ask for a gradient of a gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metricid.losses.checks import check_batch, compute_dtype, no_autocast
from metricid.losses.distances import (
    ROWS,
    DistanceRows,
    add_near,
    gradients,
    mirrored,
    mirrors,
    pairwise_distances,
    pull_of,
    row_blocks,
)
from metricid.losses.gaps import pair_distances
from metricid.losses.shares import as_numbers
from metricid.losses.unit import unit_rows

Measure = Literal["dot", "distance", "squared"]
# Numbers that a function is thought to hold for each entry of a sheet that is computed in place.
_HELD = 2


@dataclass(frozen=True)
class Pairs:
    """Anchors and what they are compared with.

    Attributes:
        x: [B, D], the anchors in the dtype of the arithmetic.
        y: [M, D], the references; `x` itself where the batch is its own reference.
        labels: [B] int64.
        other_labels: [M] int64.
        own: the batch is its own and only reference, and a sample no partner of itself.
        with_batch: `y` begins with the batch, and a sample is no partner of itself there.
        fixed: with `with_batch`, what follows the batch gets no gradient.
        weights: [B, M], how often each pair counts, from a miner; None: each once.
        used: [B] and [M] bool, which anchors and references take part; None: all.
    """

    x: Tensor
    y: Tensor
    labels: Tensor
    other_labels: Tensor
    own: bool
    with_batch: bool = False
    fixed: bool = False
    weights: Tensor | None = None
    used: tuple[Tensor, Tensor] | None = None

    @property
    def without_self(self) -> bool:
        """Whether reference i is anchor i, for all anchors; that pair is then no pair."""
        return self.own or self.with_batch

    def masks(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Positive [R, M] and negative [R, M] bool of some anchors; self is known by its index.

        What a miner left out is neither.
        """
        same = self.labels[rows, None] == self.other_labels[None, :]
        negative = ~same
        if self.without_self:
            same.diagonal(offset=rows.start or 0).fill_(False)
        if self.used is not None:
            taken = self.used[0][rows, None] & self.used[1]
            same, negative = same & taken, negative & taken
        if self.weights is not None:
            kept = self.weights[rows] > 0
            same, negative = same & kept, negative & kept
        return same, negative

    def distances(self, *, squared: bool = False) -> Tensor:
        """[B, M], as `pairwise_distances`."""
        return pairwise_distances(self.x, None if self.own else self.y, squared=squared)

    def distances_to(self, columns: Tensor, *, squared: bool = False) -> Tensor:
        """Distances [B, T] of each anchor to some references, given by their columns [B, T] int64."""
        return pair_distances(self.x, None if self.own else self.y, None, columns, squared)

    @torch.no_grad()
    def blocks(self, *, squared: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Distances [R, M] and masks of some anchors at a time, outside of the graph, to choose pairs by."""
        source = DistanceRows(self.x, None if self.own else self.y, squared)
        for rows in row_blocks(self.x, len(self.y)):
            yield source.block(rows), *self.masks(rows)

    def dots(self) -> Tensor:
        """[B, M], the products; cosines where the pairs were normalised."""
        return self.x @ self.y.T

    def between(self, *, squared: bool = False) -> Tensor:
        """[M, M] distances among the references."""
        return pairwise_distances(self.y, squared=squared)

    def most_positives(self) -> int:
        """The largest number of positives of one anchor, or more, at least 1.

        On the CPU it is that of the largest class, which saves time; elsewhere the host would wait for the
        device to know it.
        """
        if self.x.device.type != "cpu":
            return len(self.y)
        most = int(self.other_labels.unique(return_counts=True)[1].max())
        return max(1, most - 1 if self.without_self else most)

    def nan_or_zero(self) -> Tensor:
        """0 with a graph; NaN where an embedding is not finite, so that it shows if nothing is counted."""
        if self.own:
            return 0 * self.x.sum()
        return 0 * self.x.sum() + 0 * (self.y.detach() if self.fixed else self.y).sum()


def compare(
    embeddings: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    with_batch: bool = False,
    normalize: bool = False,
) -> Pairs:
    """Checks a batch and its references, and brings them to the dtype of the arithmetic.

    Args:
        embeddings: [B, D], any float dtype: the anchors.
        labels: [B] int64, any values.
        references: [M, D], from which positives and negatives come; None for the batch itself without its
            self-pairs. Pass the batch as references to count those, too.
        reference_labels: [M] int64, with `references`.
        with_batch: compare with the batch itself, too, without its self-pairs; M grows by B. For a memory of
            past batches, to which it adds the present one; here it may be empty.
        normalize: put all rows on the unit sphere.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or one of references and their labels is missing.
    """
    check_batch(embeddings, labels)
    if (references is None) != (reference_labels is None):
        raise ValueError("references [M, D] and reference_labels [M] go together: one of them is missing")
    with no_autocast(embeddings):
        empty = with_batch and references is not None and len(references) == 0
        if references is None or reference_labels is None or empty:
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
        if with_batch:
            y, reference_labels = torch.cat([x, y]), torch.cat([labels, reference_labels])
        fixed = with_batch and not references.requires_grad
        return Pairs(x, y, labels, reference_labels, own=False, with_batch=with_batch, fixed=fixed)


class Rows(NamedTuple):
    """What a loss makes of some rows of the sheet.

    Attributes:
        losses: [R], summed over the pairs of each anchor; or [R, 2], over its positives and its negatives,
            which are then averaged apart.
        counted: like `losses`, how much each adds to the divisor of the mean; bool or number.
        slopes: [R, M], derivatives of `losses` where the function knows them; None leaves them to autograd,
            which cannot tell positives from negatives.
        given_slopes: like `losses`, derivatives in what was given, with `slopes`.
    """

    losses: Tensor
    counted: Tensor
    slopes: Tensor | None = None
    given_slopes: Tensor | None = None


RowLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Rows]


def mean_over_anchors(
    pairs: Pairs, measure: Measure, function: RowLoss, *, given: Tensor | None = None, width: int = 1
) -> Tensor:
    """Sum of the losses of all anchors over the sum of what they count for.

    Args:
        pairs: from `compare`.
        measure: what the sheet holds: products, distances or squared distances.
        function: (values [R, M], positive [R, M], negative [R, M], given [R] or None, weights [R, M] of the
            pairs or None) -> `Rows`; must not change its arguments.
        given: [B], one more number for each anchor; gets a gradient if it requires one.
        width: numbers that the function holds for each entry of the sheet; bounds its memory.

    Returns:
        Scalar; 0 with a graph where nothing counts, NaN where an embedding is not finite.
    """
    # With `fixed` the gradient of the batch among the references is added to that of the anchors.
    other = None if pairs.own else pairs.y.detach() if pairs.fixed else pairs.y
    mean = _MeanOverAnchors.apply(pairs.x, other, given, pairs, measure, function, width)
    return mean + pairs.nan_or_zero()


def _prepare(rows: Tensor, dtype: torch.dtype, normalize: bool) -> Tensor:
    return unit_rows(rows.to(dtype)) if normalize else rows.to(dtype)


class _MeanOverAnchors(torch.autograd.Function):
    """Losses and slopes in one pass over blocks of rows; backward multiplies the slopes with the rows."""

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
        wanted = any(ctx.needs_input_grad)
        other = x if y is None else y
        source = None if measure == "dot" else DistanceRows(x, y, measure == "squared")
        sheet = x.new_empty(len(x), len(other)) if wanted else None
        losses, counted, given_slopes = [], [], []
        for rows, values in _values(x, y, source, sheet, width):
            own = None if given is None else given[rows].detach()
            with torch.set_grad_enabled(wanted):
                values.requires_grad_(wanted)
                if own is not None and ctx.needs_input_grad[2]:
                    own.requires_grad_()
                weights = None if pairs.weights is None else pairs.weights[rows]
                result = function(values, *pairs.masks(rows), own, weights)
            losses.append(result.losses.detach())
            counted.append(result.counted)
            if sheet is None:
                continue
            slopes, in_given = result.slopes, result.given_slopes
            if slopes is None:
                leaves = [values] if own is None or not own.requires_grad else [values, own]
                slopes, *rest = torch.autograd.grad(result.losses, leaves, torch.ones_like(result.losses))
                in_given = rest[0] if rest else None
            given_slopes += [] if in_given is None else [in_given]
            if source is None:
                sheet[rows] = slopes
            else:
                pull_of(slopes, values.detach(), source.squared, out=sheet[rows])
        near = near_pull = None
        if source is not None and sheet is not None:
            near = source.near()
            near_pull = sheet[near[0], near[1]]
            sheet[near[0], near[1]] = 0
        ctx.fixed = pairs.fixed
        divisor = torch.cat(counted).to(x.dtype).sum(dim=0)
        divisor = divisor.where(divisor > 0, 1)
        ctx.save_for_backward(
            *(x, y, *((x, y) if source is None else (source.x, source.y)), sheet, near, near_pull),
            *(torch.cat(given_slopes) if given_slopes else None, pairs.labels, pairs.other_labels, divisor),
        )
        return (torch.cat(losses).sum(dim=0) / divisor).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, y, even_x, even_y, sheet, near, near_pull, given_slopes, labels, others, divisor = (
            ctx.saved_tensors
        )
        share = slopes[0] / divisor  # of each anchor's loss, or [2], of its positives and its negatives
        apart = share.ndim == 1

        def of_kind(rows: slice) -> Tensor:
            same = as_numbers(labels[rows, None] == others, x.dtype)
            return (1 - same).mul_(share[1]).addcmul_(same, share[0])

        dx, dy = gradients(
            *(even_x, even_y, sheet, of_kind if apart else None),
            pull=near is not None,
            wanted=len(x) if ctx.fixed else len(y) if ctx.needs_input_grad[1] else 0,
        )
        dx, dy = dx.to(x.dtype), None if dy is None else dy.to(x.dtype)
        if not apart:
            dx.mul_(share)
            dy = None if dy is None else dy.mul_(share)
        if near is not None:
            scale = torch.where(labels[near[0]] == others[near[1]], share[0], share[-1]) if apart else share
            add_near(x, y, near, near_pull * scale, dx, dy)
        if ctx.fixed and dy is not None:
            dx, dy = dx.add_(dy), None
        dg = None
        if given_slopes is not None:
            dg = (given_slopes * share).sum(dim=1) if apart else given_slopes * share
        return dx, dy, dg, None, None, None, None


def _values(
    x: Tensor, y: Tensor | None, source: DistanceRows | None, sheet: Tensor | None, width: int
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their values [R, M]; they lie in the sheet, if there is one, and may change after use."""
    columns = len(x if y is None else y)

    def fill(rows: slice, out: Tensor, *, upper: bool = True) -> Tensor:
        if source is not None:
            return source.fill(rows, out, upper=upper)
        other = x[rows.start if upper else 0 :] if y is None else y
        return torch.mm(x[rows], other.T, out=out)

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        if sheet is not None and mirrors(x, y):
            yield from ((rows, sheet[rows]) for rows in mirrored(sheet, fill))
            return
        for rows in row_blocks(x, columns, least=ROWS):
            place = x.new_empty(len(x[rows]), columns) if sheet is None else sheet[rows]
            yield rows, fill(rows, place, upper=False)

    for rows, values in blocks():
        for part in row_blocks(values, columns, _HELD * width):
            yield slice(rows.start + part.start, rows.start + part.stop), values[part].detach()
