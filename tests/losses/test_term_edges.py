"""Edges and misuse of centers, regularisers, tasks and distillation."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses import (
    LOSSES,
    TASKS,
    ContrastiveCenterLoss,
    DiceLoss,
    EmbeddingDistillation,
    HuberLoss,
    IslandLoss,
    L2Penalty,
    LogitDistillation,
    RingLoss,
    SeparationLoss,
    SmoothL1Loss,
)
from metricid.losses.center import center_island_penalty, unit_rows
from metricid.losses.dice import dice_loss
from metricid.losses.distillation import DISTILLATION
from metricid.losses.regression import mse_loss
from metricid.losses.regularisers import koleo_loss, nearest_rows, uniformity_loss
from metricid.losses.weights import REGULARISERS, l1_penalty, orthogonality_loss, regularface, separation_loss

RECIPE = ["contrastive_center", "island", "ring", "feature_norm", "zero_mean", "uniformity", "koleo"]
EDGES = {
    "identical": torch.ones(5, 4),
    "zero": torch.zeros(5, 4),
    "huge": 1e8 * torch.eye(5, 4),
    "tiny": 1e-30 * torch.ones(5, 4),
    "one": torch.ones(1, 4),
    "opposite": torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]),
}


def finite(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    x = x.clone().requires_grad_()
    value = function(x)
    (slope,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert slope.isfinite().all()


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", RECIPE)
def test_recipe_losses_are_finite_at_the_edges(name: str, edge: str) -> None:
    x = EDGES[edge]
    for classes in (1, 3):  # one class leaves no other center
        loss = LOSSES.build({"loss": name}, num_classes=classes, embedding_dim=4)
        for parameter in loss.parameters():
            nn.init.constant_(parameter, 1.0)
        before = {key: value.clone() for key, value in loss.state_dict().items()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            finite(lambda x, loss=loss: loss(x, torch.zeros(len(x), dtype=torch.int64)), x)  # type: ignore[misc]
        assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
        assert all(value.dtype == torch.float32 for value in loss.state_dict().values())


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", REGULARISERS.names())
def test_regularisers_of_parameters_are_finite_at_the_edges(name: str, edge: str) -> None:
    finite(REGULARISERS.build({"loss": name}), EDGES[edge])
    if name == "separation":
        for power in (0.0, 1.0, 2.0):
            finite(SeparationLoss(form="energy", power=power), EDGES[edge])


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", DISTILLATION.names())
def test_distillation_is_finite_at_the_edges(name: str, edge: str) -> None:
    x = EDGES[edge]
    teacher = torch.randn(x.shape, requires_grad=True)
    for form in ("mse", "l1", "smooth_l1", "cosine") if name == "embedding_distillation" else (None,):
        options = {"loss": name} if form is None else {"loss": name, "form": form}
        loss = DISTILLATION.build(options, embedding_dim=4)
        for given in (teacher, torch.zeros_like(x), x):
            finite(lambda x, loss=loss, given=given: loss(x, given), x)  # type: ignore[misc]
    assert teacher.grad is None


@pytest.mark.parametrize(
    "name", [n for n in DISTILLATION.names() if n not in ("logit_distillation", "embedding_distillation")]
)
def test_relations_do_not_depend_on_the_teachers_scale_or_width(name: str) -> None:
    torch.manual_seed(0)
    loss = DISTILLATION.build({"loss": name})
    student, teacher = torch.randn(6, 4), torch.randn(6, 9)
    torch.testing.assert_close(loss(student, 7 * teacher), loss(student, teacher))
    turned = torch.linalg.qr(torch.randn(4, 4))[0]
    assert loss(student, 3 * student @ turned) < 1e-6 < loss(student, teacher)


def test_a_projection_stands_between_unlike_widths() -> None:
    loss = EmbeddingDistillation(4, teacher_dim=6)
    student, teacher = torch.randn(3, 4), torch.randn(3, 6)
    assert loss.projection is not None
    torch.testing.assert_close(
        loss(student, teacher), F.mse_loss(student @ loss.projection.weight.T, teacher)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student.bfloat16(), teacher).dtype == torch.float32
    assert EmbeddingDistillation(4, teacher_dim=4).projection is None
    with pytest.raises(ValueError, match=r"the student must be \[B, 4\]"):
        loss(teacher, teacher)


@pytest.mark.parametrize("name", ["mse", "mae", "smooth_l1", "huber"])
def test_missing_values_touch_nothing(name: str) -> None:
    loss = TASKS.build({"loss": name})
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    target = torch.tensor([[1.0, float("nan")], [2.0, 3.0], [float("inf"), float("nan")]])
    p = torch.zeros(3, 2, requires_grad=True)
    value = loss(p, target, mask)
    (slope,) = torch.autograd.grad(value, p)
    torch.testing.assert_close(value, loss(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])))
    assert torch.equal(slope != 0, mask)
    nothing = loss(p, target, torch.zeros(3, 1, dtype=torch.bool))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, p)[0].any()


@pytest.mark.parametrize("form", ["binary", "multiclass", "generalised"])
def test_dice_leaves_missing_images_out(form: str) -> None:
    torch.manual_seed(0)
    loss = DiceLoss(form=form)  # type: ignore[arg-type]
    logits = torch.randn((4, 3, 5) if form != "binary" else (4, 5), requires_grad=True)
    target = torch.randint(0, 3, (4, 5)) if form != "binary" else torch.rand(4, 5)
    rows = torch.tensor([True, False, True, False])
    spoilt = target.clone()
    spoilt[~rows] = 99 if form != "binary" else float("nan")
    value = loss(logits, spoilt, rows[:, None])
    torch.testing.assert_close(value, loss(logits[rows], target[rows]))
    (slope,) = torch.autograd.grad(value, logits)
    assert slope[rows].any() and not slope[~rows].any()
    nothing = loss(logits, spoilt, torch.zeros(4, 1, dtype=torch.bool))
    assert nothing == 0 and not torch.autograd.grad(nothing, logits)[0].any()


def test_dice_of_a_perfect_and_of_an_empty_mask() -> None:
    target = torch.tensor([[True, False, True], [False, False, False]])
    sure = torch.where(target, 50.0, -50.0).requires_grad_()
    for smooth in (0.0, 1.0):
        value = dice_loss(sure, target, smooth=smooth)
        assert value.isfinite() and torch.autograd.grad(value, sure)[0].isfinite().all()
    assert dice_loss(sure, target) < 1e-6
    assert dice_loss(-sure, target, smooth=1e-6) > 0.99


def test_dice_refuses_misfits() -> None:
    images = torch.randn(2, 3, 4)
    for form, target, message in (
        ("binary", torch.zeros(2, 3), "needs a target"),
        ("binary", torch.zeros(2, 3, 4, dtype=torch.int64), "float or bool"),
        ("multiclass", torch.zeros(2, 4), "int64"),
        ("multiclass", torch.full((2, 4), 3), r"class 3 of the target is outside \[0, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dice_loss(images, target, form=form)  # type: ignore[arg-type]


def test_island_pairs_are_a_mean_on_demand_and_count_directions_only() -> None:
    centers = torch.randn(7, 4, dtype=torch.float64)
    total, mean = (center_island_penalty(centers, reduction=r) for r in ("sum", "mean"))  # type: ignore[arg-type]
    torch.testing.assert_close(total, 42 * mean)
    torch.testing.assert_close(center_island_penalty(3 * centers), total)
    assert center_island_penalty(centers[:1]) == 0


def test_uniformity_and_koleo_prefer_a_spread_batch() -> None:
    torch.manual_seed(0)
    crowd = torch.randn(16, 3) * 0.01 + torch.tensor([1.0, 0, 0])
    for function in (uniformity_loss, koleo_loss):
        x = crowd.clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            function(x).backward()
            optimizer.step()
        assert unit_rows(x).mean(dim=0).norm() < 0.2 < 0.9 < unit_rows(crowd).mean(dim=0).norm()


def test_nearest_rows_do_not_depend_on_the_blocks() -> None:
    unit = unit_rows(torch.randn(23, 5))
    whole = nearest_rows(unit)
    assert torch.equal(nearest_rows(unit, block=50), whole)
    assert (whole != torch.arange(23)).all()


def test_ring_learns_its_radius() -> None:
    loss = RingLoss(radius=2.0)
    assert [name for name, _ in loss.named_parameters()] == ["radius"]
    x = torch.tensor([[3.0, 4.0]])
    value = loss(x, torch.tensor([0]))
    assert value == 4.5
    value.backward()
    assert loss.radius.grad == -3.0


def test_orthogonality_takes_the_side_that_can_be_orthonormal() -> None:
    q = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64))[0]
    for w in (q, q.T, q.T.reshape(3, 2, 3, 1)):
        assert orthogonality_loss(w) < 1e-20 < orthogonality_loss(2 * w)


def test_misfits_are_refused() -> None:
    matrix = torch.randn(3, 4)
    for call, message in (
        (lambda: mse_loss(matrix, matrix[:2]), "differ in shape"),
        (lambda: mse_loss(matrix, matrix.long()), "float tensors"),
        (lambda: mse_loss(matrix, matrix, torch.ones(3, 4)), "mask must be a bool"),
        (lambda: mse_loss(matrix, matrix, torch.ones(3, dtype=torch.bool)), "does not broadcast"),
        (lambda: regularface(matrix[0]), "class vectors"),
        (lambda: separation_loss(matrix.long()), "class vectors"),
        (l1_penalty, "at least one"),
        (lambda: L2Penalty()(torch.arange(3)), "float tensors"),
        (lambda: LogitDistillation()(matrix, matrix[:, :2]), "4 dimensions, the teacher 2"),
        (lambda: LogitDistillation()(matrix, matrix[:2]), "3 rows of the student"),
        (lambda: LogitDistillation()(matrix[0], matrix), "student must be a float tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ContrastiveCenterLoss(3, 4, delta=0.0), "delta: must be positive"),
        (lambda: IslandLoss(3, 4, pair_weight=-1.0), "pair_weight: must be at least 0"),
        (lambda: IslandLoss(0, 4, reduction="max"), "num_classes: .*reduction: must be"),  # type: ignore[arg-type]
        (lambda: SeparationLoss(form="x"), "form: must be"),  # type: ignore[arg-type]
        (lambda: SmoothL1Loss(beta=0.0), "beta: must be positive"),
        (lambda: HuberLoss(delta=-1.0), "delta: must be positive"),
        (lambda: DiceLoss(form="x", smooth=-1.0), "form: .*smooth: "),  # type: ignore[arg-type]
        (lambda: LogitDistillation(temperature=0.0), "temperature: must be positive"),
        (lambda: EmbeddingDistillation(4, form="x"), "form: must be"),  # type: ignore[arg-type]
        *(
            (lambda name=name, option=option: LOSSES.get(name)(**option), f"{next(iter(option))}: must be")
            for name, option in (
                ("ring", {"radius": -1.0}),
                ("feature_norm", {"radius": float("inf")}),
                ("zero_mean", {"of": "class"}),
                ("uniformity", {"t": 0.0}),
                ("koleo", {"eps": 0.0}),
            )
        ),
    ],
)
def test_options_out_of_range_are_named(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
