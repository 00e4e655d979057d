"""Values and gradients of all pairwise losses against their definitions."""

from functools import cache
from typing import Any

import pytest
import torch
from pairwise_oracles import TABLE, Setting
from torch import Tensor
from torch.testing import assert_close

from metricid.losses import LOSSES, NCALoss, SupConLoss
from metricid.losses.pairwise import PairwiseLoss


def make(size: int, seed: int = 0, dim: int = 16, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Clusters that overlap, with classes of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes or max(2, size // 4), (size,), generator=generator)
    centers = torch.randn(1000, dim, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    # The same numbers enter at every precision.
    return (0.35 * (centers[labels] + noise)).bfloat16().double().requires_grad_(), labels


@cache
def expected(name: str, size: int) -> tuple[Tensor, Tensor]:
    """What the definition gives for a batch, and its gradient."""
    x, labels = make(size)
    value = TABLE[name][1](Setting(x, labels, x, labels, own=True))
    return value.detach(), torch.autograd.grad(value, x)[0]


def at_a_node(x: Tensor) -> Tensor:
    """Samples with a cosine so near a node of the histogram that rounding decides on which side it is.

    The gradient jumps there. They are few.
    """
    z = torch.nn.functional.normalize(x.detach().double())
    steps = (z @ z.T).fill_diagonal_(0.005) / 0.02
    near = ((steps - steps.round()).abs() < 5e-5).any(dim=1)
    assert near.float().mean() < 0.2
    return near


def check(
    value: Tensor, expected: Tensor, leaves: list[Tensor], truth: list[Tensor], tolerance: float
) -> None:
    assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    actual = torch.autograd.grad(value, leaves)
    for mine, right in zip(actual, torch.autograd.grad(expected, truth), strict=True):
        scale = max(float(right.abs().max()), 1e-3)
        assert_close(mine.double() / scale, right / scale, rtol=0, atol=tolerance)
        assert (right != 0).any()


def test_the_table_is_complete() -> None:
    registered = {name for name in LOSSES.names() if issubclass(LOSSES.get(name), PairwiseLoss)}
    covered = {type(loss) for loss, _ in TABLE.values()}
    assert {LOSSES.get(name) for name in registered} == covered


@pytest.mark.parametrize("size", [8, 64, 512])
@pytest.mark.parametrize("name", TABLE)
class TestParity:
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
    def test_value_and_gradient(self, name: str, size: int, dtype: torch.dtype, bound: float) -> None:
        wanted, slope = expected(name, size)
        x, labels = make(size)
        x = x.detach().to(dtype).requires_grad_()
        value = TABLE[name][0](x, labels)
        assert value.dtype == dtype
        assert_close(value.detach().double(), wanted, rtol=bound, atol=bound)
        (gradient,) = torch.autograd.grad(value, x)
        scale = max(float(slope.abs().max()), 1e-3)
        smooth = ~at_a_node(x) if name == "histogram" and dtype == torch.float32 else slice(None)
        assert_close(gradient.double()[smooth] / scale, slope[smooth] / scale, rtol=0, atol=bound)
        assert (slope[smooth] != 0).any()

    def test_bfloat16_autocast(self, name: str, size: int) -> None:
        wanted, _ = expected(name, size)
        x, labels = make(size)
        single, half = x.detach().float(), x.detach().bfloat16().requires_grad_()
        loss, _ = TABLE[name]
        with torch.autocast("cpu", torch.bfloat16):
            inside, value = loss(single, labels), loss(half, labels)
        assert inside.dtype == value.dtype == torch.float32
        assert torch.equal(inside, loss(single, labels))
        value.backward()
        assert_close(value.detach().double(), wanted, rtol=0.02, atol=1e-4)
        assert half.grad is not None
        assert half.grad.dtype == torch.bfloat16
        assert half.grad.isfinite().all()


@pytest.mark.parametrize("form", ["out", "in", "log", "probability"])
def test_float64_keeps_options_that_float32_would_round(form: Any) -> None:
    x, labels = make(24)
    same = labels[:, None] == labels[None, :]
    own = torch.eye(24, dtype=torch.bool)
    positive, few = same & ~own, (same & ~own).any(dim=1)
    if form in ("out", "in"):
        value = SupConLoss(temperature=0.07, form=form)(x, labels)
        z = x / x.norm(dim=1, keepdim=True)
        logits = z @ z.T / 0.07
    else:
        value = NCALoss(scale=0.3, form=form)(x, labels)
        logits = -0.3 * (x[:, None] - x[None, :]).square().sum(dim=2)
    share = logits.masked_fill(own, -torch.inf).softmax(dim=1)
    share, positive = share[few], positive[few]
    right = (share * positive).sum(dim=1)
    losses = {
        "out": lambda: -(share.where(positive, 1.0).log().sum(dim=1) / positive.sum(dim=1)),
        "in": lambda: -(right / positive.sum(dim=1)).log(),
        "log": lambda: -right.log(),
        "probability": lambda: 1 - right,
    }[form]()
    check(value, losses.mean(), [x], [x], 1e-11)


@pytest.mark.parametrize(("size", "others"), [(8, 13), (24, 10)])
@pytest.mark.parametrize("name", TABLE)
def test_references_equal_the_definition(name: str, size: int, others: int) -> None:
    loss, oracle = TABLE[name]
    x, labels = make(size, classes=4)
    y, reference_labels = make(others, seed=1, classes=5)
    expected = oracle(Setting(x, labels, y, reference_labels, own=False))
    value = loss(x, labels, references=y, reference_labels=reference_labels)
    check(value, expected, [x, y], [x, y], 1e-9)
    moving = loss(x, labels, references=y, reference_labels=reference_labels)
    fixed = loss(x, labels, references=y.detach(), reference_labels=reference_labels)
    assert_close(torch.autograd.grad(fixed, x)[0], torch.autograd.grad(moving, x)[0])


@pytest.mark.parametrize(("size", "others"), [(8, 13), (16, 50)])
@pytest.mark.parametrize("name", TABLE)
def test_references_beside_the_batch_equal_the_definition(name: str, size: int, others: int) -> None:
    loss, oracle = TABLE[name]
    x, labels = make(size, classes=4)
    y, reference_labels = make(others, seed=1, classes=5)
    every, every_label = torch.cat([x, y]), torch.cat([labels, reference_labels])
    expected = oracle(Setting(x, labels, every, every_label, own=True))
    value = loss(x, labels, references=y, reference_labels=reference_labels, with_batch=True)
    check(value, expected, [x, y], [x, y], 1e-9)
    fixed = loss(x, labels, references=y.detach(), reference_labels=reference_labels, with_batch=True)
    again = oracle(Setting(x, labels, torch.cat([x, y.detach()]), every_label, own=True))
    check(fixed, again, [x], [x], 1e-9)


@pytest.mark.parametrize("name", TABLE)
def test_fixed_references_that_nearly_are_the_batch_in_float32(name: str) -> None:
    loss, oracle = TABLE[name]
    x, labels = make(24, classes=4)
    y, reference_labels = make(300, seed=1, classes=5)
    y = torch.cat([x.detach()[:6] + 1e-3 * y[:6], y[6:]]).detach().float()
    single = x.detach().float().requires_grad_()
    exact = single.detach().double().requires_grad_()
    value = loss(single, labels, references=y, reference_labels=reference_labels, with_batch=True)
    every, every_label = torch.cat([exact, y.double()]), torch.cat([labels, reference_labels])
    check(value, oracle(Setting(exact, labels, every, every_label, own=True)), [single], [exact], 1e-4)


@pytest.mark.parametrize("name", TABLE)
def test_the_batch_beside_no_references_is_the_batch_alone(name: str) -> None:
    loss, _ = TABLE[name]
    x, labels = make(16)
    assert torch.equal(loss(x, labels, with_batch=True), loss(x, labels))
    nothing = x.detach()[:0], labels[:0]
    assert torch.equal(loss(x, labels, *nothing, with_batch=True), loss(x, labels))


# The weights of the circle loss get no gradient, so that differences of its value say nothing.
@pytest.mark.parametrize("name", [name for name in TABLE if name != "circle"])
def test_gradcheck(name: str) -> None:
    loss, _ = TABLE[name]
    x, labels = make(9, seed=3, dim=4, classes=3)
    y, others = make(7, seed=4, dim=4, classes=3)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), x)
    assert torch.autograd.gradcheck(
        lambda x, y: loss(x, labels, references=y, reference_labels=others), (x, y)
    )
