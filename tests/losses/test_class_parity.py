"""Every loss over class vectors against its definition, written again sample by sample.

Values and gradients at three batch sizes: 1e-9 in float64, 1e-5 in float32, 2 % under bfloat16 autocast.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricid.losses import LOSSES

CLASSES, WIDTH = 10, 6
COUNTS = [1, 2, 3, 5, 8, 20, 50, 100, 300, 1000]
Oracle = Callable[[Tensor, Tensor, nn.Module], Tensor]


def softmax_rows(
    target: Callable[[Tensor, Tensor, int], Tensor],
    scale: float | Callable[[Tensor], Tensor] = 64.0,
    other: Callable[[Tensor, Tensor], Tensor] = lambda cosines, moved: cosines,
    sub_centers: int = 1,
) -> Oracle:
    """Cross-entropy row by row; `target(angle, row, label)` and `other(cosines, moved)` give new cosines."""

    def oracle(x: Tensor, y: Tensor, loss: nn.Module) -> Tensor:
        total = x.new_zeros(())
        for row, label in zip(x, y.tolist(), strict=True):
            cosines = (loss.weight @ row) / (loss.weight.norm(dim=1) * row.norm())
            cosines = torch.stack([part.max() for part in cosines.split(sub_centers)])
            moved = target(torch.acos(cosines[label]), row, label)
            others = other(torch.cat([cosines[:label], cosines[label + 1 :]]), moved)
            s = scale(row) if callable(scale) else scale
            total = total + torch.logsumexp(s * torch.cat([moved[None], others]), 0) - s * moved
        return total / len(y)

    return oracle


def linear_rows(of_row: Callable[[Tensor, int], Tensor]) -> Oracle:
    def oracle(x: Tensor, y: Tensor, loss: nn.Module) -> Tensor:
        bias = 0 if loss.bias is None else loss.bias
        rows = [of_row(loss.weight @ row + bias, label) for row, label in zip(x, y.tolist(), strict=True)]
        return torch.stack(rows).mean()

    return oracle


def arc(theta: Tensor, m: float | Tensor) -> Tensor:
    """cos(theta + m), and beyond pi the line that the authors' code continues with."""
    return torch.cos(theta + m) if theta + m <= math.pi else torch.cos(theta) - m * torch.as_tensor(m).sin()


def combined(theta: Tensor, m1: float, m2: float, m3: float) -> Tensor:
    turns, phi = 0, m1 * theta + m2
    while phi - turns * math.pi > math.pi:
        turns += 1
    return (-1) ** turns * torch.cos(phi) - 2 * turns - m3


def annealed(steps: int) -> float:
    return max(5.0, 1000 / (1 + 0.12 * steps))


def adaface(theta: Tensor, row: Tensor, _: int) -> Tensor:
    q = min(max((min(row.norm().item(), 100.0) - 50) / ((30 + 1e-3) / 0.333), -1.0), 1.0)
    return torch.cos((theta - 0.4 * q).clamp(0, math.pi)) - (0.4 * q + 0.4)


def magface_margin(row: Tensor) -> Tensor:
    return 0.45 + (0.8 - 0.45) * (row.norm().clamp(10, 110) - 10) / 100


def magface(x: Tensor, y: Tensor, loss: nn.Module) -> Tensor:
    rows = softmax_rows(lambda theta, row, _: arc(theta, magface_margin(row)))
    lengths = [row.norm().clamp(10, 110) for row in x]
    return rows(x, y, loss) + 35 * torch.stack([1 / a + a / 110**2 for a in lengths]).mean()


def circle_target(theta: Tensor, row: Tensor, label: int) -> Tensor:
    s = torch.cos(theta)
    return max(1.25 - s.item(), 0.0) * (s - 0.75)


def circle_other(s: Tensor, moved: Tensor) -> Tensor:
    return torch.stack([max(v.item() + 0.25, 0.0) * (v - 0.25) for v in s])


