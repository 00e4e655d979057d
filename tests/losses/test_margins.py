"""Margins and heads: members of a family, edges, state, and what a forward pass must leave alone."""

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch import Tensor, nn
from torch.testing import assert_close

from metricid.losses import LOSSES, ArcFace, CombinedMarginSoftmax, ElasticFace
from metricid.losses.heads import MarginHead
from metricid.losses.margins import (
    BinaryMargin,
    arc_margin,
    combined_margin,
    sphere_margin,
)

NAMES = [
    name
    for name in LOSSES.names()
    if getattr(LOSSES.get(name), "kind", None) in ("classification", "margin softmax", "proxy")
]


def build(name: str, classes: int = 7, dim: int = 5, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    loss: nn.Module = LOSSES.build(
        {"loss": name, **options},
        num_classes=classes,
        embedding_dim=dim,
        class_counts=[1 + 3 * c for c in range(classes)],
    )
    return loss


def test_the_members_of_combined() -> None:
    cosine = torch.linspace(-1, 1, 401, dtype=torch.float64)
    assert_close(combined_margin(cosine, 1, 0.5, 0), arc_margin(cosine, 0.5))
    assert_close(combined_margin(cosine, 1, 0, 0.35), cosine - 0.35)
    assert_close(combined_margin(cosine, 4, 0, 0), sphere_margin(cosine, 4), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("m1", "m2"), [(1, 0.5), (1.7, 0.3), (4, 0.0), (3, 2.0)])
def test_the_target_never_rises_with_the_angle(m1: float, m2: float) -> None:
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    assert (combined_margin(theta.cos(), m1, m2, 0.1).diff() <= 1e-9).all()


@pytest.mark.parametrize("head", [ArcFace, CombinedMarginSoftmax])
def test_straight_through_changes_the_gradient_alone(head: type[MarginHead]) -> None:
    torch.manual_seed(0)
    exact, through = head(7, 5), head(7, 5, gradient="straight_through")
    through.load_state_dict(exact.state_dict())
    cosine = torch.tensor([0.6, -0.2], requires_grad=True)
    moved = through.margin.target(cosine, torch.tensor([0, 1]), torch.ones(2))
    assert_close(moved, exact.margin.target(cosine, torch.tensor([0, 1]), torch.ones(2)))
    assert_close(torch.autograd.grad(moved.sum(), cosine)[0], torch.ones(2))


def test_the_first_bias_of_sphereface2_is_the_best() -> None:
    for classes, balance in ((2, 0.9), (10, 0.7), (1000, 0.7)):
        rule = BinaryMargin(classes, 0.4, 40.0, balance=balance, sharpness=3.0).double()
        middle = 2 * 0.5**3 - 1
        logits = torch.full((1, classes), 40 * (middle + 0.4), dtype=torch.float64)
        logits[0, 0] = 40 * (middle - 0.4)
        value = rule.loss(logits, torch.tensor([0]), 0.0)
        slope = torch.autograd.grad(value, rule.bias)[0]
        assert abs(slope.item()) < 1e-6


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("cosface", pml.CosFaceLoss(7, 5, margin=0.35, scale=64)),
        ("normalized_softmax", pml.NormalizedSoftmaxLoss(7, 5, temperature=0.05)),
        ("proxy_anchor", pml.ProxyAnchorLoss(7, 5, margin=0.1, alpha=32)),
    ],
)
def test_equals_pytorch_metric_learning(name: str, peer: nn.Module) -> None:
    loss = build(name).double()
    peer = peer.double()
    with torch.no_grad():
        vectors = peer.proxies if name == "proxy_anchor" else peer.W
        vectors.copy_(loss.weight if name == "proxy_anchor" else loss.weight.T)
    x = torch.randn(16, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randint(7, (16,))
    ours, theirs = loss(x, y), peer(x, y)
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x))


