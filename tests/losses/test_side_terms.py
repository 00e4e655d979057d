"""Terms that read weights, images, columns and teachers: values and gradients, written out again."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from metricid.losses import Objective
from metricid.losses.adversarial import BatchNorm, TradesLoss, VirtualAdversarialLoss
from metricid.losses.recipe import Column
from metricid.losses.side_terms import WeightPenalty, class_vectors
from metricid.losses.term import Side, Taught, Term
from metricid.losses.weights import RegularFace

CLASSES, FEATURES, EMBEDDING, BATCH = 5, 10, 4, 8
PIXELS = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class Both(NamedTuple):
    features: Tensor
    embedding: Tensor


class Network(nn.Module):
    """Images [B, 3, 4, 4] to features and embedding, with a batch norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, FEATURES, 4)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.neck = nn.Linear(FEATURES, EMBEDDING)

    def forward(self, images: Tensor) -> Both:
        features = self.norm(self.conv(images).flatten(1)).tanh()
        return Both(features, self.neck(features))


class Case:
    """A network, a batch of it, and an objective."""

    def __init__(self, *terms: dict, balance: dict | None = None, **facts):
        torch.manual_seed(0)
        self.network = Network()
        self.images = torch.randn(BATCH, 3, 4, 4)
        self.labels = torch.arange(BATCH) % CLASSES
        self.objective = Objective.from_config(
            terms, CLASSES, FEATURES, EMBEDDING, balance=balance, pixels=PIXELS, **facts
        )
        for parameter in self.objective.parameters():  # far from zero, so that values tell
            nn.init.normal_(parameter)
        self.teacher = Taught(torch.randn(BATCH, 7), torch.randn(BATCH, CLASSES))

    def run(self, progress: float = 0.5, gather=None, **side):
        torch.manual_seed(1)
        self.out = self.network(self.images)
        given = Side(model=self.network, images=self.images, **side)
        return self.objective(*self.out, self.labels, progress, gather, side=given)

    def head(self, name: str) -> nn.Module:
        return self.objective.losses[name]