def sphereface2(x: Tensor, y: Tensor, loss: nn.Module) -> Tensor:
    def g(z: Tensor) -> Tensor:
        return 2 * ((z + 1) / 2) ** 3 - 1

    total, b = x.new_zeros(()), loss.margin.bias
    for row, label in zip(x, y.tolist(), strict=True):
        cosines = (loss.weight @ row) / (loss.weight.norm(dim=1) * row.norm())
        for j, cosine in enumerate(cosines):
            if j == label:
                total = total + 0.7 / 40 * torch.logaddexp(b * 0, -40 * (g(cosine) - 0.4) - b)
            else:
                total = total + 0.3 / 40 * torch.logaddexp(b * 0, 40 * (g(cosine) + 0.4) + b)
    return total / len(y)


def proxy_anchor(x: Tensor, y: Tensor, loss: nn.Module) -> Tensor:
    near, far = [], []
    for j, p in enumerate(loss.weight):
        s = (x @ p) / (x.norm(dim=1) * p.norm())
        zero = s.new_zeros(1)
        if (y == j).any():
            near.append(torch.logsumexp(torch.cat([zero, -32 * (s[y == j] - 0.1)]), 0))
        far.append(torch.logsumexp(torch.cat([zero, 32 * (s[y != j] + 0.1)]), 0))
    return torch.stack(near).mean() + torch.stack(far).mean()


def proxy_nca(x: Tensor, y: Tensor, loss: nn.Module) -> Tensor:
    proxies = torch.stack([p / p.norm() for p in loss.weight])
    rows = []
    for row, label in zip(x, y.tolist(), strict=True):
        distances = ((row / row.norm() - proxies) ** 2).sum(dim=1)
        rows.append(9 * distances[label] + torch.logsumexp(-9 * distances, 0))
    return torch.stack(rows).mean()


def soft_triple(x: Tensor, y: Tensor, loss: nn.Module) -> Tensor:
    w = loss.weight / loss.weight.norm(dim=2, keepdim=True)
    rows = []
    for row, label in zip(x, y.tolist(), strict=True):
        s = w @ (row / row.norm())
        logits = torch.stack([(torch.softmax(c / 0.1, 0) * c).sum() for c in s])
        shift = torch.zeros(len(s), dtype=x.dtype)
        shift[label] = 0.01
        logits = 20 * (logits - shift)
        rows.append(torch.logsumexp(logits, 0) - logits[label])
    spread = sum((c[s] - c[t]).norm() for c in w for t in range(len(c)) for s in range(t))
    k = w.shape[1]
    return torch.stack(rows).mean() + 0.2 * spread / (len(w) * k * (k - 1))


def smooth(z: Tensor, label: int) -> Tensor:
    q = torch.full_like(z, 0.1 / CLASSES)
    q[label] += 0.9
    return -(q * (z - torch.logsumexp(z, 0))).sum()


def own_log(z: Tensor, label: int) -> Tensor:
    return z[label] - torch.logsumexp(z, 0)


def rest(z: Tensor, label: int) -> Tensor:
    """1 - p of the own class, as the sum over the others."""
    return torch.exp(torch.logsumexp(torch.cat([z[:label], z[label + 1 :]]), 0) - torch.logsumexp(z, 0))


def signed(z: Tensor, label: int) -> Tensor:
    signs = -torch.ones_like(z)
    signs[label] = 1
    return signs * z


def binary(z: Tensor, label: int) -> Tensor:
    return torch.logaddexp(torch.zeros_like(z), -signed(z, label)).mean()


def focal_binary(z: Tensor, label: int) -> Tensor:
    u = signed(z, label)
    log_p = -torch.logaddexp(torch.zeros_like(u), -u)
    alpha = torch.full_like(z, 0.75)
    alpha[label] = 0.25
    return -(alpha * torch.sigmoid(-u) ** 2 * log_p).sum()


def balanced_weights(beta: float) -> Tensor:
    weights = torch.tensor([(1 - beta) / (1 - beta**n) for n in COUNTS], dtype=torch.float64)
    return weights * CLASSES / weights.sum()


def crammer_singer(z: Tensor, label: int) -> Tensor:
    return (1 + torch.cat([z[:label], z[label + 1 :]]).max() - z[label]).clamp_min(0)


