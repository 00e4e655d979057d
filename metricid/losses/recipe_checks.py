"""What is wrong with the list of terms in a recipe, all at once."""

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from metricid.losses.adversarial import ADVERSARIAL
from metricid.losses.catalog import LOSSES
from metricid.losses.checks import OptionError
from metricid.losses.distillation import DISTILLATION
from metricid.losses.recipe import (
    GIVEN,
    GIVEN_BY_KIND,
    KEYS,
    NETWORK,
    ON_LOGITS,
    SIDE_KEYS,
    loss_options,
    needs_partner,
    offers,
    partner,
    registry_of,
    term_names,
)
from metricid.losses.regression import TASKS
from metricid.losses.remembered import memory_problems, takes_memory
from metricid.losses.schedules import weight_problems
from metricid.losses.weights import REGULARISERS
from metricid.registry import Registry, describe, matches, signature_problems, unknown

OF_NETWORK = ("l1", "l2")
WHERE_THE_LOSSES_ARE = "all: docs/losses.md, or python -m metricid.losses.table --names"
IN_OWN_LOOPS = ("gan_discriminator", "gan_generator")


def list_problems(terms: Any) -> list[tuple[str, str]]:
    """What is wrong with the list of a recipe, all at once, without building it.

    Returns:
        (path, message) pairs; the path is relative to the list: '' for the list itself, '1' for its
        second term, '1.margin' for an option of it. Empty if `build_terms` can build it.
    """
    if not isinstance(terms, Sequence) or isinstance(terms, str) or not terms:
        return [("", "needs a list of at least one term, such as [{loss: softmax}]")]
    found = []
    for index, options in enumerate(terms):
        if not isinstance(options, Mapping):
            found.append((str(index), f"expected a mapping such as {{loss: softmax}}, got {options!r}"))
            continue
        found += [(f"{index}.{key}".rstrip("."), text) for key, text in _term_problems(options)]
    if not found:
        found = _name_problems(terms) + _gap_problems(terms)
        found += _momentum_problems(terms) + _mask_problems(terms)
    return found or _partner_problems(terms) or _idle_problems(terms)


def _term_problems(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, message) pairs of one term; the key is '' where the term as a whole is meant."""
    found = []
    for key, hint in (KEYS | SIDE_KEYS).items():
        if key in options and not matches(options[key], hint):
            found.append((key, f"expected {describe(hint)}, got {options[key]!r}"))
    wrong = {key for key, _ in found}
    found += [("weight", text) for text in weight_problems(options.get("weight", 1.0))]
    if not wrong & {"start", "end"}:
        start, end = options.get("start", 0.0), options.get("end", 1.0)
        if not 0 <= start < end <= 1:
            key = "start" if "start" in options else "end"
            found.append((key, f"needs 0 <= start < end <= 1, got {start} to {end}"))
    name = options.get("name", "x")
    if "name" not in wrong and (not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict(), name)):
        found.append(
            ("name", f"{name!r} cannot be a name: take letters, digits, '_' and '-', such as 'id_loss'")
        )
    if wrong & SIDE_KEYS.keys():
        return found
    return found + _loss_problems(options)


def _loss_problems(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The loss by name, the keys that its kind of term takes, and its own options."""
    chosen, registry = loss_options(options), registry_of(options)
    loss = chosen.get("loss")
    if not isinstance(loss, str) or loss not in registry.names():
        return [("loss", _unknown_loss(chosen, registry))]
    if loss in IN_OWN_LOOPS:
        return [
            (
                "loss",
                f"{loss} needs a discriminator with steps of its own, which a loop of yours can give it; "
                "in a recipe take domain_adversarial with form: minimax or hinge",
            )
        ]
    cls = registry.get(loss)
    if "task" in options:
        found = _task_problems(options, cls, chosen)
        takes = {"attributes": {"columns"}}.get(options["task"], {"column"})
    else:
        found = []
        takes = _side_keys(loss, registry)
        if registry is DISTILLATION and "teacher" not in options:
            found.append(
                ("teacher", "is required: a run folder or checkpoint of metricid, or stored embeddings")
            )
        if registry is REGULARISERS and options.get("of") == NETWORK and loss not in OF_NETWORK:
            found.append(("of", f"{loss} takes one matrix, such as the class vectors of a term; name a term"))
        if "on" in options and (registry is REGULARISERS or loss in ON_LOGITS):
            reads = "weights" if registry is REGULARISERS else "what the term with the logits reads"
            found.append(("on", f"is not for loss {loss}, which reads {reads}; leave it out"))
    found += [
        (key, f"is not for {'task' if 'task' in options else 'loss'} {options.get('task', loss)}")
        for key in SIDE_KEYS
        if key in options and key not in {*takes, *chosen, "task"}
    ]
    if "memory" in options and "memory" in takes:
        found += memory_problems(options)
    return found + _option_problems(cls, chosen, GIVEN_BY_KIND.get(registry.kind, GIVEN), takes)


