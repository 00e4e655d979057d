"""Center loss and the paper's update against their definitions."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from metricid.config import OptimConfig
from metricid.losses import CenterLoss
from metricid.losses.functional import center_loss, center_steps
from metricid.training.optim import parameter_groups


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    centers = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    return x, torch.tensor([0, 0, 4, 1, 0, 4, 1]), centers


def test_equals_its_definition(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, c = batch
    expected = sum(((a - c[b]) ** 2).sum() for a, b in zip(x, y, strict=True)) / (2 * len(y))
    actual = center_loss(x, y, c)
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, (x, c)), torch.autograd.grad(expected, (x, c)))
    assert torch.autograd.gradcheck(lambda x, c: center_loss(x, y, c), (x, c))


def test_alpha_update_is_equation_4(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, _ = batch
    loss = CenterLoss(5, 3, update="alpha", alpha=0.3, init_std=1.0).double()
    before = loss.centers.clone()
    expected = before.clone()
    for j in range(5):
        members = x.detach()[y == j]
        delta = (before[j] - members).sum(dim=0) / (1 + len(members))
        expected[j] = before[j] - 0.3 * delta
    loss.update_centers(x, y)
    assert_close(loss.centers, expected)
    assert torch.equal(loss.centers[[2, 3]], before[[2, 3]])


def test_steps_are_per_sample(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, c = batch
    counts = torch.tensor([3, 2, 0, 0, 2])
    expected = torch.stack([(a - c[b]) / (1 + counts[b]) for a, b in zip(x, y, strict=True)])
    assert_close(center_steps(x, y, c), expected)


def test_forward_and_optimiser_leave_alpha_centers_alone() -> None:
    loss = CenterLoss(4, 2, update="alpha")
    assert list(loss.parameters()) == []
    assert "centers" in loss.state_dict()
    before = loss.centers.clone()
    x = torch.randn(3, 2, requires_grad=True)
    y = torch.tensor([0, 1, 1])
    loss(x, y).backward()
    assert torch.equal(loss.centers, before)
    assert_close(x.grad, (x.detach() - before[y]) / 3)


def test_gradient_centers_are_parameters() -> None:
    loss = CenterLoss(4, 2, init_std=0.5)
    assert [name for name, _ in loss.named_parameters()] == ["centers"]
    with pytest.raises(ValueError, match="update='alpha'"):
        loss.update_centers(torch.randn(1, 2), torch.tensor([0]))


def test_alpha_centers_approach_the_class_means() -> None:
    torch.manual_seed(0)
    loss = CenterLoss(2, 3, update="alpha", alpha=0.5)
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    for _ in range(60):
        loss.update_centers(x, y)
    assert_close(loss.centers, torch.stack([x[y == 0].mean(0), x[y == 1].mean(0)]), atol=1e-5, rtol=0)


def test_centers_are_not_decayed() -> None:
    loss = CenterLoss(2, 3)
    groups = parameter_groups(torch.nn.Identity(), {"center": loss}, OptimConfig(weight_decay=0.1))
    assert [(g["weight_decay"], g["params"][0] is loss.centers) for g in groups] == [(0.0, True)]


def test_bf16_embeddings_are_computed_in_float32() -> None:
    loss = CenterLoss(4, 2, update="alpha", init_std=1.0)
    x, y = torch.randn(3, 2).bfloat16(), torch.tensor([0, 1, 1])
    assert_close(loss(x, y), loss(x.float(), y))
    assert loss(x, y).dtype == torch.float32
    loss.update_centers(x, y)
    assert loss.centers.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": 0.0}, "alpha"), ({"init_std": -1.0}, "init_std"), ({"update": "sgd"}, "update: must be")],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CenterLoss(3, 4, **options)
