"""Trainings whose batches are compared with a memory: continued, in two processes, with a second network."""

import copy

import pytest
import torch
from run_states import equal_but_for_the_clock, equal_to_the_bit, final_state
from small_recipe import RECIPE
from torch.testing import assert_close
from two_ranks import in_two_ranks

from metricid.losses.objective import Objective
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing
from metricid.training import trainer
from metricid.training.build import check_recipe
from metricid.training.checkpoint import CheckpointStore
from metricid.training.distributed import World, join_batchnorm, wrap_ddp
from metricid.training.module import TrainingModule
from metricid.training.momentum import SlowNetwork
from metricid.training.precision import pick_precision
from metricid.training.session import train

ONE = World(0, 1, torch.device("cpu"))
FP32 = pick_precision("fp32", torch.device("cpu"))
OBJECTIVE = [
    {"loss": "softmax", "label_smoothing": 0.1},
    {"loss": "triplet", "on": "features", "memory": {"size": 20, "warmup": 0.25, "momentum": 0.5}},
    {"loss": "contrastive", "memory": {"size": 44}},
    {"loss": "supcon", "weight": 0.1, "memory": {"size": 30, "momentum": 0.5}},
]


def recipe(folder, **train_section):
    values = copy.deepcopy(RECIPE)
    values["data"]["split"] = {"train_identities": 12}
    return values | {
        "runs": str(folder),
        "objective": copy.deepcopy(OBJECTIVE),
        "optim": {"name": "sgd", "lr": 0.02},
        "train": {"images": 96, "precision": "fp32", "accumulate": 2, **train_section},
        "evaluation": {"protocols": [], "every": 0},
        "checkpoint": {"every_steps": 1, "keep": 100, "every_minutes": None},
        "log": {"every": 1, "report": False},
    }


def pieces(dtype=torch.float64):
    """A network and an objective whose memories hold something."""
    torch.manual_seed(0)
    embedder = Embedder(EmbedderConfig("test_resnet", Preprocessing((32, 32)), neck="bnneck"))
    made = Objective.from_config(
        OBJECTIVE, num_classes=6, feature_dim=embedder.feature_dim, embedding_dim=embedder.embedding_dim
    )
    generator = torch.Generator().manual_seed(3)
    for term in made.terms[1:]:
        memory = term.loss.memory
        rows = torch.randn(memory.size, memory.embeddings.shape[1], generator=generator)
        memory.push(rows, torch.randint(0, 6, (memory.size,), generator=generator))
    return embedder.to(dtype).train(), made.to(dtype)


def images(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 3, 32, 32, generator=generator).to(dtype), torch.arange(16) // 4