# Circle holds its weights constant: its gradient is not that of its value, and is compared elsewhere.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "circle_softmax"])
def test_gradcheck(name: str) -> None:
    loss = build(name).double().eval()
    x = 8 * torch.randn(4, 5, dtype=torch.float64)
    w = torch.randn_like(loss.weight, requires_grad=True)
    y = torch.tensor([0, 3, 3, 6])
    x.requires_grad_(name != "adaface")  # its quality, too, is held constant
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(loss, {"weight": w}, (x, y)), (x, w)
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["on", "opposite", "identical", "one class", "zero"])
def test_the_edges_are_finite(name: str, case: str) -> None:
    loss = build(name, classes=1 if case == "one class" else 7)
    y = torch.zeros(3, dtype=torch.int64) if case == "one class" else torch.tensor([0, 3, 3])
    with torch.no_grad():
        rows = loss.weight.flatten(1)[:, :5][: loss.weight.shape[0]]
        x = {
            "on": 9 * rows[y],
            "opposite": -9 * rows[y],
            "identical": torch.ones(3, 5),
            "one class": torch.randn(3, 5),
            "zero": torch.zeros(3, 5),
        }[case]
    x.requires_grad_()
    value = loss(x, y)
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in loss.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_pass_changes_nothing(name: str) -> None:
    loss = build(name)
    before = {key: value.clone() for key, value in [*loss.named_parameters(), *loss.named_buffers()]}
    for mode in (True, False):
        loss.train(mode)
        with torch.autocast("cpu", torch.bfloat16):
            loss(torch.randn(6, 5).bfloat16(), torch.randint(7, (6,))).backward()
    for key, value in [*loss.named_parameters(), *loss.named_buffers()]:
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_move_under_autocast_as_in_float32(name: str) -> None:
    """Weights that were cast to bf16 would lose most of their small steps."""
    torch.manual_seed(1)
    data, labels = torch.randn(32, 8), torch.randint(7, (32,))
    moved = []
    for autocast in (False, True):
        loss = build(name)
        torch.manual_seed(2)
        body = nn.Linear(8, 5)
        start = loss.weight.detach().clone()
        optimizer = torch.optim.Adam([*body.parameters(), *loss.parameters()], lr=1e-3)
        for _ in range(100):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value = loss(body(data), labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if getattr(loss, "stateful", False):
                loss.after_step(body(data), labels)  # type: ignore[operator]
        assert loss.weight.dtype == torch.float32
        moved.append((loss.weight.detach() - start).flatten())
    exact, lowered = moved
    assert (lowered != 0).float().mean() >= (exact != 0).float().mean() - 0.01
    assert 0.9 < lowered.norm() / exact.norm() < 1.1
    assert torch.cosine_similarity(exact, lowered, dim=0) > 0.9


def rows(classes: int = 7) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return 20 * torch.randn(9, 5), torch.randint(classes, (9,))


def cosines(loss: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([(loss.weight @ row) / (loss.weight.norm(dim=1) * row.norm()) for row in x]).detach()


def test_curricular_state_follows_the_mean_cosine() -> None:
    loss, (x, y) = build("curricularface", alpha=0.1), rows()
    own = cosines(loss, x)[torch.arange(9), y].mean()
    loss.after_step(x, y)
    loss.after_step(x, y)
    assert_close(loss.margin.t, 0.1 * own + 0.9 * 0.1 * own)


def test_adaface_state_follows_the_lengths() -> None:
    loss, (x, y) = build("adaface", alpha=0.5), rows()
    lengths = x.norm(dim=1).clamp(1e-3, 100)
    loss.after_step(x, y)
    assert_close(loss.margin.mean, 0.5 * 20 + 0.5 * lengths.mean())
    assert_close(loss.margin.std, 0.5 * 100 + 0.5 * lengths.std())


def test_adacos_state_is_the_papers() -> None:
    loss, (x, y) = build("adacos"), rows()
    scale = math.sqrt(2) * math.log(6)
    assert_close(loss.margin.scale.float(), torch.tensor(scale))
    table = cosines(loss, x)
    around = sum(math.exp(scale * table[i, j]) for i in range(9) for j in range(7) if j != y[i]) / 9
    median = sorted(math.acos(table[i, y[i]]) for i in range(9))[4]
    loss.after_step(x, y)
    expected = max(math.log(around) / math.cos(min(math.pi / 4, median)), math.sqrt(2) * math.log(2))
    assert_close(loss.margin.scale.float(), torch.tensor(expected))


def test_sphereface_annealing_falls_and_resumes() -> None:
    loss, (x, y) = build("sphereface", scale=10.0), rows()
    values = []
    for _ in range(3):
        values.append(loss(x, y).item())
        loss.after_step(x, y)
    assert values[0] < values[1] < values[2]  # the margin comes in
    again = build("sphereface", scale=10.0)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again(x, y), loss(x, y))


def test_a_sharded_head_reaches_the_same_value() -> None:
    """Own cosines first, then the classes in two parts: what a head that holds a shard does."""
    for name in ("arcface", "curricularface", "mv_softmax", "circle_softmax", "adaface", "sphereface"):
        loss, (x, y) = build(name), rows()
        table, norms = cosines(loss, x), x.norm(dim=1)
        own = table.gather(1, y[:, None]).squeeze(1)
        moved = loss.margin.target(own, y, norms)
        scale = loss.margin.scale_of(norms)
        total = scale * moved
        for part in (slice(0, 3), slice(3, 7)):
            logits = loss.margin.others(table[:, part], own, moved).clone()
            logits = logits * (scale[:, None] if isinstance(scale, Tensor) else scale)
            held = torch.arange(7)[part] == y[:, None]
            total = torch.logaddexp(total, logits.masked_fill(held, -math.inf).logsumexp(dim=1))
        assert_close((total - scale * moved).mean(), loss(x, y))


def test_elastic_margins_are_drawn_in_training_alone() -> None:
    loss = ElasticFace(7, 5, std=0.1, plus=True)
    cosine = torch.tensor([0.3, 0.9, -0.2, 0.5])
    torch.manual_seed(0)
    drawn = loss.margin.draw(cosine)
    assert drawn.unique().numel() == 4
    assert torch.equal(drawn.argsort(), cosine.argsort(descending=True))  # the farthest has the largest
    assert torch.equal(loss.eval().margin.draw(cosine), torch.full((4,), 0.5))


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_losses_can_be_made(name: str) -> None:
    for key in ("kind", "formula", "use", "source"):
        assert isinstance(getattr(LOSSES.get(name), key), str)


def test_soft_targets_are_checked() -> None:
    loss = build("softmax")
    x, soft = torch.randn(2, 5), torch.softmax(torch.randn(2, 7), 1)
    z = x @ loss.weight.T
    assert_close(loss(x, soft), -(soft * z.log_softmax(1)).sum(1).mean())
    with pytest.raises(ValueError, match="each row must sum to 1"):
        loss(x, 2 * soft)
    with pytest.raises(ValueError, match="targets have 6 columns, this loss has 7 classes"):
        loss(x, soft[:, :6])
    many = build("binary_cross_entropy")
    hot = (torch.rand(2, 7) < 0.5).float()
    logits = x @ many.weight.T + many.bias
    assert_close(many(x, hot), nn.BCEWithLogitsLoss()(logits, hot))


def test_class_weights_are_those_of_pytorch() -> None:
    weights = [1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 0.1]
    loss = build("softmax", class_weights=weights)
    x, y = torch.randn(6, 5), torch.randint(7, (6,))
    assert_close(loss(x, y), nn.CrossEntropyLoss(weight=torch.tensor(weights))(x @ loss.weight.T, y))
    with pytest.raises(ValueError, match="class_weights has shape"):
        build("softmax", class_weights=weights[:3])(x, y)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosface", {"margin": -1.0, "scale": 0.0}, "scale: must be positive.*margin: must be at least 0"),
        ("magface", {"norm_high": 5.0}, "norm_high: must be above norm_low"),
        ("sphereface2", {"balance": 1.0}, "balance"),
        ("mv_softmax", {"t": 0.5}, "t: must be at least 1"),
        ("focal", {"prior": 0.1}, "prior: .* needs form: binary"),
        ("soft_triple", {"centers": 0}, "centers"),
    ],
)
def test_options_out_of_range_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_class_counts_below_one_are_refused() -> None:
    for name in ("class_balanced", "balanced_softmax", "ldam", "dynamic_arcface"):
        with pytest.raises(ValueError, match="class_counts: needs the number"):
            LOSSES.get(name)([3, 0], 4)