def _unknown_loss(chosen: Mapping[str, Any], registry: Registry) -> str:
    loss = chosen.get("loss")
    if registry is TASKS:
        return registry.problems(chosen)[0]
    if not isinstance(loss, str):
        return f"needs the key 'loss', the name of one, such as softmax ({WHERE_THE_LOSSES_ARE})"
    if loss in TASKS.names():
        return f"{loss!r} is for a number in a manifest column; add task: number and column: ..."
    everything = sorted(
        {name for known in (LOSSES, REGULARISERS, DISTILLATION, ADVERSARIAL) for name in known.names()}
        - set(IN_OWN_LOOPS)
    )
    near = difflib.get_close_matches(loss, everything, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown loss {loss!r}{hint} ({WHERE_THE_LOSSES_ARE}; your own: set METRICID_IMPORT=its_module)"


def _side_keys(loss: str, registry: Registry) -> set[str]:
    own = {"gather"} if getattr(registry.get(loss), "pairwise", False) else set()
    if registry is DISTILLATION:
        return own | ({"teacher", "of"} if loss in ON_LOGITS else {"teacher"})
    if registry is ADVERSARIAL:
        return {"of"} if loss in ON_LOGITS else {"column"}
    if registry is LOSSES:
        return own | ({"memory"} if takes_memory(LOSSES.get(loss)) else set())
    return {"of"} if registry is REGULARISERS else set()


def _task_problems(options: Mapping[str, Any], cls: type, chosen: Mapping[str, Any]) -> list[tuple[str, str]]:
    task = options["task"]
    if task == "attributes":
        found = []
        columns = options.get("columns")
        if not columns or len(set(columns)) < len(columns):
            found.append(("columns", "is required: a list of different manifest columns, such as [hat, bag]"))
        if chosen["loss"] not in ("binary_cross_entropy", "focal") or chosen.get("form") == "multiclass":
            found.append(("loss", "attributes take binary_cross_entropy, or focal with form: binary"))
        return found
    found = [] if options.get("column") else [("column", "is required: the name of a manifest column")]
    whole = getattr(cls, "kind", None) == "classification" and chosen["loss"] != "binary_cross_entropy"
    if task == "category" and (not whole or chosen.get("form") == "binary"):
        found.append(("loss", "a category takes a classification loss, such as softmax or focal"))
    if task == "number" and chosen["loss"] == "dice":
        found.append(("loss", "a number takes mse, mae, smooth_l1 or huber"))
    if task == "mask" and (chosen["loss"] != "dice" or chosen.get("form", "binary") != "binary"):
        found.append(("loss", "a mask takes dice with form: binary"))
    if task == "mask" and "on" in options:
        found.append(("on", "is not for task mask, which reads the feature map before the pooling"))
    return found


def _option_problems(
    loss: type, options: Mapping[str, Any], given: Mapping[str, Any], takes: set[str]
) -> list[tuple[str, str]]:
    """Names, types and ranges of the options of a loss."""
    parameters = inspect.signature(loss).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    allowed = [name for name, p in parameters.items() if name not in given and p.kind not in variable]
    own = {key: value for key, value in options.items() if key != "loss"}
    known = [*allowed, *KEYS, *sorted(takes)]
    found = [(key, unknown("option", key, known)) for key in own if key not in allowed]
    own = {key: value for key, value in own.items() if key in allowed}
    found += [_split(line) for line in signature_problems(loss, own, tuple(given))]
    wrong = {key for key, _ in found}
    if any(parameters[name].default is inspect.Parameter.empty and name not in own for name in allowed):
        return found  # a required option is missing, and is reported already
    arguments = {key: value for key, value in own.items() if key not in wrong}
    arguments |= {key: value for key, value in given.items() if key in parameters}
    try:
        with torch.device("meta"):  # the constructor's own checks, but no memory and no random numbers
            loss(**arguments)
    except OptionError as error:
        found += [_split(line) for line in error.problems]
    except ValueError as error:
        found.append(("", str(error)))
    return found


def _split(line: str) -> tuple[str, str]:
    key, _, text = line.partition(": ")
    return key, text


def _name_problems(terms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    given = [options.get("name") for options in terms]
    return [
        (f"{index}.name", f"{name!r} is the name of another term")
        for index, name in enumerate(given)
        if name is not None and name in given[:index]
    ]


def _mask_problems(terms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Images come with one mask."""
    places = [i for i, term in enumerate(terms) if term.get("task") == "mask"]
    return [(f"{place}.task", "a recipe has one mask at most") for place in places[1:]]


def _gap_problems(terms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A stretch of the training in which no term is on would train nothing."""
    gap = _gap((term.get("start", 0.0), term.get("end", 1.0)) for term in terms)
    return [] if gap is None else [("", f"no term is on between {gap[0]:g} and {gap[1]:g} of the training")]


def _idle_problems(terms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Nor would one in which no loss counts."""
    gap = _gap(stretch for term in terms for stretch in _counting(term))
    if gap is None:
        return []
    return [
        (
            "",
            f"between {gap[0]:g} and {gap[1]:g} of the training every loss has the weight 0 or is off, "
            "regularisers aside: it would train nothing; give one a weight above 0",
        )
    ]


def _gap(stretches: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """The first part of [0, 1] that no stretch covers."""
    covered = 0.0
    for start, end in [*sorted(stretches), (1.0, 1.0)]:
        if start > covered:
            return covered, start
        covered = max(covered, end)
    return None


def _counting(term: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The stretches in which the loss of a term is on with a weight above 0; none for a regulariser."""
    if registry_of(term) is REGULARISERS:
        return []
    start, end = term.get("start", 0.0), term.get("end", 1.0)
    cut = [(max(start, first), min(end, last)) for first, last in _above_zero(term.get("weight", 1.0))]
    return [(first, last) for first, last in cut if first < last]


def _above_zero(weight: Any) -> list[tuple[float, float]]:
    """The stretches in which a weight without problems is above 0; of a plateau, as it begins."""
    whole = [(0.0, 1.0)]
    if not isinstance(weight, Mapping):
        return whole if weight > 0 else []
    if "plateau" in weight:
        return _above_zero(weight["plateau"])
    if "steps" in weight:
        steps = sorted((float(at), value) for at, value in weight["steps"].items())
        ends = [at for at, _ in steps[1:]] + [1.0]
        return [(at, end) for (at, value), end in zip(steps, ends, strict=True) if value > 0]
    first, last = weight["cosine" if "cosine" in weight else "linear"]
    if first == last == 0:
        return []
    return [(0.0 if first else weight.get("from", 0.0), 1.0 if last else weight.get("to", 1.0))]


def _momentum_problems(terms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """All memories share one second network."""
    momenta = [options.get("memory", {}).get("momentum") for options in terms]
    first = next((momentum for momentum in momenta if momentum is not None), None)
    return [
        (f"{place}.memory.momentum", f"is {momentum}, that of an earlier term {first}; give both the same")
        for place, momentum in enumerate(momenta)
        if momentum not in (None, first)
    ]


def _partner_problems(terms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The terms that terms are about: they exist, and have what is asked of them."""
    found = []
    for place, options in enumerate(terms):
        if needs_partner(options) and partner(terms, place) < 0:
            loss = options["loss"]
            what = "class logits" if loss in ON_LOGITS else "class vectors"
            of = options.get("of")
            if of is None:
                found.append((str(place), f"{loss} needs a term with {what} beside it, such as softmax"))
            else:
                known = [n for n, t in zip(term_names(terms), terms, strict=True) if offers(t, loss)]
                listed = f" (one of: {', '.join(known)})" if known else "; add one, such as softmax"
                found.append((f"{place}.of", f"no term {of!r} with {what}{listed}"))
    return found
