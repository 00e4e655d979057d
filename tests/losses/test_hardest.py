"""The hardest triplets by half of the distances, distances of chosen pairs, and rows of length 1."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from metricid.losses.distances import ROWS
from metricid.losses.functional import triplet_loss
from metricid.losses.gaps import pair_distances
from metricid.losses.hardest import hardest_by_half, takes_half
from metricid.losses.matrices import compare
from metricid.losses.unit import unit_rows
from metricid.mining import pair_masks
from metricid.mining.inbatch import Triplets, batch_hard
from metricid.mining.miners import BatchHard


def far_and_near(distances: Tensor, found: Triplets) -> tuple[Tensor, Tensor]:
    """The distances [A] of the triplets, those that do not exist being 0."""
    valid = found.valid[:, 0]
    positive, negative = (distances.gather(1, columns)[:, 0] for columns in found[:2])
    return positive.where(valid, 0), negative.where(valid, 0)


@given(
    size=st.integers(1, 3 * ROWS),
    classes=st.integers(1, 400),
    shuffled=st.booleans(),
    grid=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_half_of_the_distances_gives_what_all_give(
    size: int, classes: int, shuffled: bool, grid: bool, wide: bool, seed: int
) -> None:
    """With classes larger than a block, ties (a grid of few places), one class, and no positives at all."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64 if wide else torch.float32)
    x = x.round() if grid else x
    labels = torch.randint(classes, (size,), generator=generator)
    labels = labels if shuffled else labels.sort().values
    pairs = compare(x, labels)
    distances = (x[:, None] - x).square().sum(dim=2)
    expected = batch_hard(distances, *pair_masks(labels))
    found = hardest_by_half(pairs)
    assert torch.equal(found.valid, expected.valid)
    valid = found.valid[:, 0]
    positive, negative = found.positive[valid, 0], found.negative[valid, 0]
    anchors = torch.arange(size)[valid]
    assert (labels[positive] == labels[anchors]).all() and (positive != anchors).all()
    assert (labels[negative] != labels[anchors]).all()
    for mine, theirs in zip(far_and_near(distances, found), far_and_near(distances, expected), strict=True):
        assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_half_of_the_distances_tells_rows_apart_that_nearly_coincide() -> None:
    """Far from the origin the product behind the distances would not."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3 * ROWS) // 4
    x = 50 + 0.01 * torch.randn(3 * ROWS, 16, generator=generator)
    distances = (x.double()[:, None] - x.double()).square().sum(dim=2)
    expected, found = batch_hard(distances, *pair_masks(labels)), hardest_by_half(compare(x, labels))
    assert torch.equal(found.positive, expected.positive) and torch.equal(found.negative, expected.negative)


def test_a_large_batch_takes_half_and_nothing_else_does() -> None:
    x, labels = torch.randn(3 * ROWS, 4), torch.arange(3 * ROWS) // 3
    assert takes_half(compare(x, labels))
    assert not takes_half(compare(x[:ROWS], labels[:ROWS]))
    assert not takes_half(compare(x, labels, x, labels))
    assert not takes_half(compare(x, labels, x, labels, with_batch=True))


def test_a_large_batch_has_the_loss_of_all_distances_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3 * ROWS, 8, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(90, (3 * ROWS,), generator=generator)
    loss = triplet_loss(x, labels, margin=0.3, normalize=True, miner="batch_hard")
    unit = F.normalize(x, dim=1)
    distances = (unit[:, None] - unit).square().sum(dim=2)
    chosen = batch_hard(distances.detach(), *pair_masks(labels))
    near, far = (distances.gather(1, columns).sqrt() for columns in chosen[:2])
    expected = F.relu(near - far + 0.3)[chosen.valid].mean()
    assert_close(loss, expected)
    assert_close(*(torch.autograd.grad(value, x)[0] for value in (loss, expected)))


def test_a_miner_of_one_s_own_made_from_it_is_asked() -> None:
    class Nobody(BatchHard):
        def __call__(self, *given: Any) -> Triplets:
            found = super().__call__(*given)
            return Triplets(found.positive, found.negative, torch.zeros_like(found.valid))

    x, labels = torch.randn(3 * ROWS, 4), torch.arange(3 * ROWS) // 3
    assert triplet_loss(x, labels, miner="batch_hard") > 0
    assert triplet_loss(x, labels, miner=Nobody()) == 0


def test_a_large_batch_that_is_not_finite_shows() -> None:
    x, labels = torch.randn(3 * ROWS, 4), torch.arange(3 * ROWS) // 3
    x[200, 1] = torch.nan
    assert triplet_loss(x, labels, miner="batch_hard").isnan()


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("all_rows", [False, True])
def test_distances_of_chosen_pairs(squared: bool, own: bool, all_rows: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (6, 9))
    columns = torch.randint(6 if own else 9, (6, 4), generator=generator)
    rows = None if all_rows else torch.randint(6, (6, 4), generator=generator)

    def found(x: Tensor, y: Tensor) -> Tensor:
        return pair_distances(x, None if own else y, rows, columns, squared)

    def expected(x: Tensor, y: Tensor) -> Tensor:
        left = x[:, None] if rows is None else x[rows]
        gaps = left - (x if own else y)[columns]
        return gaps.square().sum(dim=2) if squared else torch.linalg.vector_norm(gaps, dim=2)

    assert_close(found(x, y), expected(x, y))
    weights = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    left, right = (
        torch.autograd.grad((weights * f(x, y)).sum(), (x, y), allow_unused=True) for f in (found, expected)
    )
    assert_close(left[0], right[0])
    assert own or torch.allclose(left[1], right[1])


def test_chosen_pairs_come_in_blocks_and_references_may_be_fixed() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(700, 512, generator=generator).requires_grad_(), torch.randn(5, 512)
    columns = torch.randint(5, (700, 2), generator=generator)
    found = pair_distances(x, y, None, columns, False)
    expected = torch.linalg.vector_norm(x[:, None] - y[columns], dim=2)
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(value.sum(), x)[0] for value in (found, expected)))


def test_equal_rows_have_the_subgradient_zero() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    distance = pair_distances(x, None, None, torch.tensor([[1], [0]]), False)
    (1e5 * distance).sum().backward()  # such as the scale of a training in float16
    assert x.grad is not None and not distance.any() and not x.grad.any()


def test_rows_of_length_one_and_their_gradient() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    rows[3], rows[5] = 0, rows[5] * 1e-13
    assert_close(unit_rows(rows), F.normalize(rows, dim=1))
    weights = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    rows.requires_grad_()
    found, expected = (
        torch.autograd.grad((weights * scaled).sum(), rows)[0]
        for scaled in (unit_rows(rows), F.normalize(rows, dim=1))
    )
    assert_close(found, expected)
    long = torch.randn(4000, 512, generator=generator).requires_grad_()
    weights = torch.randn(4000, 512, generator=generator)
    assert_close(
        *(torch.autograd.grad((weights * f).sum(), long)[0] for f in (unit_rows(long), F.normalize(long)))
    )
    assert torch.autograd.gradcheck(unit_rows, (rows.detach()[:3].requires_grad_(),))
