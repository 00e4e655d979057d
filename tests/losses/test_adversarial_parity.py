"""Losses with an adversary against loops over single images, at small, usual and large batches."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metricid.losses import DomainAdversarialLoss, TradesLoss, VirtualAdversarialLoss
from metricid.losses.domain import DomainForm

SIZES = (8, 64, 512)
EXACT = ((torch.float64, 1e-9), (torch.float32, 1e-5))
MEAN, STD = (0.4, 0.5), (0.2, 0.25)
CLASSES = 4
SPARE = 6  # candidates for each image, see `clear_images`

# Probes long enough for float32, whose differences are rounded, and changes large enough for bfloat16.
TRADES = TradesLoss(mean=MEAN, std=STD, beta=3.0, epsilon=40.0, step_size=15.0, steps=3)
VIRTUAL = VirtualAdversarialLoss(mean=MEAN, std=STD, epsilon=40.0, xi=40.0, steps=2)


def network() -> nn.Sequential:
    """Two layers whose slopes are short to write down."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(18, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    for layer in (layers[1], layers[3]):
        nn.init.normal_(layer.weight, std=0.2)
    return layers.float().double()  # numbers that float32 has, too


def per_pixel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(9)


class Oracle:
    """The network for one image [18] in float64, with its slopes by the chain rule."""

    def __init__(self, model: nn.Sequential):
        self.w, self.b, self.v, self.c = (p.detach() for p in model.parameters())

    def logits(self, x: Tensor) -> Tensor:
        return self.v @ torch.tanh(self.w @ x + self.b) + self.c

    def slope(self, clean: Tensor, x: Tensor) -> Tensor:
        """Of KL(softmax(clean) || softmax(logits(x))) in x, whose slope in the logits is q - p."""
        hidden = torch.tanh(self.w @ x + self.b)
        off = (self.v @ hidden + self.c).softmax(0) - clean.softmax(0)
        return self.w.T @ ((1 - hidden**2) * (self.v.T @ off))

    def trades_image(self, x: Tensor, noise: Tensor) -> tuple[Tensor, float]:
        """The worst image near x, and how near to zero a slope came on the way, relative to the largest."""
        mean, std = per_pixel(MEAN), per_pixel(STD)
        pixel, clean, clear = 255 * (x * std + mean), self.logits(x), 1.0
        other = (pixel + 0.255 * noise).clamp(0, 255)
        for _ in range(TRADES.steps):
            slope = self.slope(clean, (other / 255 - mean) / std)
            clear = min(clear, float(slope.abs().min() / slope.abs().max()))
            other = other + TRADES.step_size * slope.sign()
            other = other.clamp(pixel - TRADES.epsilon, pixel + TRADES.epsilon).clamp(0, 255)
        return (other / 255 - mean) / std, clear

    def virtual_image(self, x: Tensor, start: Tensor) -> Tensor:
        """x moved in the direction that the power iteration finds."""
        level = 1 / (255 * per_pixel(STD))
        clean, direction = self.logits(x), start
        for _ in range(VIRTUAL.steps):
            direction = direction * math.sqrt(len(x)) / direction.norm()
            direction = self.slope(clean, x + VIRTUAL.xi * level * direction) * level
        return x + VIRTUAL.epsilon * level * direction * math.sqrt(len(x)) / direction.norm()


def noise_of(size: int, dtype: torch.dtype) -> Tensor:
    """What a loss draws for its search under seed 5."""
    torch.manual_seed(5)
    return torch.randn(size, 2, 3, 3, dtype=dtype).double().flatten(1)


