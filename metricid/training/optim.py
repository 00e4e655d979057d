"""Optimisers, learning-rate schedules, and the moving average of the weights."""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import torch
from torch import nn

from metricid.config import OptimConfig

M = TypeVar("M", bound=nn.Module)


def parameter_groups(embedder: nn.Module, losses: Mapping[str, nn.Module], config: OptimConfig) -> list[dict]:
    """Sorts the trained parameters into groups: decayed or not, of the embedder or of one loss.

    Vectors and scalars (norms, biases, exponents) are not decayed, nor is what a module names in
    `no_weight_decay`: a loss its centers (pulling them to zero is no prior), a timm transformer its tokens
    and positions. Each loss has its own groups, because a
    fused optimiser wants all parameters of a group to have started together.

    Args:
        embedder: the model.
        losses: the terms of the objective by name.
        config: its `head_lr` scales the learning rate of the losses.
    """
    parts = [("embedder", embedder, 1.0)]
    parts += [(f"objective.{name}", loss, config.head_lr) for name, loss in losses.items()]
    groups = []
    for origin, module, scale in parts:
        exempt = _exempt(module)
        trained = [p for p in module.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1 and id(p) not in exempt]
        plain = [p for p in trained if p.ndim <= 1 or id(p) in exempt]
        for parameters, decay, kind in ((decayed, config.weight_decay, "decay"), (plain, 0.0, "no_decay")):
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "weight_decay": decay,
                        "lr": config.lr * scale,
                        "lr_scale": scale,
                        "name": f"{origin}.{kind}",
                    }
                )
    return groups


def _exempt(module: nn.Module) -> set[int]:
    """The parameters that some part names, by an attribute (our losses) or a method (timm)."""
    found = set()
    for part in module.modules():
        named = getattr(part, "no_weight_decay", ())
        own = dict(part.named_parameters())
        found |= {id(own[name]) for name in (named() if callable(named) else named) if name in own}
    return found


def build_optimizer(groups: list[dict], config: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of the recipe; one fused kernel per step on every device that has one."""
    fused = {"fused": True} if device.type in ("cuda", "cpu") else {"foreach": True}
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, **fused)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, **fused)


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The factor on the learning rate at a share of the training; pure, so a resumed run continues it.

    Args:
        config: schedule, warmup, final_lr, power, milestones, gamma.
        progress: steps done / steps in all, in [0, 1].

    Example:
        >>> round(learning_rate(OptimConfig(schedule="cosine", warmup=0.0), 0.5), 6)
        0.5
    """
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)
    done = (progress - config.warmup) / max(1.0 - config.warmup, 1e-12)
    if config.schedule == "cosine":
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if config.schedule == "poly":
        return config.final_lr + (1 - config.final_lr) * max(1.0 - done, 0.0) ** config.power
    if config.schedule == "multistep":
        return config.gamma ** sum(progress >= milestone for milestone in config.milestones)
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, progress: float) -> float:
    """Sets the rate of every group; returns that of the embedder."""
    rate = config.lr * learning_rate(config, progress)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate


class WeightAverage(Generic[M]):
    """Exponential moving average of a model's weights; buffers are copied.

    The decay rises as (1 + n) / (10 + n) with the number of updates n, so that the average of a short run is
    not dominated by its random start.

    Args:
        model: the model to follow.
        decay: the final decay.
        rising: False takes the final decay from the first update on.
    """

    def __init__(self, model: M, decay: float, *, rising: bool = True):
        self.decay, self.rising = decay, rising
        self.updates = 0
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's current weights."""
        self.updates += 1
        rising = (1 + self.updates) / (10 + self.updates)
        decay = min(self.decay, rising) if self.rising else self.decay
        torch._foreach_lerp_(list(self.model.parameters()), _detached(model.parameters()), 1.0 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


def _detached(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in tensors]
