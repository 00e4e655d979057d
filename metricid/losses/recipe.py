"""The list of terms in a recipe: what may stand in it, and the terms that it describes."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from metricid.losses.adversarial import ADVERSARIAL
from metricid.losses.catalog import LOSSES
from metricid.losses.distillation import DISTILLATION
from metricid.losses.domain import DomainAdversarialLoss
from metricid.losses.regression import TASKS
from metricid.losses.remembered import MemoryOptions, RememberedLoss
from metricid.losses.schedules import build_weight
from metricid.losses.side_terms import (
    AttributeTask,
    CategoryTask,
    Distillation,
    DomainConfusion,
    MaskTask,
    NetworkPenalty,
    NumberTask,
    Perturbed,
    WeightPenalty,
    class_vectors,
)
from metricid.losses.term import Place, Term
from metricid.losses.weights import REGULARISERS
from metricid.registry import Registry

NETWORK = "network"
ON_LOGITS = ("virtual_adversarial", "trades", "logit_distillation")

# What the training knows and gives to the losses that want it, with values that stand for them in a check.
GIVEN: dict[str, Any] = {"num_classes": 2, "embedding_dim": 2, "class_counts": [1, 1]}
_PIXELS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
GIVEN_BY_KIND: dict[str, dict[str, Any]] = {
    "distillation loss": {"embedding_dim": 2, "teacher_dim": 3},
    "adversarial loss": {"embedding_dim": 2, "num_domains": 2, **_PIXELS},
}
KEYS: dict[str, Any] = {
    "name": str,
    "weight": Any,
    "on": Place,
    "start": float,
    "end": float,
}
# Further keys of the terms that read more than embeddings and labels.
SIDE_KEYS: dict[str, Any] = {
    "of": str,
    "teacher": str,
    "task": Literal["category", "attributes", "number", "mask"],
    "column": str,
    "columns": list[str],
    "memory": Any,
    "gather": bool,
}
TASK_LOSSES = {
    "category": "softmax",
    "attributes": "binary_cross_entropy",
    "number": "smooth_l1",
    "mask": "dice",
}


@dataclass(frozen=True)
class Column:
    """What the training data say of a manifest column.

    Attributes:
        counts: images of each class of a category, or of each domain.
        mean: of the known values of a number.
        std: of the same, > 0.
    """

    counts: Sequence[int] = ()
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Facts:
    """What the training knows when it builds the terms of a recipe.

    Attributes:
        num_classes: identities.
        feature_dim: width of the features, before the neck.
        embedding_dim: width of the embedding, after the neck.
        class_counts: images of each identity, if known.
        columns: by `column_key`, for the terms that name columns.
        teachers: width of each teacher's embedding, by what the terms call it.
        mean: per channel, as images are normalised.
        std: per channel.
        map_channels: of the network's feature map; None if it has none.
    """

    num_classes: int
    feature_dim: int
    embedding_dim: int
    class_counts: Sequence[int] | None = None
    columns: Mapping[str, Column] = field(default_factory=dict)
    teachers: Mapping[str, int] = field(default_factory=dict)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    map_channels: int | None = None


def column_key(options: Mapping[str, Any]) -> str | None:
    """Under which name a term finds its column or columns, or None if it reads none."""
    if "columns" in options:
        return ",".join(options["columns"])
    if "task" in options or options.get("loss") == "domain_adversarial":
        return options.get("column", "camera")
    return None


def build_terms(terms: Sequence[Mapping[str, Any]], facts: Facts) -> list[Term]:
    """The terms of a list without problems.

    Raises:
        ValueError: `facts` lacks a column or a teacher that a term names.
    """
    built = []
    names = term_names(terms)
    for place, (name, options) in enumerate(zip(names, terms, strict=True)):
        own = {key: options[key] for key in KEYS if key in options and key != "name"}
        if "gather" in options and "gather" not in loss_options(options):
            own["gather"] = options["gather"]
        if "weight" in own:
            own["weight"] = build_weight(own["weight"])
        dim = facts.feature_dim if own.get("on") == "features" else facts.embedding_dim
        built.append(Term(name=name, loss=_build_loss(options, terms, names, place, dim, facts), **own))
    return built


def _build_loss(
    options: Mapping[str, Any],
    terms: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    place: int,
    dim: int,
    facts: Facts,
) -> nn.Module:
    chosen = loss_options(options)
    registry = registry_of(options)
    if options.get("task") == "mask":
        if facts.map_channels is None:
            raise ValueError(
                "task mask needs a backbone with a feature map in two dimensions, such as resnet18, "
                "and model.pooling avg or gem"
            )
        return MaskTask(registry.build(chosen), column_key(options) or "", facts.map_channels)
    if "task" in options:
        column = _column(options, facts)
        count, what = len(column.counts), f"classes of column {options.get('column')}"
        if options["task"] == "attributes":
            count, what = len(options["columns"]), "columns"
        _check_lengths(registry, chosen, place, count, what)
        return _build_task(options, chosen, registry, dim, column)
    if registry is LOSSES:
        _check_lengths(registry, chosen, place, facts.num_classes, "identities of the training")
        given = {"num_classes": facts.num_classes, "class_counts": facts.class_counts}
        loss = LOSSES.build(chosen, embedding_dim=dim, **given)
        if "memory" in options:
            return RememberedLoss(loss, dim, MemoryOptions(**options["memory"]))
        return loss
    if registry is REGULARISERS:
        if options.get("of") == NETWORK:
            return NetworkPenalty(REGULARISERS.build(chosen))
        return WeightPenalty(REGULARISERS.build(chosen), names[partner(terms, place)])
    if registry is DISTILLATION:
        teacher = options["teacher"]
        if teacher not in facts.teachers:
            raise ValueError(f"objective.{place}.teacher: {teacher!r} was not given")
        loss = DISTILLATION.build(chosen, embedding_dim=dim, teacher_dim=facts.teachers[teacher])
        on_logits = options["loss"] in ON_LOGITS
        return Distillation(loss, teacher, names[partner(terms, place)] if on_logits else None)
    if options["loss"] == "domain_adversarial":
        domains = len(_column(options, facts).counts)
        branch: DomainAdversarialLoss = ADVERSARIAL.build(chosen, num_domains=domains, embedding_dim=dim)
        return DomainConfusion(branch, column_key(options) or "")
    perturbed = ADVERSARIAL.build(chosen, mean=facts.mean, std=facts.std)
    return Perturbed(perturbed, names[partner(terms, place)])


def _check_lengths(registry: Registry, chosen: Mapping[str, Any], place: int, count: int, what: str) -> None:
    """Options with one number for each class (`per_class` of a loss); the data say how many there are."""
    for name in getattr(registry.get(chosen["loss"]), "per_class", ()):
        values = chosen.get(name)
        if isinstance(values, Sequence) and len(values) != count:
            raise ValueError(f"objective.{place}.{name}: has {len(values)} numbers for the {count} {what}")


def _build_task(
    options: Mapping[str, Any], chosen: Mapping[str, Any], registry: Registry, dim: int, column: Column
) -> nn.Module:
    key = column_key(options) or ""
    if options["task"] == "number":
        return NumberTask(registry.build(chosen), key, dim, column.mean, column.std)
    if options["task"] == "attributes":
        return AttributeTask(
            registry.build(chosen, num_classes=len(options["columns"]), embedding_dim=dim), key
        )
    given = {"num_classes": len(column.counts), "class_counts": column.counts, "embedding_dim": dim}
    return CategoryTask(registry.build(chosen, **given), key)


def _column(options: Mapping[str, Any], facts: Facts) -> Column:
    key = column_key(options) or ""
    if key not in facts.columns:
        raise ValueError(f"the objective needs column {key!r}, which was not given")
    return facts.columns[key]


def registry_of(options: Mapping[str, Any]) -> Registry:
    """Where the loss of a term is registered; `LOSSES` for an unknown name."""
    if "task" in options:
        return TASKS if options["task"] in ("number", "mask") else LOSSES
    known = (registry for registry in (REGULARISERS, DISTILLATION, ADVERSARIAL) if _has(registry, options))
    return next(known, LOSSES)


def _has(registry: Registry, options: Mapping[str, Any]) -> bool:
    return options.get("loss") in registry.names()


def loss_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The name of the loss and its own options; a task without a loss takes the usual one."""
    task = options.get("task")
    taken = {*KEYS, *SIDE_KEYS}
    if task is None and _has(LOSSES, options):  # one of its options may have the name of a side key
        taken -= inspect.signature(LOSSES.get(options["loss"])).parameters.keys()
    own = {key: value for key, value in options.items() if key not in taken}
    if task is not None:
        own = {"loss": TASK_LOSSES[task], **own}
        if task == "attributes" and own["loss"] == "focal":
            own = {"form": "binary", **own}
    return own


