"""Distances, triplet and contrastive loss against brute force and pytorch-metric-learning."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning import reducers as pml_reducers
from torch import Tensor
from torch.testing import assert_close

from metricid.losses import ContrastiveLoss, TripletLoss
from metricid.losses.functional import contrastive_loss, pairwise_distances, triplet_loss

MINERS = ["batch_hard", "batch_all", "semi_hard"]


def make(labels: list[int], dim: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64, requires_grad=True)
    return x, torch.tensor(labels)


def triplets_by_loop(
    x: Tensor, y: Tensor, miner: str, margin: float | None, squared: bool
) -> list[tuple[Tensor, Tensor]]:
    """(d_ap, d_an) of every triplet that the miner should find."""

    def d(i: int, j: int) -> Tensor:
        square = ((x[i] - x[j]) ** 2).sum()
        return square if squared else square.sqrt()

    found = []
    every = range(len(y))
    for a in every:
        near = [d(a, p) for p in every if p != a and y[p] == y[a]]
        far = [d(a, n) for n in every if y[n] != y[a]]
        if not near or not far:
            continue
        if miner == "batch_hard":
            found.append((max(near), min(far)))
        elif miner == "batch_all":
            found += list(itertools.product(near, far))
        else:
            for p in near:
                fitting = [n for n in far if n > p and (margin is None or n < p + margin)]
                found += [(p, min(fitting))] if fitting else []
    return found


def triplet_by_loop(
    x: Tensor, y: Tensor, *, margin: float | None, miner: str, normalize: bool, squared: bool, reduction: str
) -> Tensor:
    if normalize:
        x = x / x.norm(dim=1, keepdim=True)
    losses = []
    for near, far in triplets_by_loop(x, y, miner, margin, squared):
        gap = near - far
        losses.append(torch.log1p(gap.exp()) if margin is None else torch.clamp(gap + margin, min=0))
    counted = [v for v in losses if v > 0] if reduction == "mean_nonzero" else losses
    return sum(losses, x.sum() * 0) / max(len(counted), 1)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("margin", [0.3, 2.0, None])
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_triplet_equals_brute_force(
    miner: Any, margin: float | None, reduction: Any, normalize: bool, squared: bool
) -> None:
    x, y = make([0, 1, 0, 2, 2, 1, 0, 3, 2])
    options = {"margin": margin, "normalize": normalize, "squared": squared, "reduction": reduction}
    expected = triplet_by_loop(x, y, miner=miner, **options)  # type: ignore[arg-type]
    actual = TripletLoss(miner=miner, **options)(x, y)  # type: ignore[arg-type]
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, x), torch.autograd.grad(expected, x))
    assert expected > 0


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=7),
    st.sampled_from(MINERS),
    st.sampled_from([0.5, None]),
    st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_triplet_equals_brute_force_for_any_labels(
    labels: list[int], miner: Any, margin: float | None, seed: int
) -> None:
    x, y = make(labels, seed=seed)
    options = {"margin": margin, "normalize": False, "squared": False, "reduction": "mean"}
    expected = triplet_by_loop(x, y, miner=miner, **options)  # type: ignore[arg-type]
    actual = triplet_loss(x, y, miner=miner, **options)  # type: ignore[arg-type]
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero"])
@pytest.mark.parametrize("miner", ["batch_hard", "batch_all"])
def test_triplet_equals_pytorch_metric_learning(normalize: bool, reduction: Any, miner: Any) -> None:
    x, y = make([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 0, 1], dim=5, seed=2)
    distance = pml_distances.LpDistance(normalize_embeddings=normalize)
    reducer = pml_reducers.MeanReducer() if reduction == "mean" else pml_reducers.AvgNonZeroReducer()
    peer = pml.TripletMarginLoss(margin=0.3, distance=distance, reducer=reducer)
    mined = pml_miners.BatchHardMiner(distance=distance)(x, y) if miner == "batch_hard" else None
    expected = peer(x, y, mined)
    actual = triplet_loss(x, y, margin=0.3, miner=miner, normalize=normalize, reduction=reduction)
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, x), torch.autograd.grad(expected, x))


def contrastive_by_loop(
    x: Tensor, y: Tensor, *, form: str, positive_margin: float, negative_margin: float, reduction: str
) -> Tensor:
    kinds: dict[bool, list[Tensor]] = {True: [], False: []}
    for i, j in itertools.permutations(range(len(y)), 2):
        d = (x[i] - x[j]).norm()
        same = bool(y[i] == y[j])
        gap = torch.clamp(d - positive_margin if same else negative_margin - d, min=0)
        kinds[same].append(gap**2 / 2 if form == "hadsell" else gap)
    if reduction == "pairs":
        both = kinds[True] + kinds[False]
        return sum(both, x.sum() * 0) / max(len(both), 1)
    total = x.sum() * 0
    for losses in kinds.values():
        counted = [v for v in losses if v > 0] if reduction == "mean_nonzero" else losses
        total = total + sum(losses, x.sum() * 0) / max(len(counted), 1)
    return total


@pytest.mark.parametrize("form", ["hadsell", "linear"])
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "pairs"])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 2, 1, 0], [0, 0, 0], [0, 1, 2], [0]])
def test_contrastive_equals_brute_force(form: Any, reduction: Any, labels: list[int]) -> None:
    x, y = make(labels)
    options = {"form": form, "positive_margin": 0.4, "negative_margin": 1.7, "reduction": reduction}
    expected = contrastive_by_loop(x, y, **options)
    actual = ContrastiveLoss(normalize=False, **options)(x, y)
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, x), torch.autograd.grad(expected, x))
    sphere = F.normalize(x, dim=1)
    assert_close(ContrastiveLoss(**options)(x, y), contrastive_by_loop(sphere, y, **options))


def test_contrastive_equals_pytorch_metric_learning() -> None:
    x, y = make([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 0, 1], dim=5, seed=2)
    expected = pml.ContrastiveLoss(pos_margin=0.2, neg_margin=1.1)(x, y)
    actual = contrastive_loss(x, y, form="linear", positive_margin=0.2, negative_margin=1.1)
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, x), torch.autograd.grad(expected, x))


def test_gradcheck() -> None:
    x, y = make([0, 1, 0, 2, 1, 2], seed=5)
    for miner, margin in itertools.product(MINERS, [0.7, None]):
        assert torch.autograd.gradcheck(lambda x, k=miner, m=margin: triplet_loss(x, y, margin=m, miner=k), x)
    for form in ("hadsell", "linear"):
        assert torch.autograd.gradcheck(
            lambda x, f=form: contrastive_loss(x, y, form=f, negative_margin=1.3, normalize=False), x
        )
    off = ~torch.eye(6, dtype=torch.bool)
    weights = torch.randn(6, 6, dtype=torch.float64)[off]  # not symmetric
    for squared in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, s=squared: (pairwise_distances(x, squared=s)[off] * weights).sum(), x
        )


def test_distances_equal_cdist() -> None:
    x = torch.randn(9, 5, dtype=torch.float64)
    assert_close(pairwise_distances(x), torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"))
    assert pairwise_distances(x.bfloat16()).dtype == torch.float32


def test_distances_are_right_where_float32_products_would_be_noise() -> None:
    """Rows of length 100 that differ by 1e-4: |x|^2 + |y|^2 - 2xy in float32 has an error of about 1e-3."""
    torch.manual_seed(0)
    x = torch.randn(1, 64) * 12.5 + torch.randn(6, 64) * 1e-4
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").float()
    far = torch.cat([x, -x])  # a second cluster, so that centering alone does not help
    assert_close(pairwise_distances(x), exact, rtol=1e-5, atol=0)
    assert_close(pairwise_distances(far)[:6, :6], exact, rtol=1e-3, atol=1e-5)
    leaf = x.clone().requires_grad_()
    pairwise_distances(leaf)[0, 1].backward()
    assert_close(leaf.grad[0], (x[0] - x[1]) / (x[0] - x[1]).norm(), rtol=1e-3, atol=1e-3)  # type: ignore[index]


@pytest.mark.parametrize("few", [1, 10**9, 7000], ids=["one_by_one", "float64", "float64_at_last"])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_near_pairs_among_others_are_right(
    few: int, squared: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs at 1e-5 of their length, and copies, among strangers, in all ways that the CPU treats them."""
    monkeypatch.setattr("metricid.losses.distances._FEW", few)
    torch.manual_seed(0)
    x = torch.randn(300, 32)
    x[5] = x[0] + 1e-5 * torch.randn(32)
    x[299] = x[7] + 1e-3 * torch.randn(32)
    x[260] = x[261] + 1e-4 * torch.randn(32)
    x[40] = x[41]
    y = None if own else torch.cat([torch.randn(70, 32), x[:90] + 1e-4 * torch.randn(90, 32)])
    weights = torch.randn(300, 300 if y is None else 160, dtype=torch.float64)
    weights[40:42, 40:42] = 0  # copies: the direct formula has no gradient there
    sides = [x] if y is None else [x, y]
    exact = [side.double().requires_grad_() for side in sides]
    gaps = exact[0][:, None] - exact[-1][None, :]
    expected = gaps.square().sum(dim=2)
    if not squared:
        expected = expected.clamp_min(1e-30).sqrt()
    leaves = [side.clone().requires_grad_() for side in sides]
    actual = pairwise_distances(*leaves, squared=squared)
    assert_close(actual.double(), expected, rtol=2e-6, atol=1e-14)
    if own:
        assert (actual.diagonal() == 0).all() and actual[40, 41] == 0
        weights.fill_diagonal_(0)
    weighted = torch.autograd.grad((actual * weights.float()).sum(), leaves)
    for mine, right in zip(weighted, torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        assert_close(mine.double(), right, rtol=0, atol=3e-6 * float(right.abs().max()))
    labels = torch.arange(300) % 150
    others = None if y is None else torch.arange(160) % 150
    for reduction in ("mean", "pairs"):
        options: dict[str, Any] = {"normalize": False, "negative_margin": 9.0, "reduction": reduction}
        single = contrastive_loss(
            leaves[0], labels, references=None if own else leaves[1], reference_labels=others, **options
        )
        double = contrastive_loss(
            exact[0], labels, references=None if own else exact[1], reference_labels=others, **options
        )
        assert_close(single.double(), double, rtol=2e-6, atol=0)
        for mine, right in zip(
            torch.autograd.grad(single, leaves), torch.autograd.grad(double, exact), strict=True
        ):
            assert_close(mine.double(), right, rtol=0, atol=3e-6 * float(right.abs().max()))


def test_distances_tell_neighbouring_float32_numbers_apart() -> None:
    """Rows of length 800 that differ by a few units in the last place, as when a batch collapses."""
    torch.manual_seed(0)
    x = 100 + torch.randint(-3, 4, (5, 64)) * 2.0**-17
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").float()
    assert exact.max() < 3e-7 * x.norm(dim=1).min()
    assert_close(pairwise_distances(x), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("miner", MINERS)
def test_collapsed_batch_has_the_margin_as_loss_and_no_gradient(miner: Any) -> None:
    x = torch.full((6, 4), 3.7, requires_grad=True)
    loss = triplet_loss(x, torch.tensor([0, 0, 1, 1, 2, 2]), margin=0.3, miner=miner)
    loss.backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
    assert loss.item() == pytest.approx(
        0.0 if miner == "semi_hard" else 0.3
    )  # nothing is farther: no triplet


@pytest.mark.parametrize("miner", ["batch_hard", "batch_all"])
def test_nearly_collapsed_batch_gets_the_full_gradient(miner: Any) -> None:
    torch.manual_seed(0)
    base, noise = torch.full((1, 16), 3.0), torch.randn(8, 16)
    grads = []
    for spread in (1.0, 1e-4):
        x = (base + spread * noise).requires_grad_()
        triplet_loss(x, torch.arange(8) // 2, margin=100.0, miner=miner).backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert_close(grads[1], grads[0], atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("labels", [[0], [0, 1, 2, 3], [5, 5, 5]])
def test_without_triplets_the_loss_is_zero_with_a_graph(
    miner: Any, margin: float | None, labels: list[int]
) -> None:
    x = torch.randn(len(labels), 4, requires_grad=True)
    loss = triplet_loss(x, torch.tensor(labels), margin=margin, miner=miner)
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


@pytest.mark.parametrize("miner", MINERS)
def test_a_duplicate_image_makes_no_nan(miner: Any) -> None:
    x = torch.randn(4, 8)
    x[1] = x[0]
    x[3] = x[0]  # a duplicate under another name: a negative at distance 0
    x.requires_grad_()
    triplet_loss(x, torch.tensor([0, 0, 1, 1]), miner=miner).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    contrastive_loss(x, torch.tensor([0, 0, 1, 1])).backward()
    assert x.grad.isfinite().all()


def test_large_gaps_do_not_overflow_the_soft_margin() -> None:
    x = torch.tensor([[0.0], [1e4], [1.0], [2e4]], requires_grad=True)
    for miner in MINERS:
        loss = triplet_loss(x, torch.tensor([0, 0, 1, 1]), margin=None, miner=miner)  # type: ignore[arg-type]
        assert loss.isfinite()


@pytest.mark.parametrize("loss", [*(TripletLoss(miner=m) for m in MINERS), ContrastiveLoss()])  # type: ignore[arg-type]
def test_a_nan_embedding_shows(loss: torch.nn.Module) -> None:
    x = torch.randn(4, 3)
    x[2, 1] = math.nan
    for labels in ([0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 0]):
        assert loss(x, torch.tensor(labels)).isnan()
    assert loss(x[2:3], torch.tensor([0])).isnan()


@pytest.mark.parametrize("loss", [*(TripletLoss(miner=m) for m in MINERS), ContrastiveLoss()])  # type: ignore[arg-type]
def test_dtypes_autocast_and_strides(loss: torch.nn.Module) -> None:
    torch.manual_seed(0)
    y = torch.arange(12) // 3
    x = torch.randn(5, 12).T  # not contiguous
    assert not x.is_contiguous()
    assert_close(loss(x, y), loss(x.contiguous(), y))
    for dtype in (torch.bfloat16, torch.float16):
        low = x.to(dtype).requires_grad_()
        value = loss(low, y)
        value.backward()
        assert value.dtype == torch.float32
        assert_close(value, loss(low.float(), y))
        assert low.grad is not None
        assert low.grad.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss(x, y))


def test_batch_all_keeps_no_cube() -> None:
    """What forward saves for backward is sheets of B^2 entries; B^3 would be a hundred times as much."""
    saved = []
    x = torch.randn(100, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        triplet_loss(x, torch.arange(100) // 4, miner="batch_all")
    assert saved
    assert max(saved) <= 100 * 100


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TripletLoss(margin=-0.1), "margin: must be at least 0"),
        (lambda: TripletLoss(miner="hardest"), "miner: unknown miner"),  # type: ignore[arg-type]
        (lambda: TripletLoss(reduction="sum"), "reduction: must be one of"),  # type: ignore[arg-type]
        (lambda: ContrastiveLoss(form="cubic"), "form: must be one of"),  # type: ignore[arg-type]
        (lambda: ContrastiveLoss(negative_margin=0.0), "negative_margin: must be positive"),
        (lambda: ContrastiveLoss(positive_margin=-1.0, reduction="x"), "positive_margin.*; reduction"),  # type: ignore[arg-type]
    ],
)
def test_options_out_of_range_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