def gradients(embedder, objective):
    named = [*embedder.named_parameters(), *objective.named_parameters()]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def on_rank(world, values):
    embedder, objective = pieces()
    join_batchnorm(embedder, world.device)
    module = wrap_ddp(TrainingModule(embedder, objective, FP32, True), world.device, sync_buffers=False)
    x, labels = images()
    part = slice(8 * world.rank, 8 * world.rank + 8)
    module(x[part], labels[part], 0.5)[0].total.backward()
    found = {"gradients": gradients(embedder, objective)}
    for sync in (True, False):
        here = copy.deepcopy(values)
        here["name"] += str(sync)
        here["data"]["sampler"]["identities"] //= 2
        here["train"]["sync_batchnorm"] = sync
        here["checkpoint"]["every_steps"] = None
        kept = []
        run = trainer.Trainer._train
        trainer.Trainer._train = lambda this, kept=kept, run=run: (kept.append(this), run(this))
        train(check_recipe(here, "two"), world)
        trainer.Trainer._train = run
        found[sync] = kept[0].run.objective.state_dict()
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the runs in two processes, and what the ranks ended with."""
    folder = tmp_path_factory.mktemp("two")
    return folder, in_two_ranks(on_rank, recipe(folder))


def memories(state):
    return {name: value for name, value in state.items() if ".memory." in name}


@pytest.mark.timeout(180)
def test_gradients_of_two_processes_against_a_memory_are_those_of_one(two):
    _, ranks = two
    embedder, objective = pieces()
    x, labels = images()
    objective(*embedder(x), labels, 0.5).total.backward()
    expected = gradients(embedder, objective)
    alone = Objective.from_config(
        [{key: value for key, value in term.items() if key != "memory"} for term in OBJECTIVE],
        num_classes=6,
        feature_dim=embedder.feature_dim,
        embedding_dim=embedder.embedding_dim,
    ).to(torch.float64)
    for found in ranks:
        assert found["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(found["gradients"][name], gradient, rtol=1e-9, atol=1e-11, msg=name)
    embedder.zero_grad()
    alone(*embedder(x), labels, 0.5).total.backward()
    name = "backbone.conv1.0.weight"
    assert not torch.allclose(gradients(embedder, alone)[name], expected[name], rtol=0.01)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("sync", [True, False])
def test_all_ranks_hold_the_same_memory(two, sync):
    _, ranks = two
    first, second = (memories(found[sync]) for found in ranks)
    assert len(first) == 9
    equal_to_the_bit(first, second)
    assert first["losses.contrastive.memory._extra_state"] == {
        "pointer": 96 % 44,
        "filled": 44,
        "pushes": 12,
    }


@pytest.mark.timeout(180)
def test_two_processes_hold_what_one_holds(two, tmp_path):
    folder, _ = two
    values = recipe(tmp_path)
    train(check_recipe(values, "one"), ONE)
    one, other = final_state(tmp_path / values["name"]), final_state(folder / f"{values['name']}True")
    for part in ("model", "objective", "slow"):
        assert one[part].keys() == other[part].keys()
        for name, value in one[part].items():
            assert_close(other[part][name], value, atol=1e-4, rtol=1e-4, msg=f"{part}.{name}")


@pytest.mark.parametrize(("precision", "cut"), [("fp32", 1), ("bf16", 4)])
def test_a_resumed_run_ends_bit_identical(tmp_path, precision, cut):
    values = recipe(tmp_path, precision=precision)
    run = tmp_path / values["name"]
    train(check_recipe(values, "whole"), ONE)
    whole = final_state(run)
    held = whole["objective"]["losses.triplet.memory._extra_state"]
    assert held == {"pointer": 96 % 20, "filled": 20, "pushes": 12}
    for path in CheckpointStore(run / "checkpoints", keep=100).steps():
        if int(path.stem.rpartition("-")[2]) > cut:
            path.unlink()
    (run / "results.json").unlink()
    train(check_recipe(values, "again"), ONE)
    again = final_state(run)
    equal_but_for_the_clock(whole, again)
    equal_to_the_bit(whole["slow"], again["slow"])


def test_a_step_that_is_not_finite_leaves_nothing_in_a_memory(tmp_path, monkeypatch):
    values = recipe(tmp_path)
    forward, steps, sizes = TrainingModule.forward, [], []

    def spoiled(this, *arguments, **options):
        output, *places = forward(this, *arguments, **options)
        steps.append(len(this.objective.losses["contrastive"].memory))
        if len(steps) in (5, 6):  # both batches of the third step
            output = output._replace(total=output.total * float("nan"))
        return output, *places

    monkeypatch.setattr(TrainingModule, "forward", spoiled)
    train(check_recipe(values, "spoiled"), ONE)
    sizes = steps[::2]
    assert sizes == [0, 16, 32, 32, 44, 44]


def test_the_slow_network_is_the_average_of_all_weights_and_embeds_each_image_by_itself():
    embedder, _ = pieces(torch.float32)
    slow = SlowNetwork(embedder, 0.75, FP32)
    name = "backbone.conv1.0.weight"
    expected = embedder.state_dict()[name].clone()
    x, _ = images(torch.float32)
    for step in range(3):
        with torch.no_grad():
            for parameter in embedder.parameters():
                parameter.add_(0.1 * (step + 1))
        embedder(x + step)
        slow.update(embedder)
        expected = 0.75 * expected + 0.25 * embedder.state_dict()[name]
    state = slow.state_dict()
    assert_close(state[name], expected)
    statistics = {n: b for n, b in embedder.named_buffers() if "running" in n}
    assert_close({n: state[n] for n in statistics}, statistics, rtol=0, atol=0)
    features, embedding = slow.of(x)
    assert not features.requires_grad and not embedding.requires_grad
    assert_close(slow.of(x[:3])[1], embedding[:3], rtol=1e-4, atol=1e-4)
    equal_to_the_bit(slow.state_dict(), state)
