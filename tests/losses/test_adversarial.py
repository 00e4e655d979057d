"""Virtual adversarial and TRADES terms against loops, closed forms and the state they must leave alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses import TradesLoss, VirtualAdversarialLoss
from metricid.losses.adversarial import (
    BatchNorm,
    PixelScale,
    divergence,
    frozen_statistics,
    virtual_perturbation,
)

MEAN, STD = (0.4, 0.5), (0.2, 0.25)


def images(size: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Valid images of two channels, scaled as MEAN and STD say."""
    pixels = torch.rand(size, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    mean, std = (torch.tensor(v, dtype=dtype)[:, None, None] for v in (MEAN, STD))
    return (pixels - mean) / std


def linear_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 4)).double()


def normed_model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
    return nn.Sequential(*layers).double()


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum() / len(p)


def test_divergence_is_its_definition_and_passes_gradcheck() -> None:
    a, b = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(divergence(a, b), kl(a.softmax(1), b.softmax(1)))
    assert torch.autograd.gradcheck(divergence, (a, b))


def test_a_gray_level_and_the_valid_range() -> None:
    level, low, high = PixelScale(MEAN, STD)(images())
    black, white, gray = (
        (
            torch.full((2, 1, 1), v / 255, dtype=torch.float64)
            - torch.tensor(MEAN, dtype=torch.float64)[:, None, None]
        )
        / torch.tensor(STD, dtype=torch.float64)[:, None, None]
        for v in (0, 255, 1)
    )
    for actual, expected in ((low, black), (high, white), (level, gray - black)):
        torch.testing.assert_close(actual, expected)


def trades_oracle(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, loss: TradesLoss) -> Tensor:
    """The authors' procedure in pixels of [0, 1], one image at a time."""
    mean, std = (torch.tensor(v, dtype=x.dtype)[:, None, None] for v in (MEAN, STD))
    pixels = x * std + mean
    found = []
    for one, start in zip(pixels, noise, strict=True):
        with torch.no_grad():
            natural = model(((one - mean) / std)[None]).softmax(1)
        other = (one + 0.001 * start).clamp(0, 1)
        for _ in range(loss.steps):
            other = other.detach().requires_grad_()
            kl(natural, model(((other - mean) / std)[None]).softmax(1)).backward(inputs=[other])
            assert other.grad is not None
            moved = other.detach() + loss.step_size / 255 * other.grad.sign()
            near = torch.min(torch.max(moved, one - loss.epsilon / 255), one + loss.epsilon / 255)
            other = near.clamp(0, 1)
        found.append((other.detach() - mean) / std)
    logits = model(x)
    return F.cross_entropy(logits, y) + loss.beta * kl(
        logits.softmax(1), model(torch.stack(found)).softmax(1)
    )


def test_trades_is_the_authors_procedure() -> None:
    model, x, y = linear_model(), images(), torch.tensor([0, 3, 1])
    loss = TradesLoss(mean=MEAN, std=STD, steps=4)
    torch.manual_seed(5)
    value = loss(model, x, y)
    torch.manual_seed(5)
    expected = trades_oracle(model, x, y, torch.randn_like(x), loss)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    slopes, wanted = (torch.autograd.grad(v, list(model.parameters())) for v in (value, expected))
    torch.testing.assert_close(slopes, wanted, rtol=1e-9, atol=1e-12)
    assert value > F.cross_entropy(model(x), y)


def test_trades_passes_gradcheck_in_the_weights() -> None:
    x, y = images(), torch.tensor([0, 3, 1])
    loss = TradesLoss(mean=MEAN, std=STD, steps=2)

    def of(weight: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same start of each search
        return loss(lambda i: F.linear(i.flatten(1), weight), x, y)

    assert torch.autograd.gradcheck(of, linear_model()[1].weight)  # type: ignore[index]


def test_perturbed_images_stay_near_and_valid() -> None:
    seen: list[Tensor] = []
    inner = linear_model()

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return inner(x)

    x = images()
    TradesLoss(mean=MEAN, std=STD, epsilon=5.0, step_size=2.0, steps=6)(model, x, torch.tensor([0, 1, 2]))
    level, low, high = PixelScale(MEAN, STD)(x)
    change = ((seen[-1] - x) / level).abs()
    assert change.max() <= 5 + 1e-9
    assert (change > 4.9).any()
    assert ((seen[-1] >= low - 1e-12) & (seen[-1] <= high + 1e-12)).all()


def test_virtual_direction_is_the_leading_eigenvector_of_the_hessian() -> None:
    model, x = linear_model(), images(1)
    weight = model[1].weight.detach()  # type: ignore[index]
    level = PixelScale(MEAN, STD)(x)[0]
    jacobian = weight * level.expand(2, 3, 3).flatten()  # of the logits in gray levels
    p = model(x).detach().softmax(1)[0]
    hessian = jacobian.T @ (p.diag() - p[:, None] * p) @ jacobian
    leading = torch.linalg.eigh(hessian).eigenvectors[:, -1]
    found = virtual_perturbation(
        model, x, model(x).detach(), level, xi=0.01, steps=60, start=torch.randn_like(x)
    )
    torch.testing.assert_close(found.square().mean(), torch.ones((), dtype=torch.float64))
    cosine = F.cosine_similarity(found.flatten(), leading, dim=0).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-5)


