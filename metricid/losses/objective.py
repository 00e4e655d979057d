"""The training objective: a weighted sum of losses, each on for a part of the training."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from metricid.losses.balance import BALANCES, Balance
from metricid.losses.catalog import LOSSES
from metricid.losses.checks import OptionError
from metricid.losses.schedules import Plateau, Weight, build_weight, weight_problems
from metricid.registry import describe, matches, signature_problems, unknown

Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# What the training knows and gives to the losses that want it, with values that stand for them in a check.
GIVEN: dict[str, Any] = {"num_classes": 2, "embedding_dim": 2, "class_counts": [1, 1]}
KEYS: dict[str, Any] = {
    "name": str,
    "weight": Any,
    "on": Literal["features", "embedding"],
    "start": float,
    "end": float,
}


class ObjectiveOutput(NamedTuple):
    """What one forward pass of an objective gives.

    Attributes:
        total: scalar, the weighted sum; call `backward` on it.
        terms: the loss of each active term, before its weight, detached.
        weights: what each of them was multiplied by.
        norms: the norm of the gradient of each of them, before its weight, at the features of this process's
            batch; empty unless asked for.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    norms: dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """One loss of an objective.

    Attributes:
        name: under which it is logged.
        loss: maps (embeddings [B, D], labels [B]) to a scalar.
        weight: factor in the total, or how it changes with the progress of the training.
        on: 'features' (before the neck) or 'embedding' (after it).
        start: progress of the training in [0, 1] from which it counts.
        end: progress until which it counts; the end of the training is part of a window that ends at 1.
    """

    name: str
    loss: nn.Module
    weight: float | Weight = 1.0
    on: Literal["features", "embedding"] = "embedding"
    start: float = 0.0
    end: float = 1.0

    def active(self, progress: float) -> bool:
        """Whether it counts at this progress of the training."""
        return self.start <= progress and (progress < self.end or self.end >= 1)

    def weight_at(self, progress: float) -> float:
        """Its factor at this progress of the training."""
        return self.weight(progress) if callable(self.weight) else self.weight


