"""Gradients without conflicts: a step against one by hand, and two processes against one."""

from typing import NamedTuple

import pytest
import torch
from run_states import final_state
from torch import nn
from torch.testing import assert_close
from two_ranks import in_two_ranks

from metricid.errors import InputError
from metricid.losses.objective import Objective
from metricid.losses.recipe import Column
from metricid.losses.term import Side, Taught
from metricid.training.distributed import World, join_batchnorm, wrap_ddp
from metricid.training.module import TrainingModule
from metricid.training.precision import pick_precision
from metricid.training.surgery import GradientSurgery

ONE = World(0, 1, torch.device("cpu"))
FP32 = pick_precision("fp32", torch.device("cpu"))


def by_hand(rows, orders):
    """Yu et al., NeurIPS 2020, algorithm 1."""
    total = torch.zeros_like(rows[0])
    for i, order in enumerate(orders):
        g = rows[i].clone()
        for j in order:
            along = g @ rows[j]
            if along < 0:
                g -= along / (rows[j] @ rows[j]) * rows[j]
        total += g
    return total


def small_net():
    torch.manual_seed(0)
    shared = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    shared.to(memory_format=torch.channels_last)
    heads = nn.ModuleList([nn.Linear(2, 1) for _ in range(3)]).double()
    return shared, heads, torch.randn(6, 2, 4, 4, dtype=torch.float64)


def parts_of(shared, heads, x):
    """Three losses that pull at the same two outputs."""
    y = shared(x)
    parts = [
        (head(y).squeeze(1) - target).square().mean() for head, target in zip(heads, (3, -3, 0), strict=False)
    ]
    parts[-1] = 2 * parts[-1] + heads[-1].bias.sum()
    return torch.stack(parts)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def test_a_step_is_the_algorithm_on_what_is_shared_and_a_sum_elsewhere():
    shared, heads, x = small_net()
    surgery = GradientSurgery(shared.parameters(), heads.parameters(), ONE, seed=5)
    conflicts = 0
    for step in range(4):
        parts = parts_of(shared, heads, x)
        rows = [
            flat(torch.autograd.grad(part, list(shared.parameters()), retain_graph=True)) for part in parts
        ]
        own = torch.autograd.grad(parts.sum(), list(heads.parameters()))
        orders = surgery._orders(3, step)
        assert [sorted([i, *order]) for i, order in enumerate(orders)] == [[0, 1, 2]] * 3
        for parameter in heads.parameters():
            parameter.grad = None
        surgery.add(parts_of(shared, heads, x))
        surgery.finish(step)
        assert_close(flat(p.grad for p in shared.parameters()), by_hand(rows, orders))
        assert_close([p.grad for p in heads.parameters()], list(own))
        conflicts += int(not torch.allclose(by_hand(rows, orders), sum(rows)))
        nn.utils.clip_grad_norm_([*shared.parameters(), *heads.parameters()], 1e-3)  # in place
        with torch.no_grad():
            for parameter in (*shared.parameters(), *heads.parameters()):
                parameter -= 50 * parameter.grad
    assert conflicts == 4


def test_orders_differ_by_step_and_seed_and_come_again():
    surgery, again, other = (GradientSurgery([], [], ONE, seed) for seed in (1, 1, 2))
    drawn = [surgery._orders(4, step) for step in range(8)]
    assert drawn == [again._orders(4, step) for step in range(8)]
    assert len({str(orders) for orders in drawn}) > 4
    assert drawn != [other._orders(4, step) for step in range(8)]


def test_accumulated_batches_are_one_batch():
    shared, heads, x = small_net()
    whole = GradientSurgery(shared.parameters(), heads.parameters(), ONE, seed=0)
    whole.add(parts_of(shared, heads, x))
    whole.finish(3)
    expected = [p.grad for p in (*shared.parameters(), *heads.parameters())]
    for parameter in (*shared.parameters(), *heads.parameters()):
        parameter.grad = None
    for half in (x[:3], x[3:]):
        whole.add(parts_of(shared, heads, half) / 2)
    whole.finish(3)
    assert_close([p.grad for p in (*shared.parameters(), *heads.parameters())], expected)


def test_frozen_and_unread_parameters_are_left_alone():
    shared, heads, x = small_net()
    shared[0].weight.requires_grad_(False)
    surgery = GradientSurgery(shared.parameters(), heads.parameters(), ONE, seed=0)
    surgery.add(parts_of(shared, heads[:1], x))
    surgery.finish(0)
    assert shared[0].weight.grad is None
    assert heads[1].weight.grad is None
    plain = torch.autograd.grad(parts_of(shared, heads[:1], x).sum(), shared[3].weight)[0]
    assert_close(shared[3].weight.grad, plain)


