"""Class constants keep float64: closed forms after `double`, and what casts, moves and checkpoints leave."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from metricid.losses import LOSSES, exact
from metricid.losses.exact import ExactBuffers, exact_tensor
from metricid.losses.imbalance import ldam_margins

COUNTS = [1, 3, 7, 20, 150, 1000]
CLASSES, WIDTH, ROWS = len(COUNTS), 5, 16
CLOSE = {"rtol": 1e-12, "atol": 1e-14}
ALPHAS = [0.1, 0.3, 0.7, 1.1, 1.3, 1.7]
Oracle = Callable[[Tensor, Tensor, nn.Module], Tensor]


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logits(x: Tensor, loss: nn.Module) -> Tensor:
    bias = 0 if loss.bias is None else loss.bias.double()
    return x.double() @ loss.weight.double().T + bias


def over_cosines(scale: float, target: Callable[[Tensor, Tensor], Tensor]) -> Oracle:
    def oracle(x: Tensor, y: Tensor, loss: nn.Module) -> Tensor:
        w = loss.weight.double()
        cosines = x.double() @ w.T / (x.double().norm(dim=1)[:, None] * w.norm(dim=1))
        own = cosines[torch.arange(len(y)), y]
        z = torch.where(F.one_hot(y, CLASSES).bool(), target(own, y)[:, None], cosines) * scale
        return (z.logsumexp(1) - z[torch.arange(len(y)), y]).mean()

    return oracle


def arc(own: Tensor, margin: Tensor) -> Tensor:
    theta = torch.acos(own)
    return torch.where(theta + margin <= math.pi, (theta + margin).cos(), own - margin * margin.sin())


def effective(beta: float) -> Tensor:
    raw = wide([(1 - beta) / (1 - beta**n) for n in COUNTS])
    return raw * CLASSES / raw.sum()


def own_log_p(z: Tensor, y: Tensor) -> Tensor:
    return z.log_softmax(1)[torch.arange(len(y)), y]


def focal_rows(z: Tensor, y: Tensor) -> Tensor:
    log_p = own_log_p(z, y)
    return -((1 - log_p.exp()) ** 2) * log_p


def focal_cells(z: Tensor, y: Tensor) -> Tensor:
    p = torch.where(F.one_hot(y, CLASSES).bool(), z.sigmoid(), 1 - z.sigmoid())
    return -((1 - p) ** 2) * p.log()


def weighted(z: Tensor, y: Tensor) -> Tensor:
    weights = wide(ALPHAS)[y]
    return -(weights * own_log_p(z, y)).sum() / weights.sum()


CASES: dict[str, tuple[dict[str, Any], Oracle]] = {
    "dynamic_arcface": (
        {},
        over_cosines(64, lambda own, y: arc(own, wide([0.45 * n**-0.25 + 0.05 for n in COUNTS])[y])),
    ),
    "ldam": ({}, over_cosines(30, lambda own, y: own - wide([0.5 * n**-0.25 for n in COUNTS])[y])),
    "adacos": ({}, over_cosines(math.sqrt(2) * math.log(CLASSES - 1), lambda own, y: own)),
    "balanced_softmax": (
        {"tau": 0.7},
        lambda x, y, loss: -own_log_p(logits(x, loss) + 0.7 * wide(COUNTS).log(), y).mean(),
    ),
    "class_balanced": (
        {"beta": 0.99},
        lambda x, y, loss: -(effective(0.99)[y] * own_log_p(logits(x, loss), y)).mean(),
    ),
    "class_balanced-sigmoid": (
        {"beta": 0.99, "base": "sigmoid_focal"},
        lambda x, y, loss: (effective(0.99)[y] * focal_cells(logits(x, loss), y).sum(1)).mean(),
    ),
    "softmax": ({"class_weights": ALPHAS}, lambda x, y, loss: weighted(logits(x, loss), y)),
    "focal": ({"alpha": 0.3}, lambda x, y, loss: 0.3 * focal_rows(logits(x, loss), y).mean()),
    "focal-list": (
        {"alpha": ALPHAS},
        lambda x, y, loss: (wide(ALPHAS)[y] * focal_rows(logits(x, loss), y)).mean(),
    ),
    "focal-binary": (
        {"alpha": 0.3, "form": "binary"},
        lambda x, y, loss: (
            (focal_cells(logits(x, loss), y) * (0.7 - 0.4 * F.one_hot(y, CLASSES).double())).sum(1).mean()
        ),
    ),
    "focal-binary-list": (
        {"alpha": ALPHAS, "form": "binary"},
        lambda x, y, loss: (focal_cells(logits(x, loss), y) * wide(ALPHAS)).sum(1).mean(),
    ),
}
CONSTANT = {
    "dynamic_arcface": "margin.margins",
    "ldam": "margin.margins",
    "adacos": "margin.scale",
    "balanced_softmax": "log_counts",
    "class_balanced": "class_weights",
    "softmax": "class_weights",
    "focal-list": "class_alpha",
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"loss": name.split("-")[0], **CASES[name][0]}
    loss = LOSSES.build(options, num_classes=CLASSES, embedding_dim=WIDTH, class_counts=COUNTS)
    for parameter in loss.parameters():
        nn.init.normal_(parameter)
    return loss


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, generator=generator).to(dtype)
    return x, torch.arange(ROWS) % CLASSES


def agrees(name: str, loss: nn.Module, dtype: torch.dtype, **close: float) -> None:
    """Value and gradients against the closed form, in float64 from the same numbers."""
    x, y = batch(dtype)
    x.requires_grad_()
    leaves = [x, *loss.parameters()]
    value, wanted = loss(x, y), CASES[name][1](x, y, loss)
    assert_close(value.double(), wanted, **close)
    for found, expected in zip(
        torch.autograd.grad(value, leaves), torch.autograd.grad(wanted, leaves), strict=True
    ):
        assert_close(found, expected, **close)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("first", [None, "half", "bfloat16", "float"])
def test_double_is_the_closed_form(name: str, first: str | None) -> None:
    """Also after a cast to fewer digits, of which the trained weights alone keep the trace."""
    loss = build(name) if first is None else getattr(build(name), first)()
    agrees(name, loss.double(), torch.float64, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_float64_embeddings_of_a_float32_head(name: str) -> None:
    x, y = batch(torch.float64)
    loss = build(name)
    assert_close(loss(x, y), CASES[name][1](x, y, loss), **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_closed_form(name: str) -> None:
    loss = build(name)
    assert loss(*batch(torch.float32)).dtype == torch.float32
    agrees(name, loss, torch.float32, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_a_cast_moves_the_weights_alone(name: str, cast: str) -> None:
    loss = build(name)
    before = loss.get_buffer(CONSTANT[name]).clone()
    assert getattr(loss, cast)().weight.dtype == getattr(torch, cast)
    assert torch.equal(loss.get_buffer(CONSTANT[name]), before)
    assert before.dtype == torch.float64


@pytest.mark.parametrize("name", ["dynamic_arcface", "ldam", "adacos"])
@pytest.mark.parametrize("saved", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_fewer_digits_loads_without_losing_them(
    name: str, saved: torch.dtype, assign: bool
) -> None:
    loss, again = build(name), build(name)
    before = loss.get_buffer(CONSTANT[name]).clone()
    state = {key: value.to(saved) for key, value in loss.state_dict().items()}
    assert sorted(state) == sorted(["weight", CONSTANT[name]])
    again.load_state_dict(state, assign=assign)
    assert torch.equal(again.get_buffer(CONSTANT[name]), before)
    assert torch.equal(again.weight.to(saved), state["weight"])


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_with_other_constants_is_what_holds(assign: bool) -> None:
    loss = build("ldam")
    other = torch.full((CLASSES,), 0.1)
    loss.load_state_dict({"weight": loss.weight.detach(), "margin.margins": other}, assign=assign)
    assert torch.equal(loss.margin.margins, other.double())
    with pytest.raises(RuntimeError, match="size mismatch for margin.margins"):
        loss.load_state_dict({"weight": loss.weight.detach(), "margin.margins": other[:2]})


def test_constants_from_options_are_not_saved() -> None:
    for name in ("balanced_softmax", "class_balanced", "softmax", "focal-list"):
        assert sorted(build(name).state_dict()) in (["bias", "weight"], ["weight"])


def test_state_moves_in_float64_and_resumes() -> None:
    x, y = batch(torch.float32)
    loss, again = build("adacos"), build("adacos").half()
    loss.after_step(x, y)
    assert loss.margin.scale != again.margin.scale
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(loss.margin.scale, again.margin.scale)


def test_a_device_without_float64_gets_float32_and_gives_all_digits_back(monkeypatch) -> None:
    """The CPU plays that device: it refuses float64, as the other one would."""
    loss = build("ldam")
    before = loss.margin.margins.clone()

    def move(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("no float64 here")
        return tensor.clone()

    with monkeypatch.context() as there:
        there.setattr(exact, "WITHOUT_FLOAT64", ("cpu",))
        loss._apply(move)
        assert torch.equal(loss.margin.margins, before.float())
        agrees("ldam", loss, torch.float32, rtol=1e-5, atol=2e-6)
        assert torch.equal(loss.half().margin.margins, before.float())
        assert exact_tensor([0.1]).dtype == torch.float32
        changed = copy.deepcopy(loss)
        changed.margin.margins.fill_(0.2)
    assert torch.equal(loss.float().margin.margins, before)
    assert torch.equal(changed.float().margin.margins, torch.full((CLASSES,), 0.2).double())


def test_meta_and_back() -> None:
    loss = build("class_balanced")
    before = loss.class_weights.clone()
    assert loss.to("meta").class_weights.is_meta
    assert torch.equal(loss.to_empty(device="cpu").class_weights, before)
    with torch.device("meta"):
        empty = build("class_balanced")
    shell = empty.to_empty(device="cpu").class_weights
    assert (shell.dtype, shell.shape, shell.device.type) == (torch.float64, (CLASSES,), "cpu")


def test_a_move_that_fails_leaves_the_constants() -> None:
    def fail(tensor: Tensor) -> Tensor:
        raise RuntimeError("no room")

    loss = build("class_balanced")
    before = loss.class_weights.clone()
    with pytest.raises(RuntimeError, match="no room"):
        loss._apply(fail)
    assert torch.equal(loss.class_weights, before)


def test_other_buffers_are_cast_as_ever() -> None:
    module = ExactBuffers()
    module.register_buffer("plain", torch.ones(2))
    module.register_buffer("count", torch.ones(2, dtype=torch.int64))
    module.register_buffer("none", None)
    module.half()
    assert (module.plain.dtype, module.count.dtype, module.none) == (torch.float16, torch.int64, None)


def test_margins_of_many_classes_read_the_counts_a_fixed_number_of_times() -> None:
    class Counts(list[int]):
        passes = 0

        def __iter__(self) -> Iterator[int]:
            self.passes += 1
            return super().__iter__()

    many = Counts(range(1, 101))
    assert ldam_margins(many, 0.5)[15] == pytest.approx(0.25)
    assert many.passes <= 2
