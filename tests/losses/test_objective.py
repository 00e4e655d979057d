"""The weighted sum of losses: values, windows, names, gathering, centers, and what a wrong recipe gets."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from metricid.losses import LOSSES, ArcFace, CenterLoss, Objective, SoftmaxCrossEntropy, Term, TripletLoss
from metricid.losses.recipe import Column

CLASSES, FEATURES, EMBEDDING = 6, 10, 4
COLUMNS = {"hat": Column((3, 2, 1)), "a,b": Column()}


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(8, FEATURES, requires_grad=True)
    embedding = torch.randn(8, EMBEDDING, requires_grad=True)
    return features, embedding, torch.arange(8) // 2


def build(*terms: dict) -> Objective:
    torch.manual_seed(1)
    return Objective.from_config(terms, CLASSES, FEATURES, EMBEDDING)


def test_total_is_the_weighted_sum_of_terms_on_their_own_input(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, embedding, labels = batch
    objective = build(
        {"loss": "softmax", "weight": 0.5, "label_smoothing": 0.1},
        {"loss": "triplet", "on": "features", "weight": 2, "margin": None, "normalize": True},
        {"loss": "center", "on": "features", "weight": 0.01},
    )
    out = objective(features, embedding, labels, progress=0.3)
    softmax, triplet, center = objective.losses.values()
    assert isinstance(softmax, SoftmaxCrossEntropy)
    assert softmax.weight.shape == (CLASSES, EMBEDDING)
    assert isinstance(center, CenterLoss)
    assert center.centers.shape == (CLASSES, FEATURES)
    expected = {
        "softmax": softmax(embedding, labels),
        "triplet": triplet(features, labels),
        "center": center(features, labels),
    }
    assert_close(out.terms, {name: value.detach() for name, value in expected.items()})
    total = 0.5 * expected["softmax"] + 2 * expected["triplet"] + 0.01 * expected["center"]
    assert_close(out.total, total)
    leaves = (features, embedding, *objective.parameters())
    assert_close(torch.autograd.grad(out.total, leaves), torch.autograd.grad(total, leaves))
    assert not any(value.requires_grad for value in out.terms.values())


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, ["first"]),
        (0.1999, ["first"]),
        (0.2, ["first", "middle"]),
        (0.6, ["middle", "last"]),
        (0.7999, ["middle", "last"]),
        (0.8, ["last"]),
        (1.0, ["last"]),
    ],
)
def test_windows(batch: tuple[Tensor, Tensor, Tensor], progress: float, expected: list[str]) -> None:
    objective = build(
        {"loss": "softmax", "name": "first", "end": 0.6},
        {"loss": "triplet", "name": "middle", "start": 0.2, "end": 0.8},
        {"loss": "arcface", "name": "last", "start": 0.6},
    )
    assert list(objective(*batch, progress=progress).terms) == expected


class Counting(nn.Module):
    """A loss that counts its calls and holds a parameter."""

    pairwise = False

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.full((3,), float("inf")))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        return embeddings.sum()


def test_a_term_outside_its_window_is_not_run_and_has_zero_gradients(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    late = Counting()
    objective = Objective(
        [Term("always", SoftmaxCrossEntropy(CLASSES, EMBEDDING)), Term("late", late, start=0.5)]
    )
    out = objective(*batch, progress=0.1)
    out.total.backward()
    assert late.calls == 0
    assert_close(out.total.detach(), out.terms["always"])
    assert late.weight.grad is not None
    assert torch.equal(late.weight.grad, torch.zeros(3))
    objective(*batch, progress=0.5)
    assert late.calls == 1


def test_names_are_unique_and_follow_the_loss() -> None:
    objective = build(
        {"loss": "triplet"},
        {"loss": "triplet", "miner": "batch_all"},
        {"loss": "softmax", "name": "triplet_3"},
        {"loss": "triplet", "miner": "semi_hard"},
        {"loss": "arcface", "name": "id"},
    )
    assert [term.name for term in objective.terms] == ["triplet", "triplet_2", "triplet_3", "triplet_4", "id"]
    assert set(objective.state_dict()) == {"losses.triplet_3.weight", "losses.id.weight"}


def test_gather_joins_pairwise_terms_only_and_once_per_input(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, embedding, labels = batch
    other = torch.randn(8, FEATURES), torch.randn(8, EMBEDDING), labels + 1
    calls = []

    def gather(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(x.shape[1])
        return torch.cat([x, other[0] if x.shape[1] == FEATURES else other[1]]), torch.cat([y, other[2]])

    objective = build(
        {"loss": "softmax"},
        {"loss": "triplet", "on": "features"},
        {"loss": "contrastive", "on": "features"},
        {"loss": "triplet"},
    )
    out = objective(features, embedding, labels, 0.0, gather)
    assert sorted(calls) == [EMBEDDING, FEATURES]
    assert_close(out.terms["softmax"], objective.losses["softmax"](embedding, labels).detach())
    for name, x, extra in (
        ("triplet", features, other[0]),
        ("contrastive", features, other[0]),
        ("triplet_2", embedding, other[1]),
    ):
        expected = objective.losses[name](torch.cat([x, extra]), torch.cat([labels, labels + 1]))
        assert_close(out.terms[name], expected.detach())


def test_after_step_moves_alpha_centers_of_the_latest_terms(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    features, embedding, labels = batch
    objective = build(
        {"loss": "softmax"},
        {"loss": "center", "update": "alpha", "on": "features"},
        {"loss": "center", "update": "alpha", "start": 0.5, "name": "late"},
        {"loss": "center", "name": "trained"},
    )
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective(*batch, progress=0.1)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())

    def gather(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([x, 2 * x]), torch.cat([y, y])

    objective.after_step(features, embedding, labels, gather)
    expected = CenterLoss(CLASSES, FEATURES, update="alpha")
    expected.load_state_dict({"centers": before["losses.center.centers"]})
    expected.update_centers(*gather(features, labels))
    after = objective.state_dict()
    assert_close(after["losses.center.centers"], expected.centers)
    for name in ("losses.late.centers", "losses.trained.centers", "losses.softmax.weight"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_the_training_is_refused(
    batch: tuple[Tensor, Tensor, Tensor], progress: float
) -> None:
    with pytest.raises(ValueError, match="progress must lie in"):
        build({"loss": "softmax"})(*batch, progress=progress)


def test_all_problems_of_a_recipe_are_found_at_once() -> None:
    found = Objective.problems(
        [
            {"loss": "arcfac"},
            {"loss": "arcface", "margn": 0.5, "scale": -1.0, "margin": 4.0, "weight": -1, "on": "neck"},
            {"loss": "triplet", "miner": "hard", "margin": "wide", "start": 0.5, "end": 0.5},
            {"weight": 1.0},
            "softmax",
            {"loss": "center", "num_classes": 7, "weight": True, "name": "a b"},
        ]
    )
    paths = {path for path, _ in found}
    assert paths == {
        "0.loss", "1.margn", "1.scale", "1.margin", "1.weight", "1.on", "2.miner", "2.margin", "2.start",
        "3.loss", "4", "5.num_classes", "5.weight", "5.name",
    }  # fmt: skip
    assert len(found) == len(paths)
    messages = dict(found)
    assert "did you mean 'arcface'" in messages["0.loss"]
    assert "did you mean 'margin'" in messages["1.margn"]
    assert messages["1.scale"] == "must be positive, got -1.0"
    assert messages["2.margin"] == "expected a number or null, got 'wide'"


def test_types_and_ranges_of_one_loss_are_found_together() -> None:
    found = Objective.problems([{"loss": "center", "update": "sgd", "alpha": 2.0, "init_std": -1}])
    assert {path for path, _ in found} == {"0.update", "0.alpha", "0.init_std"}


def test_a_loss_registered_by_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Counting):
        def __init__(self, size: int, depth: int = 1):
            if size < 3:
                raise ValueError("size and depth do not fit")
            super().__init__()

    monkeypatch.setitem(LOSSES._classes, "own", Own)
    assert Objective.problems([{"loss": "own"}]) == [("0.size", "is required")]
    assert Objective.problems([{"loss": "own", "size": 1}]) == [("0", "size and depth do not fit")]
    assert Objective.problems([{"loss": "own", "size": 3}]) == []
    assert isinstance(build({"loss": "own", "size": 3}).losses["own"], Own)


@pytest.mark.parametrize("name", ["a.b", "", "items", "training", "a b"])
def test_names_that_cannot_be_used(name: str) -> None:
    assert [path for path, _ in Objective.problems([{"loss": "softmax", "name": name}])] == ["0.name"]


@pytest.mark.parametrize("terms", [None, [], {}, "softmax", 3])
def test_something_else_than_a_list_of_terms(terms: object) -> None:
    assert [path for path, _ in Objective.problems(terms)] == [""]


def test_two_terms_of_one_name_and_stretches_without_any_term() -> None:
    assert Objective.problems([{"loss": "softmax", "name": "a"}, {"loss": "triplet", "name": "a"}]) == [
        ("1.name", "'a' is the name of another term")
    ]
    ((path, message),) = Objective.problems(
        [{"loss": "softmax", "end": 0.2}, {"loss": "arcface", "start": 0.5}]
    )
    assert (path, message) == ("", "no term is on between 0.2 and 0.5 of the training")
    assert Objective.problems([{"loss": "softmax", "end": 0.5}, {"loss": "arcface", "start": 0.5}]) == []
    assert "between 0.9 and 1" in Objective.problems([{"loss": "softmax", "end": 0.9}])[0][1]


def test_checking_builds_nothing_and_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    assert (
        Objective.problems(
            [{"loss": "softmax"}, {"loss": "arcface"}, {"loss": "center"}, {"loss": "triplet"}]
        )
        == []
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wrong_recipe_is_not_built() -> None:
    with pytest.raises(
        ValueError, match=r"objective\.0\.margin: must lie in .*; objective\.1\.loss: unknown loss"
    ):
        build({"loss": "arcface", "margin": 9.0}, {"loss": "nothing"})
    with pytest.raises(ValueError, match=r"objective: needs a list"):
        build()
    with pytest.raises(ValueError, match="unique names"):
        Objective([Term("a", ArcFace(2, 2)), Term("a", TripletLoss())])


@pytest.mark.parametrize(
    ("term", "says"),
    [
        (
            {"loss": "softmax", "class_weights": [1.0, 2.0]},
            "0.class_weights: has 2 numbers for the 6 identities",
        ),
        ({"loss": "focal", "alpha": [0.5] * 7}, "0.alpha: has 7 numbers for the 6 identities"),
        (
            {"task": "category", "column": "hat", "loss": "softmax", "class_weights": [1.0]},
            "0.class_weights: has 1 numbers for the 3 classes of column hat",
        ),
        (
            {"task": "attributes", "columns": ["a", "b"], "loss": "focal", "alpha": [0.5, 0.4, 0.3]},
            "0.alpha: has 3 numbers for the 2 columns",
        ),
    ],
)
def test_one_number_for_each_class_is_asked_for_before_anything_is_built(term: dict, says: str) -> None:
    assert Objective.problems([term]) == []
    with pytest.raises(ValueError, match=f"^objective.{says}"):
        Objective.from_config([term], CLASSES, FEATURES, EMBEDDING, columns=COLUMNS)
    count = int(says.split(" for the ")[1].split()[0])
    name = says.partition(":")[0].removeprefix("0.")
    Objective.from_config([term | {name: [0.5] * count}], CLASSES, FEATURES, EMBEDDING, columns=COLUMNS)


def test_a_loss_of_ones_own_may_have_options_with_the_names_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Module):
        pairwise = True

        def __init__(self, alpha: list[float], gather: bool = True):
            super().__init__()
            self.alpha, self.gather = alpha, gather

    monkeypatch.setitem(LOSSES._classes, "own", Own)
    made = build({"loss": "own", "alpha": [0.25, 0.75], "gather": False})
    assert (made.losses["own"].alpha, made.losses["own"].gather) == ([0.25, 0.75], False)
    assert made.terms[0].gather, "the option is that of the loss"


def test_a_loss_that_is_no_scalar_is_named(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return x.sum(dim=1)

    with pytest.raises(
        ValueError, match=r"^mine: a loss returns a scalar, and this one a tensor of shape \[8\]"
    ):
        Objective([Term("mine", Rows())])(*batch, progress=0.0)


def test_the_objective_trains(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, labels = batch
    torch.manual_seed(0)
    data = torch.randn(8, 5)
    objective = build(
        {"loss": "arcface", "scale": 16.0},
        {"loss": "triplet", "on": "features"},
        {"loss": "contrastive", "start": 0.3},
        {"loss": "center", "on": "features", "weight": 0.01, "update": "alpha"},
    )
    body, neck = nn.Linear(5, FEATURES), nn.Linear(FEATURES, EMBEDDING)
    optimizer = torch.optim.Adam([*body.parameters(), *neck.parameters(), *objective.parameters()], lr=0.02)
    totals = []
    for step in range(50):
        features = body(data)
        embedding = neck(features)
        out = objective(features, embedding, labels, progress=step / 50)
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
        objective.after_step(features, embedding, labels)
        totals.append(out.total.item())
    assert totals[-1] < 0.3 * totals[0]