def clear_images(size: int, noise: Tensor, oracle: Oracle) -> Tensor:
    """Images that float32 has, none with a slope so near to zero that rounding would decide its sign."""
    pixels = torch.rand(SPARE, size, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = ((pixels - per_pixel(MEAN)) / per_pixel(STD)).float().double()
    chosen = []
    for place in range(size):
        found = (x for x in drawn[:, place] if oracle.trades_image(x, noise[place])[1] > 1e-3)
        chosen.append(next(found))
    return torch.stack(chosen)


def plain_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum() / len(p)


Case = tuple[
    Callable[[nn.Module, Tensor, Tensor], Tensor], Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
]


def trades_by_hand(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    oracle = Oracle(model)  # type: ignore[arg-type]
    worst = torch.stack([oracle.trades_image(one, n)[0] for one, n in zip(x.detach(), noise, strict=True)])
    p, q = model(x).softmax(1), model(worst).softmax(1)
    return -p[torch.arange(len(y)), y].log().mean() + TRADES.beta * plain_kl(p, q)


def virtual_by_hand(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    oracle = Oracle(model)  # type: ignore[arg-type]
    moved = torch.stack([oracle.virtual_image(one, n) for one, n in zip(x.detach(), noise, strict=True)])
    return plain_kl(model(x).detach().softmax(1), model(moved).softmax(1))


CASES: dict[str, Case] = {
    "trades": (TRADES, trades_by_hand),
    "virtual_adversarial": (lambda model, x, _: VIRTUAL(model, x, model(x)), virtual_by_hand),
}


def apart(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((actual.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_those_of_a_loop_over_the_images(name: str, size: int) -> None:
    loss, by_hand = CASES[name]
    y = torch.arange(size) % CLASSES
    for dtype, tolerance in EXACT:
        wide, noise = network(), noise_of(size, dtype)
        x = clear_images(size, noise, Oracle(wide)).requires_grad_()
        expected = by_hand(wide, x, y, noise)
        model = network().to(dtype)
        images = x.detach().to(dtype).reshape(size, 2, 3, 3).requires_grad_()
        torch.manual_seed(5)
        value = loss(model, images, y)
        assert value.dtype == dtype
        assert apart(value.detach(), expected.detach()) < tolerance
        slopes = torch.autograd.grad(value, [*model.parameters(), images], allow_unused=True)
        wanted = torch.autograd.grad(expected, [*wide.parameters(), x], allow_unused=True)
        for slope, want in zip(slopes[:-1], wanted[:-1], strict=True):
            assert want is not None and want.any()
            assert apart(slope, want) < tolerance
        # The term of the labels reaches the images; the virtual loss holds them fixed, as its authors do.
        assert (slopes[-1] is None) == (wanted[-1] is None) == (name == "virtual_adversarial")
        if wanted[-1] is not None:
            assert apart(slopes[-1].flatten(1), wanted[-1]) < tolerance


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_under_bfloat16_autocast_within_two_percent(name: str, size: int) -> None:
    loss, by_hand = CASES[name]
    y, noise = torch.arange(size) % CLASSES, noise_of(size, torch.float32)
    wide, model = network(), network().float()
    x = clear_images(size, noise, Oracle(wide))
    images = x.float().reshape(size, 2, 3, 3).requires_grad_()
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(model, images, y)
    assert value.dtype == torch.float32
    assert apart(value.detach(), by_hand(wide, x, y, noise).detach()) < 0.02
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (images.grad is None) == (name == "virtual_adversarial")
    assert images.grad is None or images.grad.isfinite().all()


def branch(form: DomainForm, dtype: torch.dtype) -> DomainAdversarialLoss:
    torch.manual_seed(0)
    loss = DomainAdversarialLoss(3, 6, hidden=(7,), form=form)
    with torch.no_grad():
        for p in loss.parameters():
            p.mul_(4)  # so that some samples are beyond the margin of the hinge
    return loss.to(dtype)


def branch_by_hand(form: DomainForm, loss: DomainAdversarialLoss, x: Tensor, domains: Tensor) -> Tensor:
    """One sample and one domain after the other, without the reversal."""
    w, b, v, c = loss.network.parameters()
    logits = [v @ (w @ one + b).clamp_min(0) + c for one in x]
    if form == "softmax":
        return sum(z.logsumexp(0) - z[d] for z, d in zip(logits, domains, strict=True)) / len(x)

    def wrong(score: Tensor) -> Tensor:
        return (1 - score).clamp_min(0) if form == "hinge" else torch.log1p(torch.exp(-score))

    terms = []
    for domain in range(3):
        real = [wrong(z[domain]) for z, d in zip(logits, domains, strict=True) if d == domain]
        fake = [wrong(-z[domain]) for z, d in zip(logits, domains, strict=True) if d != domain]
        terms.append(sum(real) / len(real) + sum(fake) / len(fake))
    return sum(terms) / 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["softmax", "minimax", "hinge"])
def test_the_domain_branch_is_that_of_a_loop_over_the_samples(form: DomainForm, size: int) -> None:
    domains = torch.arange(size) % 3
    rows = torch.randn(size, 6, generator=torch.Generator().manual_seed(1))
    wide, x = branch(form, torch.float64), rows.double().requires_grad_()
    plain = branch_by_hand(form, wide, x, domains)
    assert isinstance(plain, Tensor)
    wanted = torch.autograd.grad(plain, [x, *wide.network.parameters()])
    strength = 2 / (1 + math.exp(-10 * 0.2)) - 1
    for dtype, tolerance in EXACT:
        loss, embeddings = branch(form, dtype), rows.to(dtype, copy=True).requires_grad_()
        value = loss(embeddings, domains, progress=0.2)
        assert apart(value.detach(), plain.detach()) < tolerance
        slopes = torch.autograd.grad(value, [embeddings, *loss.network.parameters()])
        assert apart(slopes[0], -strength * wanted[0]) < tolerance
        assert all(apart(s, w) < tolerance for s, w in zip(slopes[1:], wanted[1:], strict=True))
    loss, embeddings = branch(form, torch.float32), rows.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings, domains, progress=0.2)
    assert apart(value.detach(), plain.detach()) < 0.02
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [embeddings, *loss.parameters()])
