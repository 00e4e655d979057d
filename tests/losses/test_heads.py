"""Softmax and ArcFace against closed forms and pytorch-metric-learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from metricid.losses import ArcFace, SoftmaxCrossEntropy
from metricid.losses.functional import arc_margin, arcface_loss, softmax_loss, with_target


def make(batch: int, classes: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(classes, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    return x, torch.randint(classes, (batch,), generator=generator), w


def arcface_by_angles(x: Tensor, y: Tensor, w: Tensor, margin: float, scale: float) -> Tensor:
    """The paper's formula, sample by sample, with the angle itself."""
    total = x.new_zeros(())
    for row, label in zip(x, y, strict=True):
        cosines = (w @ row) / (w.norm(dim=1) * row.norm())
        theta = torch.acos(cosines[label])
        if theta + margin <= math.pi:
            target = torch.cos(theta + margin)
        else:
            target = cosines[label] - margin * math.sin(margin)
        others = torch.cat([cosines[:label], cosines[label + 1 :]])
        total = total - scale * target + torch.logsumexp(scale * torch.cat([target[None], others]), 0)
    return total / len(y)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_equals_its_definition(smoothing: float) -> None:
    x, y, w = make(6, 5, 4)
    bias = torch.randn(5, dtype=torch.float64)
    target = (1 - smoothing) * F.one_hot(y, 5) + smoothing / 5
    logits = x @ w.T + bias
    expected = -(target * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()
    actual = softmax_loss(x, y, w, bias, label_smoothing=smoothing)
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, (x, w)), torch.autograd.grad(expected, (x, w)))


def test_softmax_module_is_a_linear_layer_and_cross_entropy() -> None:
    head = SoftmaxCrossEntropy(7, 3, label_smoothing=0.2, bias=True)
    layer = nn.Linear(3, 7)
    layer.load_state_dict(head.state_dict())
    x, y = torch.randn(5, 3), torch.randint(7, (5,))
    assert_close(head(x, y), nn.CrossEntropyLoss(label_smoothing=0.2)(layer(x), y))
    assert SoftmaxCrossEntropy(7, 3).bias is None


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 1.2])
def test_arcface_equals_the_paper(margin: float) -> None:
    x, y, w = make(8, 5, 3)
    with torch.no_grad():
        x[0] = -w[y[0]] + 0.01 * x[0]  # an angle near pi: beyond the guard for every margin
    actual = arcface_loss(x, y, w, margin=margin, scale=16.0)
    expected = arcface_by_angles(x, y, w, margin, 16.0)
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, (x, w)), torch.autograd.grad(expected, (x, w)))


@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_arcface_equals_pytorch_metric_learning(margin: float) -> None:
    x, y, w = make(16, 6, 4, seed=3)
    peer = pml.ArcFaceLoss(6, 4, margin=math.degrees(margin), scale=64).double()
    peer.W.data.copy_(w.detach().T)
    expected = peer(x, y)
    actual = arcface_loss(x, y, w, margin=margin)
    assert_close(actual, expected)
    grad_x, grad_w = torch.autograd.grad(actual, (x, w))
    peer_x, peer_w = torch.autograd.grad(expected, (x, peer.W))
    assert_close((grad_x, grad_w), (peer_x, peer_w.T))


def test_sub_centers_equal_pytorch_metric_learning() -> None:
    x, y, _ = make(16, 6, 4, seed=4)
    head = ArcFace(6, 4, margin=0.4, scale=30.0, sub_centers=3).double()
    peer = pml.SubCenterArcFaceLoss(
        num_classes=6, embedding_size=4, margin=math.degrees(0.4), scale=30, sub_centers=3
    ).double()
    peer.W.data.copy_(head.weight.detach().T)
    actual, expected = head(x, y), peer(x, y)
    assert_close(actual, expected)
    grad_x, grad_w = torch.autograd.grad(actual, (x, head.weight))
    peer_x, peer_w = torch.autograd.grad(expected, (x, peer.W))
    assert_close((grad_x, grad_w), (peer_x, peer_w.T))