def cos_target(m: float) -> Callable[[Tensor, Tensor, int], Tensor]:
    return lambda theta, row, label: torch.cos(theta) - m


def arc_target(m: float) -> Callable[[Tensor, Tensor, int], Tensor]:
    return lambda theta, row, label: arc(theta, m)


def harder(rule: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda cosines, moved: torch.where(cosines > moved, rule(cosines), cosines)


@dataclass
class Case:
    """One loss and its definition; `state` is what a training would have left in its buffers."""

    name: str
    oracle: Oracle
    options: dict[str, Any] = field(default_factory=dict)
    state: dict[str, float] = field(default_factory=dict)

    def build(self, dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        try:
            loss = LOSSES.build(
                {"loss": self.name, **self.options},
                num_classes=CLASSES,
                embedding_dim=WIDTH,
                class_counts=COUNTS,
            )
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.no_grad():
            for parameter in loss.parameters():
                if parameter.ndim > 1:
                    parameter.normal_()
                elif parameter.ndim == 1:
                    parameter.normal_(std=0.1)
                parameter.copy_(parameter.float())  # the same numbers enter at every precision
            for name, value in self.state.items():
                loss.margin.get_buffer(name).fill_(value)
        return loss.to(dtype).eval()

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


LDAM_MARGINS = [0.5 * n**-0.25 for n in COUNTS]
CASES = [
    Case("softmax", linear_rows(lambda z, j: -own_log(z, j))),
    Case("softmax", linear_rows(smooth), {"label_smoothing": 0.1, "bias": True}),
    Case("normalized_softmax", softmax_rows(lambda theta, row, j: torch.cos(theta), 20.0)),
    Case("binary_cross_entropy", linear_rows(binary)),
    Case("focal", linear_rows(lambda z, j: -(rest(z, j) ** 2) * own_log(z, j))),
    Case("focal", linear_rows(focal_binary), {"form": "binary", "alpha": 0.25, "prior": 0.01}),
    Case("class_balanced", linear_rows(lambda z, j: -balanced_weights(0.999)[j] * own_log(z, j))),
    Case(
        "class_balanced",
        linear_rows(lambda z, j: balanced_weights(0.9)[j] * CLASSES * binary(z, j)),
        {"base": "sigmoid", "beta": 0.9},
    ),
    Case(
        "class_balanced",
        linear_rows(lambda z, j: -balanced_weights(0.9)[j] * rest(z, j) ** 0.5 * own_log(z, j)),
        {"base": "focal", "beta": 0.9, "gamma": 0.5},
    ),
    Case(
        "balanced_softmax",
        linear_rows(lambda z, j: -own_log(z + 1.5 * torch.tensor(COUNTS, dtype=z.dtype).log(), j)),
        {"tau": 1.5},
    ),
    Case("ldam", softmax_rows(lambda theta, row, j: torch.cos(theta) - LDAM_MARGINS[j], 30.0)),
    Case("hinge", linear_rows(crammer_singer)),
    Case("hinge", linear_rows(lambda z, j: crammer_singer(z, j) ** 2), {"squared": True}),
    Case(
        "hinge",
        linear_rows(lambda z, j: (1 - signed(z, j)).clamp_min(0).sum()),
        {"form": "one_vs_rest"},
    ),
    Case(
        "hinge",
        linear_rows(lambda z, j: ((1 - signed(z, j)).clamp_min(0) ** 2).sum()),
        {"form": "one_vs_rest", "squared": True},
    ),
    Case(
        "sphereface",
        softmax_rows(
            lambda theta, row, j: (
                (annealed(500) * torch.cos(theta) + combined(theta, 4, 0, 0)) / (1 + annealed(500))
            ),
            lambda row: row.norm(),
        ),
        state={"steps": 500},
    ),
    Case(
        "sphereface",
        softmax_rows(lambda theta, row, j: combined(theta, 3, 0, 0), 30.0),
        {"margin": 3, "scale": 30.0, "anneal_start": 0.0, "anneal_min": 0.0},
    ),
    Case("sphereface2", sphereface2),
    Case("cosface", softmax_rows(cos_target(0.35))),
    Case("cosface", softmax_rows(cos_target(0.2), sub_centers=3), {"margin": 0.2, "sub_centers": 3}),
    Case("arcface", softmax_rows(arc_target(0.5))),
    Case("arcface", softmax_rows(arc_target(0.5), sub_centers=3), {"sub_centers": 3}),
    Case("combined_margin", softmax_rows(lambda theta, row, j: arc(theta, 0.3) - 0.2)),
    Case(
        "combined_margin",
        softmax_rows(lambda theta, row, j: combined(theta, 1.7, 0.3, 0.2)),
        {"m1": 1.7},
    ),
    Case("dynamic_arcface", softmax_rows(lambda theta, row, j: arc(theta, 0.45 * COUNTS[j] ** -0.25 + 0.05))),
    Case(
        "curricularface",
        softmax_rows(arc_target(0.5), other=harder(lambda c: c * (0.3 + c))),
        state={"t": 0.3},
    ),
    Case("mv_softmax", softmax_rows(cos_target(0.35), 32.0, harder(lambda c: 1.2 * c + 0.2))),
    Case(
        "mv_softmax",
        softmax_rows(arc_target(0.5), 32.0, harder(lambda c: c + 0.2)),
        {"form": "arc", "weighting": "fixed"},
    ),
    Case("adaface", softmax_rows(adaface), state={"mean": 50.0, "std": 30.0}),
    Case("magface", magface, {"margin_low": 0.45}),
    Case("elasticface", softmax_rows(arc_target(0.5))),
    Case("elasticface", softmax_rows(cos_target(0.35)), {"form": "cos", "plus": True}),
    Case("adacos", softmax_rows(lambda theta, row, j: torch.cos(theta), math.sqrt(2) * math.log(9))),
    Case("circle_softmax", softmax_rows(circle_target, 256.0, circle_other)),
    Case("proxy_anchor", proxy_anchor),
    Case("proxy_nca", proxy_nca),
    Case("soft_triple", soft_triple, {"centers": 3}),
]


def test_the_table_is_complete() -> None:
    kinds = ("classification", "margin softmax", "proxy")
    assert {case.name for case in CASES} == {
        name for name in LOSSES.names() if getattr(LOSSES.get(name), "kind", None) in kinds
    }


def draw(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, WIDTH, generator=generator)
    lengths = 5 + 115 * torch.rand(size, 1, generator=generator)  # below and above every bound on a length
    x = x / x.norm(dim=1, keepdim=True) * lengths
    return x.to(dtype).requires_grad_(), torch.randint(CLASSES, (size,), generator=generator)


@cache
def expected(index: int, size: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    x, y = draw(size, torch.float64)
    loss = CASES[index].build(torch.float64)
    value = CASES[index].oracle(x, y, loss)
    return value.detach(), torch.autograd.grad(value, (x, *loss.parameters()))


def error(actual: Tensor, wanted: Tensor) -> float:
    """Relative to the length of what is wanted."""
    return float((actual.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("size", [8, 64, 512])
@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
class TestParity:
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
    def test_values_and_gradients(self, index: int, size: int, dtype: torch.dtype, bound: float) -> None:
        wanted, gradients = expected(index, size)
        x, y = draw(size, dtype)
        loss = CASES[index].build(dtype)
        value = loss(x, y)
        assert value.dtype == dtype
        assert error(value.detach(), wanted) < bound
        found = torch.autograd.grad(value, (x, *loss.parameters()))
        for actual, gradient in zip(found, gradients, strict=True):
            assert error(actual, gradient) < bound

    def test_bfloat16_autocast(self, index: int, size: int) -> None:
        x, y = draw(size, torch.float32)
        loss = CASES[index].build(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(x.bfloat16(), y)
        assert value.dtype == torch.float32
        assert error(value.detach(), expected(index, size)[0]) < 0.02
        found = torch.autograd.grad(value, (x, *loss.parameters()))
        assert all(gradient.isfinite().all() for gradient in found)
