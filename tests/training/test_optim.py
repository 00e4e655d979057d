"""Schedules against their formulas, parameter groups, the weight average."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from metricid.config import OptimConfig
from metricid.training.optim import (
    WeightAverage,
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)


@pytest.mark.parametrize("progress", [0.1, 0.35, 0.7, 1.0])
def test_schedules_equal_their_formulas(progress):
    options = {"warmup": 0.1, "final_lr": 0.02}
    done = (progress - 0.1) / 0.9
    cosine = OptimConfig(schedule="cosine", **options)
    assert learning_rate(cosine, progress) == pytest.approx(0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
    poly = OptimConfig(schedule="poly", power=3.0, **options)
    assert learning_rate(poly, progress) == pytest.approx(0.02 + 0.98 * (1 - done) ** 3)
    steps = OptimConfig(schedule="multistep", milestones=[0.3, 0.6], gamma=0.1, **options)
    assert learning_rate(steps, progress) == pytest.approx(
        {0.1: 1, 0.35: 0.1, 0.7: 0.01, 1.0: 0.01}[progress]
    )
    assert learning_rate(OptimConfig(schedule="constant", **options), progress) == 1.0


def test_warmup_rises_linearly_and_never_stands_still():
    config = OptimConfig(warmup=0.2)
    assert learning_rate(config, 0.1) == pytest.approx(0.5)
    assert learning_rate(config, 0.0) > 0
    assert learning_rate(config, 0.2) == pytest.approx(1.0)


def test_norms_biases_and_exempt_parameters_are_not_decayed():
    embedder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    objective = nn.Linear(3, 5, bias=False)
    objective.no_weight_decay = ("weight",)
    config = OptimConfig(lr=0.1, head_lr=10.0, weight_decay=0.3)
    groups = {g["name"]: g for g in parameter_groups(embedder, {"center": objective}, config)}
    assert set(groups) == {"embedder.decay", "embedder.no_decay", "objective.center.no_decay"}
    assert [p.ndim for p in groups["embedder.decay"]["params"]] == [2]
    assert len(groups["embedder.no_decay"]["params"]) == 3
    assert groups["objective.center.no_decay"]["lr"] == pytest.approx(1.0)
    optimizer = build_optimizer(list(groups.values()), config, torch.device("cpu"))
    set_learning_rate(optimizer, config, 1.0)
    assert all(g["lr"] == pytest.approx(0.0, abs=1e-9) for g in optimizer.param_groups)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_each_optimiser_steps_as_its_plain_form_does(name):
    plain = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
    }[name]
    torch.manual_seed(0)
    mine, theirs = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    theirs.load_state_dict(mine.state_dict())
    config = OptimConfig(name=name, lr=0.1, weight_decay=0.01)
    first = build_optimizer(parameter_groups(mine, {}, config), config, torch.device("cpu"))
    second = plain(theirs.parameters())
    x = torch.randn(8, 4)
    for _ in range(5):
        for model, optimizer in ((mine, first), (theirs, second)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert_close(mine.weight, theirs.weight)


def test_the_weight_average_equals_its_recursion():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.5)
    expected = model.weight.detach().clone()
    for n in range(1, 9):
        with torch.no_grad():
            model.weight.add_(1.0)
            model.running_mean.add_(1.0)
        average.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert_close(average.model.weight, expected)
    assert_close(average.model.running_mean, model.running_mean)
    assert not average.model.weight.requires_grad


def test_tokens_and_positions_of_a_timm_transformer_are_not_decayed():
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    groups = {g["name"]: g for g in parameter_groups(nn.ModuleDict({"net": backbone}), {}, OptimConfig())}
    plain = {id(p) for p in groups["embedder.no_decay"]["params"]}
    named = dict(backbone.named_parameters())
    assert {"pos_embed", "cls_token"} == {n for n, p in named.items() if p.ndim > 1 and id(p) in plain}
    assert sum(len(g["params"]) for g in groups.values()) == len(named)