class Objective(nn.Module):
    """Weighted sum of losses, each on features or embedding and on for a part of the training.

    A term outside its window is not computed. Its parameters still take part with a gradient of zero, so that
    optimisers and DistributedDataParallel see the same set of parameters at every step.

    Args:
        terms: at least one; their names are unique.
        balance: finds further factors on the terms while they are trained.

    Example:
        >>> objective = Objective.from_config(
        ...     [{"loss": "softmax"}, {"loss": "triplet", "on": "features", "start": 0.5}],
        ...     num_classes=10, feature_dim=32, embedding_dim=16,
        ... )
        >>> labels = torch.arange(4) // 2
        >>> list(objective(torch.randn(4, 32), torch.randn(4, 16), labels, progress=0.1).terms)
        ['softmax']
        >>> list(objective(torch.randn(4, 32), torch.randn(4, 16), labels, progress=0.6).terms)
        ['softmax', 'triplet']
    """

    def __init__(self, terms: Sequence[Term], balance: Balance | None = None):
        super().__init__()
        names = [term.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"an objective needs at least one term and unique names, got {names}")
        self.terms = tuple(terms)
        self.losses = nn.ModuleDict({term.name: term.loss for term in terms})
        plateaus = {term.name: term.weight for term in terms if isinstance(term.weight, Plateau)}
        self.plateaus = nn.ModuleDict(plateaus)
        self.balance = balance
        self._latest: tuple[Term, ...] = ()
        self._measured: tuple[Tensor, Tensor | None, list[int]] | None = None

    @classmethod
    def from_config(
        cls,
        terms: Sequence[Mapping[str, Any]],
        num_classes: int,
        feature_dim: int,
        embedding_dim: int,
        class_counts: Sequence[int] | None = None,
        balance: Mapping[str, Any] | None = None,
    ) -> "Objective":
        """Builds an objective from the list of a recipe.

        Args:
            terms: mappings with `loss`, the optional keys of a term (`name`, `weight`, `on`, `start`, `end`)
                and the options of the loss. Terms without a name are called after their loss (`triplet`,
                `triplet_2`, ...).
            num_classes: number of identities; given to the losses that want it.
            feature_dim: width of the features, before the neck.
            embedding_dim: width of the embedding, after the neck.
            class_counts: images of each identity, for the losses that want them.
            balance: `{name: uncertainty | dwa | gradnorm, option: value, ...}`.

        Raises:
            ValueError: all problems of the list in one message.
        """
        problems = cls.problems(terms)
        if problems:
            raise ValueError(
                "; ".join(f"objective.{path}: {text}".replace(".:", ":") for path, text in problems)
            )
        built = []
        for name, options in zip(_names(terms), terms, strict=True):
            own = {key: options[key] for key in KEYS if key in options and key != "name"}
            dim = feature_dim if own.get("on") == "features" else embedding_dim
            if "weight" in own:
                own["weight"] = build_weight(own["weight"])
            given = {"num_classes": num_classes, "embedding_dim": dim, "class_counts": class_counts}
            built.append(Term(name=name, loss=LOSSES.build(_loss_options(options), **given), **own))
        return cls(built, None if balance is None else BALANCES.build(balance, terms=len(built)))

    @staticmethod
    def problems(terms: Any) -> list[tuple[str, str]]:
        """What is wrong with the list of a recipe, all at once, without building it.

        Returns:
            (path, message) pairs; the path is relative to the list: '' for the list itself, '1' for its
            second term, '1.margin' for an option of it. Empty if `from_config` can build it.
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
        return found

    def forward(
        self,
        features: Tensor,
        embedding: Tensor,
        labels: Tensor,
        progress: float,
        gather: Gather | None = None,
        *,
        norms: bool = False,
    ) -> ObjectiveOutput:
        """Computes the active terms.

        Args:
            features: [B, F], before the neck.
            embedding: [B, D], after the neck.
            labels: [B] int64.
            progress: share of the training that is done, in [0, 1].
            gather: joins the batch of all ranks, `(x, labels) -> (x_all, labels_all)`, differentiable in x.
                Used for losses that compare samples with each other, once for each of features and embedding.
            norms: measure the gradient of each term at the features; costs a backward pass from the losses to
                there.

        Raises:
            ValueError: progress outside [0, 1], or a tensor a loss cannot use.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress}")
        local = {"features": (features, labels), "embedding": (embedding, labels)}
        joined: dict[str, tuple[Tensor, Tensor]] = {}
        total = torch.zeros((), device=embedding.device)
        values: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        active = []
        for place, term in enumerate(self.terms):
            if not term.active(progress):
                total = total + _untouched(self._parameters_of(place))
                continue
            batch = local[term.on]
            if gather is not None and getattr(term.loss, "pairwise", False):
                if term.on not in joined:
                    joined[term.on] = gather(*batch)
                batch = joined[term.on]
            values[term.name] = term.loss(*batch)
            weights[term.name] = term.weight_at(progress)
            active.append(place)
            if self.balance is None:
                total = total + weights[term.name] * values[term.name]
        measured = None
        if norms or (self.balance is not None and self.balance.wants_norms):
            measured = _gradient_norms(values, features)
        if self.balance is not None:
            parts = torch.stack([weights[name] * value for name, value in values.items()])
            total = total + self.balance.total(parts, active)
            factors = self.balance.factors(active).tolist()
            own = torch.tensor(list(weights.values()), device=embedding.device)
            weights = {name: weights[name] * factor for name, factor in zip(values, factors, strict=True)}
            self._measured = (parts.detach(), None if measured is None else own * measured, active)
        self._latest = tuple(self.terms[place] for place in active)
        terms = {name: value.detach() for name, value in values.items()}
        shown = {} if measured is None else dict(zip(values, measured.unbind(), strict=True))
        return ObjectiveOutput(total, terms, weights, shown)

    def _parameters_of(self, place: int) -> list[nn.Parameter]:
        """What is trained for one term alone."""
        own = list(self.terms[place].loss.parameters())
        return own if self.balance is None else own + self.balance.parameters_of(place)

    def trained_parts(self) -> dict[str, nn.Module]:
        """What has parameters of its own, by name: the losses, and a balance that learns."""
        parts = dict(self.losses.items())
        if self.balance is not None:
            parts["(balance)"] = self.balance
        return parts

    def inactive_parameters(self, progress: float) -> list[nn.Parameter]:
        """Parameters of the terms outside their window: no optimiser should decay or move them."""
        inactive = (place for place, term in enumerate(self.terms) if not term.active(progress))
        return [p for place in inactive for p in self._parameters_of(place)]

    @torch.no_grad()
    def after_step(
        self, features: Tensor, embedding: Tensor, labels: Tensor, gather: Gather | None = None
    ) -> None:
        """Moves what no optimiser moves: the state of losses that are `stateful` now, and the balance.

        Call it after an optimiser step, not after a skipped one, with the tensors of the last forward pass;
        the terms that took part in that pass are updated.

        Args:
            features: [B, F].
            embedding: [B, D].
            labels: [B] int64.
            gather: as in `forward`; keeps the centers of all ranks equal.
        """
        for term in self._latest:
            if getattr(term.loss, "stateful", False):
                x = (features if term.on == "features" else embedding).detach()
                cast(Any, term.loss).after_step(*(gather(x, labels) if gather else (x, labels)))
        if self.balance is not None and self._measured is not None:
            values, norms, active = self._measured
            self._measured = None  # of several batches in a step, the last one counts
            self.balance.update(
                _mean(values, gather), None if norms is None else _mean(norms, gather), active
            )

    def after_epoch(self) -> None:
        """Call it after the last step of each epoch, for a balance that works by epochs."""
        if self.balance is not None:
            self.balance.end_epoch()

    def after_validation(self, value: float) -> None:
        """Call it with the result of each validation, greater is better: weights may wait for a plateau."""
        for term in self.terms:
            if isinstance(term.weight, Plateau):
                term.weight.observe(value)


