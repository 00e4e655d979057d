"""Weights that the training finds: against their papers' formulas, written out again."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from metricid.losses import LOSSES, Objective, Term
from metricid.losses.balance import DynamicWeightAverage, GradNorm, Uncertainty, balance_problems

CLASSES, FEATURES, EMBEDDING = 6, 10, 4
TERMS = ({"loss": "softmax"}, {"loss": "contrastive", "weight": 0.5}, {"loss": "softmax", "start": 0.5})


def build(balance, terms=TERMS):
    torch.manual_seed(1)
    return Objective.from_config(terms, CLASSES, FEATURES, EMBEDDING, balance=balance)


def batch():
    torch.manual_seed(0)
    features = torch.randn(8, FEATURES, requires_grad=True)
    embedding = features @ torch.randn(FEATURES, EMBEDDING)
    return features, embedding, torch.arange(8) // 2


def test_uncertainty_is_kendalls_sum_and_leaves_inactive_terms_alone():
    objective = build({"name": "uncertainty"})
    with torch.no_grad():
        for number, s in enumerate(objective.balance.log_variances):
            s.fill_(0.3 * number - 0.2)
    features, embedding, labels = batch()
    out = objective(features, embedding, labels, progress=0.1)
    s = torch.tensor([-0.2, 0.1])
    losses = torch.stack([out.terms["softmax"], out.terms["contrastive"]])
    w = torch.tensor([1.0, 0.5])
    assert_close(out.total, (w * ((-s).exp() * losses + s / 2)).sum())
    assert_close(out.weights, {"softmax": math.exp(0.2), "contrastive": 0.5 * math.exp(-0.1)})
    out.total.backward()
    gradients = torch.stack([p.grad for p in objective.balance.log_variances])
    assert_close(gradients, torch.cat([w * (0.5 - (-s).exp() * losses), torch.zeros(1)]))
    idle = {id(p) for p in objective.inactive_parameters(0.1)}
    assert id(objective.balance.log_variances[2]) in idle
    assert not idle & {id(p) for p in objective.balance.log_variances[:2]}


def test_uncertainty_settles_where_the_factor_is_half_the_inverse_of_the_loss():
    balance = Uncertainty(2)
    values = torch.tensor([4.0, 0.25])
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        balance.parts(values, torch.tensor([1.0, 0.1]), [0, 1]).sum().backward()
        optimizer.step()
    assert_close(balance.factors([0, 1]), 0.5 / values, rtol=1e-3, atol=1e-3)


def test_dwa_weighs_by_the_ratio_of_the_last_two_epochs():
    balance = DynamicWeightAverage(3, temperature=0.5)
    epochs = [[(4.0, 1.0), (2.0, 1.0)], [(1.5, 0.5), (1.5, 0.9)], [(9.0, 9.0)]]
    for epoch, losses in enumerate(epochs):
        assert_close(balance.factors([0, 2]), torch.ones(2)) if epoch < 2 else None
        for pair in losses:
            balance.update(torch.tensor(pair), None, [0, 2])
        if epoch < 2:
            balance.end_epoch()
    r = torch.tensor([1.5 / 3, 0.7 / 1.0])
    expected = 2 * torch.exp(r / 0.5) / torch.exp(r / 0.5).sum()
    assert_close(balance.factors([0, 2]), expected)
    # A term that was never active counts with 1.
    r = torch.tensor([1.5 / 3, 1.0, 0.7])
    assert_close(balance.factors([0, 1, 2]), 3 * torch.softmax(r / 0.5, dim=0))


def test_gradnorm_takes_one_step_of_adam_on_the_papers_sum():
    balance = GradNorm(3, alpha=1.5, lr=0.1)
    norms = torch.tensor([1e-3, 4e-3, 2e-3])
    balance.update(torch.tensor([2.0, 4.0, 1.0]), norms, [0, 1, 2])  # the losses at the beginning
    before = balance.factors([0, 1, 2])
    # The rate is 1 for all at the beginning: every norm is to become the mean one.
    assert_close(before, torch.tensor([1.1, 0.9, 1.1]) * 3 / 3.1)
    later = torch.tensor([1.0, 4.0, 0.25])
    weights = before.clone().requires_grad_()
    rate = later / torch.tensor([2.0, 4.0, 1.0])
    grads = weights * norms
    target = (grads.mean() * (rate / rate.mean()) ** 1.5).detach()
    (slope,) = torch.autograd.grad((grads - target).abs().sum(), weights)
    first = torch.sign(torch.tensor([-1.0, 1.0, -1.0])) * norms
    mean = (0.9 * 0.1 * first + 0.1 * slope) / (1 - 0.9**2)
    square = (0.999 * 0.001 * first**2 + 0.001 * slope**2) / (1 - 0.999**2)
    moved = before - 0.1 * mean / square.sqrt()
    balance.update(later, norms, [0, 1, 2])
    assert_close(balance.factors([0, 1, 2]), moved * 3 / moved.sum())


def test_gradnorm_makes_equal_what_differs_by_a_thousand():
    balance = GradNorm(2, alpha=0.0)
    for _ in range(400):
        balance.update(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0]) * 1e-3, [0, 1])
    first, second = balance.factors([0, 1]).tolist()
    assert 3 * first == pytest.approx(second, rel=0.1)


def test_the_objective_measures_norms_at_the_features():
    objective = build(None, TERMS[:2])
    features, embedding, labels = batch()
    plain = objective(features, embedding, labels, progress=0.1)
    assert plain.norms == {}
    assert plain.weights == {"softmax": 1.0, "contrastive": 0.5}
    out = objective(features, embedding, labels, progress=0.1, norms=True)
    for name, loss in objective.losses.items():
        (expected,) = torch.autograd.grad(loss(embedding, labels), features, retain_graph=True)
        assert_close(out.norms[name], expected.norm())
    out.total.backward()  # the graph is still there
    with torch.no_grad():
        assert objective(features, embedding, labels, progress=0.1, norms=True).norms == {}


def test_a_forward_pass_moves_nothing_and_a_step_does():
    objective = build({"name": "gradnorm"})
    features, embedding, labels = batch()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    out = objective(features, embedding, labels, progress=0.1)
    assert_close(objective.state_dict(), before, equal_nan=True)
    objective.after_step(features, embedding, labels)
    first = objective.balance.weights.clone()
    assert not torch.equal(first, before["balance.weights"])
    assert first[2] == 1  # was not active
    objective.after_step(features, embedding, labels)  # the second batch of an accumulated step
    assert torch.equal(objective.balance.weights, first)
    assert_close(out.weights, {"softmax": 1.0, "contrastive": 0.5})


def test_ranks_share_what_they_measured():
    objective, other = build({"name": "gradnorm"}), build({"name": "gradnorm"})
    features, embedding, labels = batch()
    seen = []

    def gather(x, y):  # a second rank that has measured the double
        seen.append(x.shape)
        return torch.cat([x, 2 * x]), torch.cat([y, y])

    objective(features, embedding, labels, progress=0.1)
    objective.after_step(features, embedding, labels, gather)
    assert seen == [(1, 2), (1, 2)]
    other(features, embedding, labels, progress=0.1)
    values, norms, active = other._measured
    other.balance.update(1.5 * values, 1.5 * norms, active)
    assert_close(objective.state_dict(), other.state_dict(), equal_nan=True)


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "gradnorm"])
def test_factors_do_not_depend_on_the_weights_of_the_recipe(name):
    """Neither on constant ones nor on a warm-up: those count beside the factors."""

    def factors(weight):
        terms = [{"loss": "softmax", "weight": weight}, {"loss": "contrastive"}]
        objective = build({"name": name}, terms)
        optimizer = (
            torch.optim.Adam(objective.balance.parameters(), lr=0.1) if name == "uncertainty" else None
        )
        for number in range(20):
            torch.manual_seed(number)
            x = torch.randn(8, FEATURES, requires_grad=True) * (1 + number / 10)
            out = objective(x, x[:, :EMBEDDING], torch.arange(8) // 2, progress=number / 20)
            out.total.backward()
            if optimizer:
                optimizer.step()
                optimizer.zero_grad()
            objective.after_step(x, x[:, :EMBEDDING], torch.arange(8) // 2)
            objective.after_epoch()
        return objective.balance.factors([0, 1])

    plain = factors(1.0)
    assert abs(plain[0] - plain[1]) > 1e-3
    if name == "uncertainty":  # the optimiser sees smaller gradients, and goes where it went
        assert_close(factors(0.01), plain, rtol=0.02, atol=0)
    else:
        assert_close(factors(0.01), plain)
        assert_close(factors({"linear": [0, 1]}), plain)


def test_a_log_variance_stays_while_its_term_has_no_weight():
    terms = [{"loss": "softmax"}, {"loss": "contrastive", "weight": {"steps": {0: 0, 0.5: 1}}}]
    objective = build({"name": "uncertainty"}, terms)
    optimizer = torch.optim.SGD(objective.balance.parameters(), lr=0.5, momentum=0.9)
    for number in range(10):
        optimizer.zero_grad()
        objective(*batch(), progress=number / 20).total.backward()
        optimizer.step()
    s = [variance.item() for variance in objective.balance.log_variances]
    assert s[1] == 0 and s[0] != 0


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "gradnorm"])
def test_a_copy_continues_exactly(name):
    def steps(objective, first, last):
        for number in range(first, last):
            torch.manual_seed(number)
            features = torch.randn(8, FEATURES, requires_grad=True)
            out = objective(features, features[:, :EMBEDDING], torch.arange(8) // 2, progress=0.1 * number)
            out.total.backward()
            objective.after_step(features, features[:, :EMBEDDING], torch.arange(8) // 2)
            if number % 2:
                objective.after_epoch()
                objective.after_validation(0.5)
        return objective

    terms = (TERMS[0], {"loss": "contrastive", "weight": {"plateau": 1, "patience": 1}}, TERMS[2])
    whole = steps(build({"name": name}, terms), 0, 8)
    half = steps(build({"name": name}, terms), 0, 5)
    copy = build({"name": name}, terms)
    copy.load_state_dict(half.state_dict())
    assert_close(steps(copy, 5, 8).state_dict(), whole.state_dict(), rtol=0, atol=0, equal_nan=True)
    assert whole.terms[1].weight(0.0) < 1


def test_scheduled_weights_reach_the_total():
    objective = build(None, [{"loss": "softmax", "weight": {"linear": [0, 2], "to": 0.5}}])
    features, embedding, labels = batch()
    for progress, weight in ((0.0, 0.0), (0.25, 1.0), (1.0, 2.0)):
        out = objective(features, embedding, labels, progress)
        assert_close(out.total, weight * out.terms["softmax"])
        assert out.weights == {"softmax": weight}


def test_class_counts_reach_the_losses_that_want_them(monkeypatch):
    class Counted(nn.Module):
        def __init__(self, class_counts: list[int], bonus: float = 0.0):
            super().__init__()
            self.class_counts = class_counts

    monkeypatch.setitem(LOSSES._classes, "counted", Counted)
    assert Objective.problems([{"loss": "counted"}]) == []
    assert Objective.problems([{"loss": "counted", "class_counts": [1]}])[0][0] == "0.class_counts"
    objective = Objective.from_config([{"loss": "counted"}], 3, FEATURES, EMBEDDING, class_counts=[5, 2, 1])
    assert objective.losses["counted"].class_counts == [5, 2, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("dwa", "expected a mapping such as {name: uncertainty}, got 'dwa'"),
        (
            {"name": "gradnrom"},
            "unknown balance 'gradnrom'; did you mean 'gradnorm'? (one of: dwa, gradnorm, uncertainty)",
        ),
        ({"name": "gradnorm", "lr": 0.0}, "lr: must be positive, got 0.0"),
        ({"name": "dwa", "terms": 3}, "unknown option 'terms' (one of: temperature)"),
        ({"name": "uncertainty", "alpha": 1.0}, "takes no options, got 'alpha'"),
    ],
)
def test_what_a_wrong_balance_gets(options, expected):
    assert balance_problems(options) == [expected]
    assert balance_problems({"name": "dwa"}) == []


def test_a_term_takes_a_number_or_a_function():
    loss = nn.Identity()
    assert Term("a", loss, weight=0.3).weight_at(0.9) == 0.3
    assert Term("a", loss, weight=lambda progress: 2 * progress).weight_at(0.4) == 0.8