def test_virtual_loss_is_its_definition() -> None:
    model, x = linear_model(), images()
    loss = VirtualAdversarialLoss(mean=MEAN, std=STD, epsilon=6.0, xi=0.3, steps=2)
    torch.manual_seed(5)
    value = loss(model, x)
    torch.manual_seed(5)
    start = torch.randn_like(x)
    found = []
    for one, d in zip(x, start, strict=True):
        level = 1 / (255 * torch.tensor(STD, dtype=x.dtype)[:, None, None])
        d = d / (d**2).mean().sqrt()
        for _ in range(2):
            d = d.detach().requires_grad_()
            kl(
                model(one[None]).detach().softmax(1), model((one + 0.3 * level * d)[None]).softmax(1)
            ).backward(inputs=[d])
            d = d.grad / (d.grad**2).mean().sqrt()
        found.append(one + 6 * level * d)
    expected = kl(model(x).detach().softmax(1), model(torch.stack(found)).softmax(1))
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    slopes, wanted = (torch.autograd.grad(v, list(model.parameters())) for v in (value, expected))
    torch.testing.assert_close(slopes, wanted, rtol=1e-9, atol=1e-12)
    given = loss(model, x, model(x))
    assert given.isfinite()


def test_virtual_loss_beats_a_random_change_of_the_same_size() -> None:
    model, x = linear_model(), images()
    torch.manual_seed(0)
    worst = VirtualAdversarialLoss(mean=MEAN, std=STD)(model, x)
    level = PixelScale(MEAN, STD)(x)[0]
    for _ in range(20):
        assert worst > divergence(model(x), model(x + 8 * level * torch.randn_like(x)))


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
@pytest.mark.parametrize("kind", ["virtual", "trades"])
def test_the_search_leaves_statistics_modes_and_gradients_alone(kind: str, batch_norm: BatchNorm) -> None:
    model, x, y = normed_model(), images(), torch.tensor([0, 1, 2])
    model[1].eval()  # type: ignore[index]  # a layer that was frozen stays so
    model[0].register_forward_hook(lambda *_: passes.append(model.training))  # type: ignore[index]
    before = copy.deepcopy(model.state_dict())
    modes = [part.training for part in model.modules()]
    passes: list[bool] = []
    if kind == "virtual":
        value = VirtualAdversarialLoss(mean=MEAN, std=STD, batch_norm=batch_norm)(model, x)
    else:
        value = TradesLoss(mean=MEAN, std=STD, batch_norm=batch_norm, steps=3)(model, x, y)
    assert all(p.grad is None for p in model.parameters())
    assert [part.training for part in model.modules()] == modes
    assert passes[0] == (batch_norm == "batch")
    value.backward()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_only_the_passes_that_count_move_running_statistics() -> None:
    x, y = images(), torch.tensor([0, 1, 2])
    for count_adversarial, passes in ((True, 2), (False, 1)):
        model = normed_model()
        TradesLoss(mean=MEAN, std=STD, steps=3, count_adversarial=count_adversarial)(model, x, y)
        assert model[1].num_batches_tracked == passes  # type: ignore[index]
    model = normed_model()
    plain = copy.deepcopy(model)
    TradesLoss(mean=MEAN, std=STD, steps=3, count_adversarial=False, batch_norm="batch")(model, x, y)
    plain(x)
    torch.testing.assert_close(model[1].running_mean, plain[1].running_mean)  # type: ignore[index]
    model = normed_model()
    VirtualAdversarialLoss(mean=MEAN, std=STD)(model, x)
    assert model[1].num_batches_tracked == 0  # type: ignore[index]
    assert model[1].track_running_stats  # type: ignore[index]


def test_statistics_come_back_after_an_error() -> None:
    model = normed_model()
    with pytest.raises(RuntimeError, match="stop"), frozen_statistics(model, "batch"):
        raise RuntimeError("stop")
    assert model.training and model[1].track_running_stats  # type: ignore[index]


@pytest.mark.parametrize("kind", ["virtual", "trades"])
def test_finite_under_autocast_and_for_a_model_that_is_constant(kind: str) -> None:
    x, y = images(dtype=torch.float32), torch.tensor([0, 1, 2])
    virtual = kind == "virtual"
    loss = VirtualAdversarialLoss(mean=MEAN, std=STD) if virtual else TradesLoss(mean=MEAN, std=STD, steps=2)
    model = normed_model().float()
    values = []
    for enabled in (False, True):
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = loss(model, x) if virtual else loss(model, x, y)
        assert value.dtype == torch.float32
        value.backward()
        values.append(value.item())
    assert values[1] == pytest.approx(values[0], rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    constant = linear_model().float()
    nn.init.zeros_(constant[1].weight)  # type: ignore[index]
    value = loss(constant, x) if virtual else loss(constant, x, y)
    value.backward()
    assert value.isfinite()
    assert constant[1].weight.grad.isfinite().all()  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: must be at least 1"),
        ({"epsilon": -1.0}, "epsilon: must be at least 0"),
        ({"batch_norm": "eval"}, "batch_norm: must be"),
        ({"std": (0.1, 0.0, 0.1)}, "std: must be as many positive"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    for loss in (TradesLoss, VirtualAdversarialLoss):
        with pytest.raises(ValueError, match=message):
            loss(**options)


def test_images_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be a float tensor \[B, 3, H, W\]"):
        VirtualAdversarialLoss()(linear_model(), images())