def _untouched(parameters: Sequence[nn.Parameter]) -> Tensor | float:
    """Zero, with a zero gradient for every trainable parameter; reads none of their values."""
    return sum(p.flatten()[:0].sum() for p in parameters if p.requires_grad)


def _gradient_norms(values: Mapping[str, Tensor], features: Tensor) -> Tensor | None:
    """[K] norms of the gradients at the features; None where nothing before the losses is trained."""
    if not (features.requires_grad and torch.is_grad_enabled()):
        return None
    found = []
    for value in values.values():
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, features, retain_graph=True, allow_unused=True)
        zero = torch.zeros((), device=features.device)
        found.append(zero if gradient is None else torch.linalg.vector_norm(gradient.float()))
    return torch.stack(found)


def _mean(values: Tensor, gather: Gather | None) -> Tensor:
    """The mean over ranks, so that all of them draw the same conclusion."""
    if gather is None:
        return values
    joined, _ = gather(values[None], torch.zeros(1, dtype=torch.int64, device=values.device))
    return joined.mean(dim=0)


def _loss_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in KEYS}


def _names(terms: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each term: its own, else that of its loss with a number from the second on."""
    taken = {options["name"] for options in terms if "name" in options}
    names = []
    for options in terms:
        name = options.get("name")
        if name is None:
            name, number = options["loss"], 1
            while name in taken:
                number += 1
                name = f"{options['loss']}_{number}"
        taken.add(name)
        names.append(name)
    return names


def _term_problems(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, message) pairs of one term; the key is '' where the term as a whole is meant."""
    found = []
    for key, hint in KEYS.items():
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
    loss = options.get("loss")
    if not isinstance(loss, str) or loss not in LOSSES.names():
        return [*found, ("loss", LOSSES.problems({"loss": loss})[0])]
    return found + _option_problems(LOSSES.get(loss), _loss_options(options))


def _option_problems(loss: type, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names, types and ranges of the options of a loss."""
    allowed = [name for name in inspect.signature(loss).parameters if name not in GIVEN]
    own = {key: value for key, value in options.items() if key != "loss"}
    found = [(key, unknown("option", key, allowed + list(KEYS))) for key in own if key not in allowed]
    own = {key: value for key, value in own.items() if key in allowed}
    found += [_split(line) for line in signature_problems(loss, own, tuple(GIVEN))]
    wrong = {key for key, _ in found}
    parameters = inspect.signature(loss).parameters
    if any(p.default is p.empty and name not in own for name, p in parameters.items() if name not in GIVEN):
        return found  # a required option is missing, and is reported already
    arguments = {key: value for key, value in own.items() if key not in wrong}
    arguments |= {key: value for key, value in GIVEN.items() if key in parameters}
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


def _gap_problems(terms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A stretch of the training in which no term is on would train nothing."""
    covered = 0.0
    windows = sorted((term.get("start", 0.0), term.get("end", 1.0)) for term in terms)
    for start, end in [*windows, (1.0, 1.0)]:
        if start > covered:
            return [("", f"no term is on between {covered:g} and {start:g} of the training")]
        covered = max(covered, end)
    return []