def twice(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As if a second rank had the same batch, and minus its vectors."""
    return torch.cat([x, -x]), torch.cat([labels, labels])


def test_regularface_of_a_head_is_the_mean_cosine_to_its_nearest_neighbour() -> None:
    case = Case({"loss": "softmax", "on": "features"}, {"loss": "regularface", "weight": 0.3})
    out = case.run()
    weight = case.head("softmax").weight
    rows = [row / row.norm() for row in weight.detach()]
    nearest = [max(float(a @ b) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
    assert float(out.terms["regularface"]) == pytest.approx(sum(nearest) / CLASSES, rel=1e-5)
    (slope,) = torch.autograd.grad(out.parts[1], weight, retain_graph=True)
    (expected,) = torch.autograd.grad(0.3 * RegularFace()(weight), weight)
    assert_close(slope, expected)
    assert not torch.autograd.grad(out.parts[1], case.out.features)[0].any()


def test_a_regulariser_takes_the_first_term_with_trained_vectors_or_the_one_it_names() -> None:
    terms = (
        {"loss": "margin", "per_class": True},  # knows the classes, has no vectors of them
        {"loss": "center", "update": "alpha"},  # has some, which no gradient moves
        {"loss": "softmax"},
        {"loss": "soft_triple", "centers": 2, "name": "many"},
    )
    case = Case(*terms, {"loss": "separation"}, {"loss": "orthogonality", "of": "many"})
    losses = case.objective.losses
    assert (losses["separation"].of, losses["orthogonality"].of) == ("softmax", "many")
    w = losses["many"].weight.flatten(0, 1)
    assert w.shape == (2 * CLASSES, EMBEDDING)
    out = case.run()
    assert_close(out.terms["orthogonality"], (w.T @ w - torch.eye(EMBEDDING)).square().sum().detach())
    assert class_vectors(losses["margin"]) is None
    assert class_vectors(losses["center"]) is None


def test_an_objective_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ValueError, match="far: center has no class vectors that are trained"):
        center = Objective.from_config([{"loss": "center", "update": "alpha"}], 3, 4, 4).terms[0]
        Objective([center, Term("far", WeightPenalty(RegularFace(), "center"))])


def test_l2_of_the_network_is_half_the_squares_of_matrices_and_kernels() -> None:
    case = Case({"loss": "softmax"}, {"loss": "l2", "of": "network"}, {"loss": "l1", "of": "network"})
    case.network.neck.weight.requires_grad_(False)
    out = case.run()
    weight = case.network.conv.weight
    assert_close(out.terms["l2"], 0.5 * (weight**2).sum().detach())
    assert_close(out.terms["l1"], weight.abs().sum().detach())
    assert_close(torch.autograd.grad(out.parts[1], weight)[0], weight)


def test_distillation_of_embeddings_and_relations() -> None:
    case = Case(
        {"loss": "softmax"},
        {"loss": "embedding_distillation", "teacher": "t"},
        {"loss": "rkd_distance", "teacher": "t", "on": "features"},
        teachers={"t": 7},
    )
    out = case.run(teachers={"t": case.teacher})
    lift = case.head("embedding_distillation").loss.projection.weight
    target = case.teacher.embedding
    assert_close(
        out.terms["embedding_distillation"], F.mse_loss(case.out.embedding @ lift.T, target).detach()
    )
    distances = []
    for x in (case.out.features.detach(), target):
        pairs = [(x[i] - x[j]).norm() for i in range(BATCH) for j in range(BATCH) if i != j]
        distances.append(torch.stack(pairs) / torch.stack(pairs).mean())
    assert_close(out.terms["rkd_distance"], F.smooth_l1_loss(*distances))
    assert out.parts[1].grad_fn is not None


@pytest.mark.parametrize("place", ["features", "embedding"])
def test_logits_are_those_of_the_partner_where_it_reads(place: str) -> None:
    case = Case(
        {"loss": "arcface", "scale": 8.0, "on": place},
        {"loss": "logit_distillation", "teacher": "t", "temperature": 2.0},
        teachers={"t": 7},
    )
    out = case.run(teachers={"t": case.teacher})
    x, w = getattr(case.out, place), case.head("arcface").weight
    student = 8.0 * F.normalize(x) @ F.normalize(w).T
    p = (case.teacher.logits / 2).softmax(dim=1)
    kl = (p * (p.log() - (student / 2).softmax(dim=1).log())).sum(dim=1).mean()
    assert_close(out.terms["logit_distillation"], 4 * kl.detach(), atol=1e-5, rtol=1e-5)


def test_relations_are_those_of_the_joined_batch_and_plain_gaps_those_of_the_rank() -> None:
    terms = [{"loss": name, "teacher": "t"} for name in ("similarity_preserving", "embedding_distillation")]
    case = Case({"loss": "softmax"}, *terms, teachers={"t": EMBEDDING})
    taught = Taught(case.teacher.embedding[:, :EMBEDDING])
    alone, joined = (case.run(gather=g, teachers={"t": taught}) for g in (None, twice))
    s, t = (twice(x, case.labels)[0] for x in (case.out.embedding, taught.embedding))
    gap = F.normalize(s @ s.T) - F.normalize(t @ t.T)
    assert_close(joined.terms["similarity_preserving"], gap.square().mean().detach())
    assert_close(joined.terms["embedding_distillation"], alone.terms["embedding_distillation"])


def pipeline(case: Case, name: str, place: str):
    return lambda images: case.head(name).logits(getattr(case.network(images), place))


@pytest.mark.parametrize("place", ["features", "embedding"])
def test_trades_is_the_papers_loss_without_its_first_part(place: str) -> None:
    case = Case({"loss": "softmax", "on": place, "label_smoothing": 0.2}, {"loss": "trades", "steps": 2})
    case.network.eval()
    out = case.run()
    expected = TradesLoss(mean=PIXELS[0], std=PIXELS[1], steps=2)
    torch.manual_seed(1)
    model = pipeline(case, "softmax", place)
    whole = expected(model, case.images, case.labels)
    parameters = list(case.network.parameters())[:2]
    plain = F.cross_entropy(model(case.images), case.labels)
    assert_close(out.terms["trades"], (whole - plain).detach(), atol=1e-5, rtol=1e-4)
    assert out.terms["trades"] > 0.01
    slopes = torch.autograd.grad(out.parts[1], parameters)
    assert_close(slopes, torch.autograd.grad(whole - plain, parameters), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("place", ["features", "embedding"])
def test_virtual_adversarial_is_the_loss_of_the_whole_pipeline(place: str) -> None:
    case = Case({"loss": "arcface", "scale": 8.0, "on": place}, {"loss": "virtual_adversarial"})
    case.network.eval()
    out = case.run()
    torch.manual_seed(1)
    expected = VirtualAdversarialLoss(mean=PIXELS[0], std=PIXELS[1])(
        pipeline(case, "arcface", place), case.images
    )
    assert_close(out.terms["virtual_adversarial"], expected.detach(), atol=1e-6, rtol=1e-4)
    assert expected > 1e-4


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_virtual_adversarial_compares_what_was_normalised_alike(batch_norm: BatchNorm) -> None:
    """Without a perturbation there is no divergence."""
    term = {"loss": "virtual_adversarial", "batch_norm": batch_norm, "epsilon": 0.0}
    out = Case({"loss": "softmax"}, term).run()
    assert float(out.terms["virtual_adversarial"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("loss", "passes"), [("virtual_adversarial", 1), ("trades", 2)])
def test_running_statistics_count_the_clean_pass_once(loss: str, passes: int) -> None:
    """And of TRADES the perturbed images, as its authors do."""
    case = Case({"loss": "softmax"}, {"loss": loss})
    case.run().total.backward()
    assert case.network.norm.num_batches_tracked == passes
    assert case.network.training and case.network.norm.track_running_stats
    if passes == 1:
        other = copy.deepcopy(case.network)
        other.norm.reset_running_stats()
        other(case.images)
        assert_close(case.network.norm.running_var, other.norm.running_var)


def domain_case(progress: float = 0.3, gather=None, known=(0, 1, 2, 5)):
    terms = {"loss": "softmax"}, {"loss": "domain_adversarial", "hidden": [6], "column": "room"}
    case = Case(*terms, columns={"room": Column((4, 4, 4))})
    room = torch.full((BATCH,), -1)
    for row in known:
        room[row] = row % 3
    case.out_ = case.run(progress, gather, columns={"room": room})
    return case, room


def test_domains_are_guessed_from_known_rows_and_the_gradient_is_reversed() -> None:
    case, room = domain_case()
    network = case.head("domain_adversarial").loss.network
    assert [p.shape[0] for p in network.parameters()] == [6, 6, 3, 3]
    known = room >= 0
    plain = F.cross_entropy(network(case.out.embedding[known]), room[known])
    assert_close(case.out_.terms["domain_adversarial"], plain.detach())
    x = case.out.embedding
    (found,) = torch.autograd.grad(case.out_.parts[1], x, retain_graph=True)
    (slope,) = torch.autograd.grad(plain, x, retain_graph=True)
    assert slope[known].norm() > 1e-3
    assert_close(found, -(2 / (1 + math.exp(-10 * 0.3)) - 1) * slope)
    weights = list(network.parameters())
    assert_close(torch.autograd.grad(case.out_.parts[1], weights), torch.autograd.grad(plain, weights))


def test_a_batch_without_a_known_domain_gives_zero_to_every_parameter() -> None:
    case, _ = domain_case(known=())
    assert case.out_.terms["domain_adversarial"] == 0
    case.out_.total.backward()
    for parameter in case.head("domain_adversarial").parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_domains_of_all_ranks_are_one_batch() -> None:
    """Ranks with unlike numbers of known values: a mean of their means would weigh some images more."""
    case, _ = domain_case()

    def gather(x: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        other = torch.full_like(domains, -1)
        other[4] = 2
        return torch.cat([x, x]), torch.cat([domains, other])

    joined, room = domain_case(gather=gather)
    network, known = case.head("domain_adversarial").loss.network, room >= 0
    x = torch.cat([case.out.embedding[known], case.out.embedding[4:5]])
    expected = F.cross_entropy(network(x), torch.cat([room[known], torch.tensor([2])]))
    assert_close(joined.out_.terms["domain_adversarial"], expected.detach())


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"loss": "l2", "of": "network"}, "needs the network: pass side=Side.model=...."),
        ({"loss": "trades"}, "needs the network"),
        ({"loss": "rkd_angle", "teacher": "t"}, "needs teacher 't': pass side=Side.teachers=...."),
        ({"loss": "logit_distillation", "teacher": "t"}, "needs teacher 't'"),
        ({"loss": "domain_adversarial"}, "needs column 'camera': pass side=Side.columns=...."),
    ],
)
def test_what_the_side_lacks_is_named(term: dict, message: str) -> None:
    case = Case({"loss": "softmax"}, term, teachers={"t": 7}, columns={"camera": Column((1, 1))})
    with pytest.raises(ValueError, match=message):
        case.objective(*case.network(case.images), case.labels, 0.5)


def test_a_teacher_without_logits_is_named() -> None:
    case = Case({"loss": "softmax"}, {"loss": "logit_distillation", "teacher": "t"}, teachers={"t": 7})
    with pytest.raises(ValueError, match="needs the logits of teacher 't'"):
        case.run(teachers={"t": Taught(torch.randn(BATCH, 7))})


def test_what_the_training_did_not_give_is_named() -> None:
    with pytest.raises(ValueError, match="objective.1.teacher: 't' was not given"):
        Case({"loss": "softmax"}, {"loss": "rkd_angle", "teacher": "t"})
    with pytest.raises(ValueError, match="needs column 'camera', which was not given"):
        Case({"loss": "softmax"}, {"loss": "domain_adversarial"})


def test_teachers_are_asked_while_a_term_listens() -> None:
    terms = [
        {"loss": "rkd_angle", "teacher": "early", "end": 0.5},
        {"loss": "rkd_distance", "teacher": "early", "end": 0.2},
        {"loss": "rkd_distance", "teacher": "late", "start": 0.5},
    ]
    objective = Case({"loss": "softmax"}, *terms, teachers={"early": 3, "late": 4}).objective
    assert objective.teachers_at(0.3) == {"early"}
    assert objective.teachers_at(0.5) == {"late"}


def test_a_term_that_is_off_moves_only_for_those_that_are_about_it() -> None:
    case = Case(
        {"loss": "softmax", "name": "id", "end": 0.5},
        {"loss": "softmax", "name": "other", "end": 0.5},
        {"loss": "supcon"},
        {"loss": "regularface", "of": "id"},
        balance={"name": "uncertainty"},
    )
    idle = {id(p) for p in case.objective.inactive_parameters(0.7)}
    variances = case.objective.balance.log_variances
    assert idle == {id(case.head("other").weight), id(variances[0]), id(variances[1])}
    out = case.run(0.7)
    assert list(out.terms) == ["supcon", "regularface"]
    out.total.backward()
    assert case.head("id").weight.grad.norm() > 0
    assert not case.head("other").weight.grad.any()


def test_an_option_of_a_plain_loss_may_be_called_of() -> None:
    terms = [{"loss": "softmax", "name": "vector"}, {"loss": "zero_mean", "of": "vector", "start": 0.5}]
    objective = Case(*terms).objective
    assert objective.losses["zero_mean"].of == "vector"
    off = Objective.from_config([terms[0] | {"end": 0.5}, terms[1]], CLASSES, FEATURES, EMBEDDING)
    assert [p is off.losses["vector"].weight for p in off.inactive_parameters(0.7)] == [True]


@pytest.mark.parametrize("balance", ["uncertainty", "dwa", "gradnorm"])
def test_balances_take_terms_of_every_kind(balance: str) -> None:
    case = Case(
        {"loss": "softmax"},
        {"loss": "orthogonality", "weight": {"plateau": 0.1, "patience": 1}},
        {"loss": "l2", "of": "network", "weight": 0.01},
        {"loss": "virtual_adversarial"},
        {"loss": "embedding_distillation", "teacher": "t"},
        {"loss": "domain_adversarial", "hidden": [6]},
        balance={"name": balance},
        teachers={"t": 7},
        columns={"camera": Column((1, 1))},
    )
    cameras = torch.arange(BATCH) % 2
    for step in range(4):
        out = case.run(0.1 * step, teachers={"t": case.teacher}, columns={"camera": cameras})
        out.total.backward()
        case.objective.after_step(*case.out, case.labels)
        case.objective.after_epoch()
        case.objective.after_validation(0.5)
    assert out.total.isfinite()
    assert all(math.isfinite(weight) and weight > 0 for weight in out.weights.values())
    if balance == "gradnorm":  # three terms do not reach the features: their factors stay
        kept = {"orthogonality": 0.1 * 0.5**2, "l2": 0.01, "virtual_adversarial": 1.0}
        assert {name: out.weights[name] for name in kept} == pytest.approx(kept, rel=1e-5)
        assert sum(case.objective.balance.weights.tolist()) == pytest.approx(6, rel=1e-5)
        assert abs(out.weights["embedding_distillation"] - 1) > 1e-3