def test_arc_margin_gradient_is_exact_not_straight_through() -> None:
    cosine = torch.tensor([0.6], requires_grad=True)
    value = 64 * arc_margin(cosine, 0.5)
    value.sum().backward()
    assert value.item() == pytest.approx(9.1526, abs=1e-4)
    assert cosine.grad is not None
    assert cosine.grad.item() == pytest.approx(79.18, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arc_margin_has_no_bias_right_up_to_the_edges(dtype: torch.dtype) -> None:
    near_one = 1 - torch.finfo(dtype).eps * torch.tensor([0.5, 1, 2, 10, 1e3, 1e5], dtype=torch.float64)
    middle = torch.linspace(-0.87, 0.999, 100, dtype=torch.float64)
    cosine = torch.cat([middle, near_one]).to(dtype).requires_grad_()
    value = arc_margin(cosine, 0.5)
    value.sum().backward()
    for c, v, g in zip(cosine.tolist(), value.tolist(), cosine.grad.tolist(), strict=True):  # type: ignore[union-attr]
        sine = math.sqrt((1 - c) * (1 + c))
        theta = math.atan2(sine, c)
        assert v == pytest.approx(math.cos(theta + 0.5), abs=4 * torch.finfo(dtype).eps)
        assert g == pytest.approx(math.sin(theta + 0.5) / sine, rel=32 * torch.finfo(dtype).eps)


def test_arc_margin_beyond_pi_falls_linearly() -> None:
    cosine = torch.linspace(-1, -math.cos(0.5) - 1e-3, 20, dtype=torch.float64, requires_grad=True)
    value = arc_margin(cosine, 0.5)
    assert_close(value, cosine - 0.5 * math.sin(0.5))
    assert (torch.autograd.grad(value.sum(), cosine)[0] == 1).all()


def test_easy_margin_leaves_obtuse_angles_alone() -> None:
    cosine = torch.tensor([-0.99, -0.3, 0.3, 0.9], dtype=torch.float64)
    expected = torch.tensor([-0.99, -0.3, math.cos(math.acos(0.3) + 0.5), math.cos(math.acos(0.9) + 0.5)])
    assert_close(arc_margin(cosine, 0.5, easy_margin=True), expected.double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_loss_and_gradients_are_finite_on_and_opposite_the_class_center(
    dtype: torch.dtype, sign: int
) -> None:
    torch.manual_seed(1)
    for trial in range(50):  # rounding puts the cosine on either side of +-1
        weight = torch.randn(4, 37).to(dtype)
        x = (sign * weight[[0, 1, 2]] * (trial + 1) / 7).requires_grad_()
        w = weight.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        loss = arcface_loss(x, torch.tensor([0, 1, 2]), w)
        loss.backward()
        assert loss.isfinite()
        assert x.grad is not None
        assert w.grad is not None
        assert x.grad.isfinite().all()
        assert w.grad.isfinite().all()
        assert x.grad.float().norm(dim=1).max() < 64 * 2 / x.detach().float().norm(dim=1).min()


def test_gradcheck() -> None:
    x, y, w = make(5, 4, 3)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b: softmax_loss(x, y, w, b, label_smoothing=0.1), (x, w, bias)
    )
    assert torch.autograd.gradcheck(
        lambda x, w: arcface_loss(x, y, w, scale=8.0, label_smoothing=0.1), (x, w)
    )
    w6 = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: arcface_loss(x, y, w, scale=8.0, sub_centers=3), (x, w6))


