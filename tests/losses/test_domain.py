"""The domain branch: its gradients against the two players' own, and its schedule."""

import math

import pytest
import torch
import torch.nn.functional as F

from metricid.losses import DomainAdversarialLoss, GanDiscriminatorLoss, GanGeneratorLoss
from metricid.losses.domain import DomainForm, reversal_strength, reverse_gradient


def test_reversal_changes_the_gradient_alone() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    y = reverse_gradient(x, 0.3)
    assert torch.equal(x, y)
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(slope, -0.3 * 2 * x.detach())


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 1.0])
def test_the_strength_is_the_papers(progress: float) -> None:
    expected = 2 / (1 + math.exp(-10 * progress)) - 1
    assert reversal_strength(progress) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("form", ["softmax", "minimax", "hinge"])
def test_the_network_descends_and_the_embedder_ascends(form: DomainForm) -> None:
    torch.manual_seed(0)
    loss = DomainAdversarialLoss(3, 5, hidden=(7,), form=form).double()
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    domains = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    parameters = list(loss.network.parameters())
    reversed_slopes = torch.autograd.grad(loss(x, domains, progress=0.2), [x, *parameters])

    hidden = F.relu(F.linear(x, parameters[0], parameters[1]))
    logits = F.linear(hidden, parameters[2], parameters[3])
    if form == "softmax":
        plain = F.cross_entropy(logits, domains)
    else:
        parts = []
        for d in range(3):
            real, fake = logits[domains == d, d], logits[domains != d, d]
            parts.append(GanDiscriminatorLoss(form=form)(real, fake))
        plain = torch.stack(parts).mean()
    slopes = torch.autograd.grad(plain, [x, *parameters])
    torch.testing.assert_close(reversed_slopes[0], -math.tanh(1.0) * slopes[0])
    torch.testing.assert_close(reversed_slopes[1:], slopes[1:])


def test_embeddings_trained_against_the_branch_forget_the_domain() -> None:
    """A linear map whose input tells the domain in one column learns to drop that column."""
    torch.manual_seed(0)
    domains = torch.arange(64) % 2
    x = torch.randn(64, 4)
    x[:, 0] = 2.0 * domains - 1 + 0.1 * torch.randn(64)
    target = x[:, 1:2]
    lost = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(1)
        embedder, head = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 1)
        torch.nn.init.eye_(embedder.weight)
        branch = DomainAdversarialLoss(2, 2, hidden=(16,))
        modules = torch.nn.ModuleList([embedder, head, branch])
        optimizer = torch.optim.SGD(modules.parameters(), lr=0.1)
        for step in range(200):
            optimizer.zero_grad()
            z = embedder(x)
            loss = F.mse_loss(head(z), target) + weight * branch(z, domains, step / 200)
            loss.backward()
            optimizer.step()
        z = embedder(x).detach()
        gap = (z[domains == 0].mean(0) - z[domains == 1].mean(0)).norm() / z.std()
        lost[weight] = float(gap)
    assert lost[0.0] > 1.5
    assert lost[1.0] < 0.3


@pytest.mark.parametrize("form", ["softmax", "minimax", "hinge"])
def test_one_domain_in_the_batch_is_finite(form: DomainForm) -> None:
    loss = DomainAdversarialLoss(2, 4, hidden=(), form=form)
    x = torch.zeros(3, 4, requires_grad=True)
    loss(x, torch.tensor([1, 1, 1])).backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("form", ["minimax", "hinge"])
def test_gan_terms_are_finite_at_extremes_and_without_entries(form: str) -> None:
    logits = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    none = torch.zeros(0, requires_grad=True)
    for value in (
        GanDiscriminatorLoss(form=form)(logits, logits),
        GanDiscriminatorLoss(form=form)(none, logits),
        GanGeneratorLoss(form=form)(logits),
    ):
        (slope,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and slope.isfinite().all()
    empty = GanGeneratorLoss(form=form)(none)
    assert empty == 0 and empty.requires_grad


def test_the_branch_stays_float32_under_autocast() -> None:
    loss = DomainAdversarialLoss(2, 4, hidden=(8,))
    x, domains = torch.randn(6, 4).bfloat16(), torch.arange(6) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, domains)
    torch.testing.assert_close(value, loss(x.float(), domains))
    assert {p.dtype for p in loss.parameters()} == {torch.float32}


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label 2 .* is outside \[0, 2\)"):
        DomainAdversarialLoss(2, 4)(torch.randn(1, 4), torch.tensor([2]))
    with pytest.raises(ValueError, match="embeddings have 3 dimensions"):
        DomainAdversarialLoss(2, 4)(torch.randn(1, 3), torch.tensor([0]))
    for options, name in (
        ({"num_domains": 1}, "num_domains"),
        ({"gamma": 0.0}, "gamma"),
        ({"form": "x"}, "form"),
    ):
        with pytest.raises(ValueError, match=f"{name}: must be"):
            DomainAdversarialLoss(**{"num_domains": 2, "embedding_dim": 4, **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form: must be"):
        GanGeneratorLoss(form="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form: must be"):
        GanDiscriminatorLoss(form="softmax")  # type: ignore[arg-type]