def test_runs_without_conflicts_end_as_with_the_sum(small):
    """With one term there is nothing to conflict; with two that do, the network goes another way."""
    small.set(train={"images": 32, "precision": "fp32", "accumulate": 2}, evaluation__every=0)
    small.set(optim={"name": "sgd", "lr": 0.05}, log__report=False, data__augment={"preset": "plain"})
    ends = {}
    for terms in (
        [{"loss": "softmax"}],
        [{"loss": "softmax"}, {"loss": "feature_norm", "on": "features", "weight": 0.01}],
    ):
        for gradients in ("sum", "pcgrad"):
            name = f"{gradients}{len(terms)}"
            small.set(name=name, objective=terms, train__gradients=gradients).train()
            ends[name] = final_state(small.run)
    assert_close(ends["sum1"]["model"], ends["pcgrad1"]["model"], atol=1e-6, rtol=1e-4)
    assert_close(ends["sum1"]["objective"], ends["pcgrad1"]["objective"], atol=1e-6, rtol=1e-4)
    end = {name: flat(v for v in state["model"].values() if v.ndim > 1) for name, state in ends.items()}
    noise = torch.dist(end["sum1"], end["pcgrad1"])
    assert torch.dist(end["sum2"], end["pcgrad2"]) > 1e-4 + 100 * noise


def test_compile_and_pcgrad_exclude_each_other(small):
    with pytest.raises(InputError, match="pcgrad goes back through the network for each term, which compile"):
        small.set(train__gradients="pcgrad", train__compile=True).config()


TERMS = [
    {"loss": "softmax", "label_smoothing": 0.1},
    {"loss": "triplet", "on": "features", "miner": "batch_hard"},
    {"loss": "feature_norm", "on": "features", "radius": 1.0, "weight": 0.1},
    {"loss": "regularface"},
    {"loss": "l2", "of": "network", "weight": 0.01},
    {"loss": "rkd_distance", "teacher": "t"},
    {"loss": "embedding_distillation", "teacher": "t"},
    {"loss": "domain_adversarial", "hidden": [8], "on": "features"},
    {"loss": "arcface", "name": "later", "start": 0.9},
]
STATEFUL = [
    {"loss": "curricularface", "scale": 16.0},
    {"loss": "adaface", "scale": 16.0},
    {"loss": "adacos"},
    {"loss": "sphereface", "anneal_start": 10.0, "anneal_gamma": 1.0},
    {"loss": "magface", "scale": 16.0, "norm_low": 1.0, "norm_high": 20.0, "regulariser": 1.0},
    {"loss": "center", "on": "features", "update": "alpha"},
]
RANDOM = [{"loss": "elasticface", "scale": 16.0}]
PERTURBED = [{"loss": "softmax"}, {"loss": "virtual_adversarial"}, {"loss": "trades", "steps": 1}]
CASES = {"pcgrad": TERMS, "stateful": STATEFUL, "random": RANDOM, "perturbed": PERTURBED}


class Both(NamedTuple):
    features: torch.Tensor
    embedding: torch.Tensor


