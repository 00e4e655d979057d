"""What is missing takes no part: a loss with a mask is the loss of the known part alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from metricid.losses import LOSSES, Objective
from metricid.losses.classification import binary_loss, focal_loss
from metricid.losses.dice import dice_loss
from metricid.losses.recipe import Column
from metricid.losses.regression import TASKS
from metricid.losses.term import Side

ROWS, CLASSES, WIDTH = 12, 3, 4
CLOSE = {"rtol": 1e-12, "atol": 1e-14}
KNOWN = torch.tensor([0, 5, 6])
HEADS = {
    "binary_cross_entropy": {"positive_weight": 3.0},
    "focal": {"form": "binary", "alpha": 0.3},
    "focal-alphas": {"form": "binary", "alpha": [0.1, 0.7, 1.3], "gamma": 0.5},
}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    return x, (torch.rand(ROWS, CLASSES, generator=generator) < 0.4).double()


def head(name: str) -> torch.nn.Module:
    torch.manual_seed(1)
    options = {"loss": name.split("-")[0], "num_classes": CLASSES, "embedding_dim": WIDTH}
    return LOSSES.build(options | HEADS[name]).double()


def equal(value: Tensor, wanted: Tensor, leaves: list[Tensor]) -> None:
    """The same number, and the same gradient of every leaf."""
    assert wanted > 0
    assert_close(value, wanted, **CLOSE)
    for found, expected in zip(
        torch.autograd.grad(value, leaves), torch.autograd.grad(wanted, leaves), strict=True
    ):
        assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [(ROWS, 1), (ROWS, CLASSES)])
def test_rows_that_are_missing(name: str, shape: tuple[int, int]) -> None:
    (x, truth), loss = batch(), head(name)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[KNOWN] = True
    equal(loss(x, truth, mask), loss(x[KNOWN], truth[KNOWN]), [x, *loss.parameters()])
    (slope,) = torch.autograd.grad(loss(x, truth, mask), x)
    assert torch.equal(slope.any(dim=1).nonzero().squeeze(1), KNOWN)


@pytest.mark.parametrize("name", HEADS)
def test_a_full_mask_is_none(name: str) -> None:
    (x, truth), loss = batch(), head(name)
    mask = torch.ones(1, 1, dtype=torch.bool)
    equal(loss(x, truth, mask), loss(x, truth), [x, *loss.parameters()])


@pytest.mark.parametrize("function", [binary_loss, focal_loss])
def test_a_class_that_is_missing(function: Callable[..., Tensor]) -> None:
    (x, truth), options = batch(), {"form": "binary"} if function is focal_loss else {}
    weight = torch.randn(CLASSES, WIDTH, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True])
    alone = function(x, truth[:, mask], weight[mask], **options)
    equal(function(x, truth, weight, None, mask, **options), alone, [x, weight])


def test_focal_of_rows_with_some_known_classes_is_the_mean_of_their_sums() -> None:
    (x, truth), loss = batch(), head("focal")
    known = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(2)) < 0.4
    assert 0 < known.any(dim=1).sum() < ROWS and not torch.equal(known.any(dim=1), known.all(dim=1))
    z, sums = x @ loss.weight.T + loss.bias, []
    for row in range(ROWS):
        terms = []
        for c in range(CLASSES):
            sign = 2 * truth[row, c] - 1
            p = torch.sigmoid(sign * z[row, c])
            terms += [-(0.3 if sign > 0 else 0.7) * (1 - p) ** 2 * p.log()] if known[row, c] else []
        sums += [sum(terms)] if terms else []
    equal(loss(x, truth, known), torch.stack(sums).mean(), [x, *loss.parameters()])


@pytest.mark.parametrize("name", HEADS)
def test_nothing_known_is_zero_with_a_graph(name: str) -> None:
    (x, truth), loss = batch(), head(name)
    value = loss(x, truth, torch.zeros(ROWS, CLASSES, dtype=torch.bool))
    assert value == 0
    assert not any(slope.any() for slope in torch.autograd.grad(value, [x, *loss.parameters()]))


@pytest.mark.parametrize("name", ["mse", "mae", "smooth_l1", "huber"])
def test_numbers_that_are_missing(name: str) -> None:
    (x, truth), loss = batch(), TASKS.build({"loss": name})
    mask = torch.zeros(ROWS, dtype=torch.bool)
    mask[KNOWN] = True
    p, target = x[:, 0], truth[:, 0]
    equal(loss(p, target.masked_fill(~mask, torch.nan), mask), loss(p[KNOWN], target[KNOWN]), [x])


@pytest.mark.parametrize("form", ["binary", "multiclass", "generalised"])
def test_mask_images_and_places_that_are_missing(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, 6) if form == "binary" else (ROWS, CLASSES, 6)
    z = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(2, (ROWS, 6), generator=generator)
    target = target.double() if form == "binary" else target
    places = torch.tensor([True, True, False, True, False, True])
    mask = torch.zeros(ROWS, 6, dtype=torch.bool)
    mask[KNOWN] = places
    alone = dice_loss(z[KNOWN][..., places], target[KNOWN][:, places], form=form)
    equal(dice_loss(z, target, mask, form=form), alone, [z])


@pytest.mark.parametrize("loss", ["focal", "binary_cross_entropy"])
def test_attributes_of_an_objective(loss: str) -> None:
    torch.manual_seed(0)
    term = {"task": "attributes", "columns": ["a", "b"], "loss": loss}
    columns = {"a,b": Column()}
    objective = Objective.from_config([term], 5, WIDTH, WIDTH, columns=columns).double()
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    cells = torch.full((ROWS, 2), torch.nan, dtype=torch.float64)
    cells[KNOWN] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, torch.nan]], dtype=torch.float64)

    def total(rows: Tensor) -> Tensor:
        side = Side(columns={"a,b": cells[rows]})
        return objective(x[rows], x[rows], torch.zeros(len(rows), dtype=torch.int64), 0.5, side=side).total

    equal(total(torch.arange(ROWS)), total(KNOWN), [x, *objective.parameters()])