def test_with_target_passes_gradients_through_any_change() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    shift = torch.randn(4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([4, 0, 2, 2])
    a.requires_grad_()
    changed = with_target(a @ b, y, lambda z: z.square() * shift)
    mask = F.one_hot(y, 5).bool()
    plain = a @ b
    expected = torch.where(mask, plain.square() * shift[:, None], plain)
    assert_close(changed, expected)
    weights = torch.randn(4, 5, dtype=torch.float64)
    assert_close(
        torch.autograd.grad((changed * weights).sum(), (a, shift)),
        torch.autograd.grad((expected * weights).sum(), (a, shift)),
    )


class CountNew(TorchDispatchMode):
    """Counts the tensors of one size that operations make."""

    def __init__(self, numel: int):
        super().__init__()
        self.numel = numel
        self.seen: set[int] = set()
        self.keep: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, Tensor) and t.numel() == self.numel:
                if t.untyped_storage().data_ptr() not in self.seen:
                    self.keep.append(t)  # alive, so that no address comes twice
                self.seen.add(t.untyped_storage().data_ptr())
        return result


def test_arcface_needs_one_class_sized_buffer_more_than_a_normalised_softmax() -> None:
    batch, classes, dim = 11, 13, 5
    x, y = torch.randn(batch, dim, requires_grad=True), torch.randint(classes, (batch,))
    w = torch.randn(classes, dim, requires_grad=True)
    with CountNew(batch * classes) as plain:
        F.cross_entropy(F.linear(F.normalize(x) * 64, F.normalize(w)), y).backward()
    with CountNew(batch * classes) as arc:
        arcface_loss(x, y, w).backward()
    assert len(plain.seen) > 0
    assert len(arc.seen) <= len(plain.seen) + 1


@pytest.mark.parametrize("head", [SoftmaxCrossEntropy, ArcFace])
def test_autocast_changes_neither_the_weights_nor_the_precision(head: type[nn.Module]) -> None:
    torch.manual_seed(0)
    loss = head(50, 16)
    x, y = torch.randn(8, 16), torch.randint(50, (8,))
    exact = loss(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)
    assert all(p.dtype == torch.float32 for p in loss.parameters())


@pytest.mark.parametrize("head", [SoftmaxCrossEntropy, ArcFace])
def test_weights_move_under_autocast(head: type[nn.Module]) -> None:
    """A head that were cast to bf16 would lose most of its small steps."""
    torch.manual_seed(0)
    body, loss = nn.Linear(8, 16), head(20, 16)
    nn.init.normal_(loss.weight)
    start = loss.weight.detach().clone()
    optimizer = torch.optim.Adam([*body.parameters(), *loss.parameters()], lr=1e-3)
    data, labels = torch.randn(64, 8), torch.randint(20, (64,))
    for _ in range(100):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(body(data), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert loss.weight.dtype == torch.float32
    moved = loss.weight.detach() != start
    assert moved.float().mean() > 0.999
    assert (loss.weight.detach() - start).abs().mean() > 0.01


def test_training_by_arcface_separates_the_classes() -> None:
    torch.manual_seed(0)
    centers = torch.randn(5, 8)
    labels = torch.arange(100) % 5
    data = centers[labels] + 0.1 * torch.randn(100, 8)
    body, loss = nn.Linear(8, 8), ArcFace(5, 8, scale=16.0)
    optimizer = torch.optim.Adam([*body.parameters(), *loss.parameters()], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss(body(data), labels).backward()
        optimizer.step()
    z = F.normalize(body(data).detach())
    same = labels[:, None] == labels[None]
    assert (z @ z.T)[same].min() > (z @ z.T)[~same].max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 3.5}, "margin: must lie in"),
        ({"margin": -0.1}, "margin"),
        ({"margin": math.nan}, "margin"),
        ({"scale": 0.0}, "scale: must be positive"),
        ({"sub_centers": 0}, "sub_centers"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArcFace(3, 4, **options)


def test_functional_refuses_a_weight_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="not a multiple of sub_centers=3"):
        arcface_loss(torch.randn(2, 4), torch.tensor([0, 1]), torch.randn(5, 4), sub_centers=3)
