"""What the door of a loss lets in, on the host and (by fake tensors) on a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from metricid.losses import LOSSES, ArcFace, CenterLoss, ContrastiveLoss, SoftmaxCrossEntropy, TripletLoss
from metricid.losses.checks import check_batch

HEADS = [SoftmaxCrossEntropy(5, 4), ArcFace(5, 4), CenterLoss(5, 4), CenterLoss(5, 4, update="alpha")]
ALL = [*HEADS, TripletLoss(), ContrastiveLoss()]


@pytest.mark.parametrize("loss", HEADS)
@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_label_out_of_range_is_named(loss: torch.nn.Module, label: int) -> None:
    with pytest.raises(ValueError, match=rf"label {label} \(row 1 of the batch\) is outside \[0, 5\)"):
        loss(torch.randn(3, 4), torch.tensor([0, label, 4]))


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(3, 4), torch.tensor([0, 1]), "3 embeddings came with 2 labels"),
        (torch.randn(3, 4), torch.tensor([0.0, 1.0, 2.0]), "int64 tensor"),
        (
            torch.randn(3, 4),
            torch.tensor([0, 1, 2], dtype=torch.int32),
            r"int64 tensor \[B\], got int32 \[3\]",
        ),
        (torch.randn(3, 4), torch.tensor([[0], [1], [2]]), "int64 tensor"),
        (torch.randn(3, 4, 1), torch.tensor([0, 1, 2]), r"float tensor \[B, D\], got float32 \[3, 4, 1\]"),
        (torch.ones(3, 4, dtype=torch.int64), torch.tensor([0, 1, 2]), "float tensor"),
        (torch.randn(0, 4), torch.tensor([], dtype=torch.int64), "batch is empty"),
        (torch.randn(3, 4), torch.zeros(3, dtype=torch.int64, device="meta"), "labels on meta"),
    ],
)
def test_wrong_batches_are_refused(loss: torch.nn.Module, x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(x, y)


@pytest.mark.parametrize("loss", HEADS)
def test_a_wrong_width_is_refused(loss: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="embeddings have 3 dimensions, this loss expects 4"):
        loss(torch.randn(2, 3), torch.tensor([0, 1]))


def test_the_largest_label_is_let_in() -> None:
    check_batch(torch.randn(2, 3), torch.tensor([0, 4]), num_classes=5)


@pytest.mark.parametrize("loss", ALL)
def test_a_batch_of_one_works(loss: torch.nn.Module) -> None:
    x = torch.randn(1, 4, requires_grad=True)
    loss(x, torch.tensor([2])).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in LOSSES.names()),
        ("triplet", {"miner": "batch_all"}),
        ("triplet", {"miner": "semi_hard"}),
        ("arcface", {"sub_centers": 3}),
        ("center", {"update": "alpha"}),
    ],
)
def test_on_a_gpu_nothing_is_read_back_to_the_host(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake CUDA tensors have no values: whatever would make the host wait for one raises."""
    if not torch.cuda.is_available():  # autograd's engine, which some call for their slopes, wants a device
        monkeypatch.setattr(torch.autograd, "grad", lambda y, x, _: [torch.zeros_like(leaf) for leaf in x])
    with FakeTensorMode(), torch.device("cuda"):
        loss = LOSSES.build(
            {"loss": name, **options}, num_classes=10, embedding_dim=16, class_counts=[3] * 10
        )
        x = torch.randn(8, 16, requires_grad=True)
        labels = torch.randint(0, 10, (8,))
        value = loss(x, labels)
        assert value.device.type == "cuda"
        assert value.requires_grad
        if options == {"update": "alpha"}:
            loss.update_centers(x.detach(), labels)
        elif getattr(loss, "stateful", False):
            loss.after_step(x.detach(), labels)


def test_the_assertion_on_the_device_looks_at_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch for devices, run on the host: there the assertion is immediate."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check_batch(torch.randn(2, 3), torch.tensor([0, 4]), num_classes=5)
    for label in (-1, 5):
        with pytest.raises(RuntimeError, match=r"a label is outside \[0, 5\)"):
            check_batch(torch.randn(2, 3), torch.tensor([0, label]), num_classes=5)


def test_pairwise_says_which_losses_compare_samples() -> None:
    pairwise = {name for name in LOSSES.names() if LOSSES.get(name).pairwise}  # type: ignore[attr-defined]
    by_kind = {name for name in LOSSES.names() if LOSSES.get(name).kind in ("pair", "tuple", "ranking")}  # type: ignore[attr-defined]
    assert {"triplet", "contrastive", "supcon", "circle", "smooth_ap"} <= by_kind
    assert pairwise == by_kind | {"proxy_anchor", "zero_mean", "uniformity", "koleo"}