def term_names(terms: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each term: its own, else that of its column or loss, with a number from the second on."""
    taken = {options["name"] for options in terms if "name" in options}
    names = []
    for options in terms:
        name = options.get("name")
        if name is None:
            plain = options["loss"] if "task" not in options else options.get("column", "attributes")
            plain = re.sub(r"[^A-Za-z0-9_-]", "_", plain)
            name, number = plain, 1
            while name in taken or hasattr(nn.ModuleDict(), name):
                number += 1
                name = f"{plain}_{number}"
        taken.add(name)
        names.append(name)
    return names


def needs_partner(options: Mapping[str, Any]) -> bool:
    """Whether a term is about another one."""
    if "task" in options:
        return False
    if registry_of(options) is REGULARISERS:
        return options.get("of") != NETWORK
    return options["loss"] in ON_LOGITS


def partner(terms: Sequence[Mapping[str, Any]], place: int) -> int:
    """The place of the term that this one is about: the one named, else the first that fits; -1 if none."""
    loss, of = terms[place]["loss"], terms[place].get("of")
    named = enumerate(zip(term_names(terms), terms, strict=True))
    found = (i for i, (name, other) in named if of in (None, name) and offers(other, loss))
    return next(found, -1)


def offers(options: Mapping[str, Any], loss: str) -> bool:
    """Whether a term has what `loss` is about: logits of identities, or vectors of classes."""
    if "task" in options or not _has(LOSSES, options):
        return False
    if loss in ON_LOGITS:
        return hasattr(LOSSES.get(options["loss"]), "logits")
    with torch.device("meta"):  # no memory and no random numbers
        return class_vectors(LOSSES.build(loss_options(options), **GIVEN)) is not None