class Network(nn.Module):
    """Images [B, 8, 8, 3] to features and embedding, normalised over the batch in two places."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 4, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
        self.linear, self.neck = nn.Linear(144, 16), nn.BatchNorm1d(16)

    def normalize(self, images):
        return images.permute(0, 3, 1, 2)

    def forward(self, images):
        x = images if images.shape[1] == 3 else self.normalize(images)
        features = self.linear(self.backbone(x))
        return Both(features, self.neck(features))


def build(terms):
    torch.manual_seed(0)
    network = Network()
    objective = Objective.from_config(
        terms, 6, 16, 16, columns={"camera": Column((1, 1, 1))}, teachers={"t": 12}
    )
    return network.double().train(), objective.double().train()


def batches():
    """Four batches of 16: images, labels, cameras that are known to one rank alone, and a teacher."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(4):
        images = torch.randn(16, 8, 8, 3, generator=generator).double()
        cameras = torch.randint(0, 3, (16,), generator=generator)
        cameras[6:] = -1
        taught = torch.randn(16, 12, generator=generator).double()
        found.append((images, torch.arange(16) // 4, cameras, taught))
    return found


def side_of(cameras, taught):
    return Side(columns={"camera": cameras}, teachers={"t": Taught(taught)})


def pcgrad_steps(module, embedder, objective, world, part):
    """Two steps of two batches each; the gradients of the last one."""
    surgery = GradientSurgery(embedder.parameters(), objective.parameters(), world, seed=7)
    parameters = [p for p in (*embedder.parameters(), *objective.parameters()) if p.requires_grad]
    given = batches()
    for step in range(2):
        for parameter in parameters:
            parameter.grad = None
        for batch in given[2 * step : 2 * step + 2]:
            images, labels, cameras, taught = (x[part] for x in batch)
            output, _, _ = module(images, labels, 0.5, False, side_of(cameras, taught))
            surgery.add(output.parts / 2)
        surgery.finish(step)
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    named = {f"embedder.{n}": p for n, p in embedder.named_parameters()}
    named |= {f"objective.{n}": p for n, p in objective.named_parameters()}
    return {n: p.grad.clone() for n, p in named.items() if p.grad is not None}


def stateful_steps(module, objective, gather, part):
    """Three steps; the state of the losses after them."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for images, labels, _, _ in batches()[:3]:
        for parameter in parameters:
            parameter.grad = None
        output, features, embedding = module(images[part], labels[part], 0.5)
        output.total.backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.01 * parameter.grad
        objective.after_step(features, embedding, labels[part], gather)
    return {name: value.clone() for name, value in objective.state_dict().items()}


def on_rank(world):
    part = slice(8 * world.rank, 8 * world.rank + 8)
    found = {}
    for name, terms in CASES.items():
        embedder, objective = build(terms)
        join_batchnorm(embedder, world.device)
        module = TrainingModule(embedder, objective, FP32, True)
        wrapped = wrap_ddp(module, world.device, sync_buffers=False)
        torch.manual_seed(world.rank)  # as in a training, ranks draw unlike numbers
        if name == "perturbed":
            images, labels, _, _ = batches()[0]
            wrapped(images[part], labels[part], 0.5)[0].total.backward()
            found[name] = (embedder.state_dict(), {n: p.grad for n, p in wrapped.named_parameters()})
        elif name == "pcgrad":
            with wrapped.no_sync():
                found[name] = pcgrad_steps(wrapped, embedder, objective, world, part)
        else:
            found[name] = stateful_steps(wrapped, objective, module.gather, part)
    return found


@pytest.fixture(scope="module")
def ranks():
    return in_two_ranks(on_rank)


@pytest.mark.timeout(180)
def test_two_processes_step_as_one_on_the_joined_batch(ranks):
    embedder, objective = build(TERMS)
    module = TrainingModule(embedder, objective, FP32, False)
    expected = pcgrad_steps(module, embedder, objective, ONE, slice(None))
    for rank in (0, 1):
        found = ranks[rank]["pcgrad"]
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.dist(found[name], gradient) <= 1e-8 * gradient.norm() + 1e-10, name
    assert "objective.losses.later.weight" not in expected
    for name in ("losses.softmax.weight", "losses.domain_adversarial.loss.network.0.weight"):
        assert expected[f"objective.{name}"].norm() > 1e-3
    assert expected["embedder.backbone.0.weight"].norm() > 1e-2


@pytest.mark.timeout(180)
def test_losses_with_a_state_hold_that_of_the_joined_batch_on_every_rank(ranks):
    embedder, objective = build(STATEFUL)
    start = {name: value.clone() for name, value in objective.state_dict().items()}
    module = TrainingModule(embedder, objective, FP32, False)
    expected = stateful_steps(module, objective, None, slice(None))
    for rank in (0, 1):
        assert_close(ranks[rank]["stateful"], expected, atol=1e-8, rtol=1e-7)
    still = [name for name, value in expected.items() if torch.equal(value, start[name])]
    moving = {name.split(".")[1] for name in expected if name not in still and not name.endswith("weight")}
    assert moving == {"curricularface", "adaface", "adacos", "sphereface", "center"}, still


@pytest.mark.timeout(180)
def test_perturbed_images_leave_the_joined_statistics_alone_but_for_the_pass_that_counts(ranks):
    states = [ranks[rank]["perturbed"][0] for rank in (0, 1)]
    gradients = [ranks[rank]["perturbed"][1] for rank in (0, 1)]
    assert_close(states[0], states[1], rtol=0, atol=0)
    assert states[0]["neck.num_batches_tracked"] == 2  # the clean images, and those of TRADES
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients[0].values())


@pytest.mark.timeout(180)
def test_margins_drawn_by_each_rank_leave_one_classifier(ranks):
    first, second = (ranks[rank]["random"] for rank in (0, 1))
    assert_close(first, second, rtol=0, atol=0)
    torch.manual_seed(0)
    embedder, objective = build(RANDOM)
    other = stateful_steps(TrainingModule(embedder, objective, FP32, False), objective, None, slice(None))
    weight = "losses.elasticface.weight"
    assert_close(first[weight], other[weight], atol=0.05, rtol=0)
    assert not torch.allclose(first[weight], other[weight], atol=1e-7)
