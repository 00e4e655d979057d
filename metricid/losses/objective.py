"""The training objective: a weighted sum of losses, each on for a part of the training."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from metricid.losses.balance import BALANCES, Balance
from metricid.losses.recipe import Column, Facts, build_terms
from metricid.losses.recipe_checks import list_problems
from metricid.losses.remembered import RememberedLoss
from metricid.losses.schedules import Plateau
from metricid.losses.side_terms import Distillation, MaskTask, Perturbed, WeightPenalty, class_vectors
from metricid.losses.term import Gather, Moment, Place, Side, SideTerm, Term


class ObjectiveOutput(NamedTuple):
    """What one forward pass of an objective gives.

    Attributes:
        total: scalar, the weighted sum; call `backward` on it.
        terms: the loss of each active term, before its weight, detached.
        weights: what each of them was multiplied by.
        norms: the norm of the gradient of each of them, before its weight, at the features of this process's
            batch; empty unless asked for.
        parts: [K], what each active term adds to the total; carries the graph.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    norms: dict[str, Tensor]
    parts: Tensor


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
        self._named = {term.name: term for term in terms}
        for term in terms:
            if isinstance(term.loss, WeightPenalty) and class_vectors(self._named[term.loss.of].loss) is None:
                raise ValueError(f"{term.name}: {term.loss.of} has no class vectors that are trained")
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
        *,
        columns: Mapping[str, Column] | None = None,
        teachers: Mapping[str, int] | None = None,
        pixels: tuple[Sequence[float], Sequence[float]] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        map_channels: int | None = None,
    ) -> "Objective":
        """Builds an objective from the list of a recipe.

        Args:
            terms: mappings with `loss`, the optional keys of a term (`name`, `weight`, `on`, `start`, `end`),
                those of its kind (`gather`, `memory`, ...) and the options of the loss. Terms without a name
                are called after their loss (`triplet`, `triplet_2`, ...) or column.
            num_classes: number of identities; given to the losses that want it.
            feature_dim: width of the features, before the neck.
            embedding_dim: width of the embedding, after the neck.
            class_counts: images of each identity, for the losses that want them.
            balance: `{name: uncertainty | dwa | gradnorm, option: value, ...}`.
            columns: what the training data say of the columns that terms name, by `recipe.column_key`.
            teachers: width of each teacher's embedding, by the `teacher` of the terms.
            pixels: mean and standard deviation per channel, as the images were normalised.
            map_channels: of the network's feature map [B, C, h, w], for a mask.

        Raises:
            ValueError: all problems of the list in one message, or a column or teacher that is missing.
        """
        problems = cls.problems(terms)
        if problems:
            raise ValueError(
                "; ".join(f"objective.{path}: {text}".replace(".:", ":") for path, text in problems)
            )
        facts = Facts(
            num_classes,
            feature_dim,
            embedding_dim,
            class_counts,
            columns or {},
            teachers or {},
            tuple(pixels[0]),
            tuple(pixels[1]),
            map_channels,
        )
        built = build_terms(terms, facts)
        return cls(built, None if balance is None else BALANCES.build(balance, terms=len(built)))

    @staticmethod
    def problems(terms: Any) -> list[tuple[str, str]]:
        """What is wrong with the list of a recipe, as `recipe_checks.list_problems` says it."""
        return list_problems(terms)

    def forward(
        self,
        features: Tensor,
        embedding: Tensor,
        labels: Tensor,
        progress: float,
        gather: Gather | None = None,
        *,
        norms: bool = False,
        side: Side | None = None,
    ) -> ObjectiveOutput:
        """Computes the active terms.

        Args:
            features: [B, F], before the neck.
            embedding: [B, D], after the neck.
            labels: [B] int64.
            progress: share of the training that is done, in [0, 1].
            gather: joins the batch of all ranks, `(x, labels) -> (x_all, labels_all)`, differentiable in x.
                Used for losses that compare samples with each other, once for each of features and embedding,
                but for the terms without `gather`.
            norms: measure the gradient of each term at the features; costs a backward pass from the losses to
                there.
            side: images, columns and teachers, for the terms that read them.

        Raises:
            ValueError: progress outside [0, 1], a tensor a loss cannot use, or a missing part of `side`.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress}")
        places: dict[Place, Tensor] = {"features": features, "embedding": embedding}
        joined: dict[str, tuple[Tensor, Tensor]] = {}
        total = torch.zeros((), device=embedding.device)
        values: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        active = []
        for place, term in enumerate(self.terms):
            if not term.active(progress):
                total = total + _untouched(self._parameters_of(place))
                continue
            batch = places[term.on], labels
            join = gather if term.gather else None
            if isinstance(term.loss, SideTerm):
                moment = Moment(*batch, progress, self._named, side or Side(), join, places)
                values[term.name] = term.loss.at(moment)
            else:
                if join is not None and getattr(term.loss, "pairwise", False):
                    if term.on not in joined:
                        joined[term.on] = join(*batch)
                    batch = joined[term.on]
                values[term.name] = term.loss(*batch)
            if values[term.name].ndim:
                shape = list(values[term.name].shape)
                raise ValueError(
                    f"{term.name}: a loss returns a scalar, and this one a tensor of shape {shape}"
                )
            weights[term.name] = term.weight_at(progress)
            active.append(place)
        measured = None
        if norms or (self.balance is not None and self.balance.wants_norms):
            measured = _gradient_norms(values, features)
        if self.balance is None:
            parts = torch.stack([weights[name] * value for name, value in values.items()])
        else:
            plain = torch.stack(list(values.values()))
            own = plain.new_tensor(list(weights.values()))
            self._measured = (plain.detach(), measured, active)
            factors = self.balance.factors(active).tolist()
            weights = {name: weights[name] * factor for name, factor in zip(values, factors, strict=True)}
            parts = self.balance.parts(plain, own, active)
        total = total + parts.sum()
        self._latest = tuple(self.terms[place] for place in active)
        terms = {name: value.detach() for name, value in values.items()}
        shown = {} if measured is None else dict(zip(values, measured.unbind(), strict=True))
        return ObjectiveOutput(total, terms, weights, shown, parts)

    @property
    def reads_images(self) -> bool:
        """Whether a term wants `Side.images`."""
        return any(isinstance(term.loss, Perturbed) for term in self.terms)

    @property
    def momentum(self) -> float | None:
        """Of the network whose embeddings the memories of some terms keep; None where none asks for one."""
        found = (term.loss.momentum for term in self.terms if isinstance(term.loss, RememberedLoss))
        return next((momentum for momentum in found if momentum is not None), None)

    def teachers_at(self, progress: float) -> set[str]:
        """The teachers that the terms which are on at this progress of the training listen to."""
        losses = [term.loss for term in self.terms if term.active(progress)]
        return {loss.teacher for loss in losses if isinstance(loss, Distillation)}

    @property
    def reads_map(self) -> bool:
        """Whether a term wants `Side.map`."""
        return any(isinstance(term.loss, MaskTask) for term in self.terms)

    def _parameters_of(self, place: int) -> list[nn.Parameter]:
        """What is trained for one term alone."""
        own = list(self.terms[place].loss.parameters())
        return own if self.balance is None else own + self.balance.parameters_of(place)

    def trained_parts(self) -> dict[str, nn.Module]:
        """What has parameters of its own, by name: the losses, and a balance that learns."""
        parts = dict(self.losses.items())
        if self.balance is not None:  # one for each term: a term may start later than others
            for place, term in enumerate(self.terms):
                parts[f"(balance).{term.name}"] = nn.ParameterList(self.balance.parameters_of(place))
        return parts

    def inactive_parameters(self, progress: float) -> list[nn.Parameter]:
        """Parameters of the terms outside their window: no optimiser should decay or move them.

        Not those of a term that an active one is about.
        """
        losses = [term.loss for term in self.terms if term.active(progress)]
        read = {loss.of for loss in losses if isinstance(loss, WeightPenalty | Distillation | Perturbed)}
        found: list[nn.Parameter] = []
        for place, term in enumerate(self.terms):
            if not term.active(progress):
                own = self._parameters_of(place)
                of_loss = set(term.loss.parameters()) if term.name in read else set()
                found += [p for p in own if p not in of_loss]
        return found

    @torch.no_grad()
    def after_step(
        self,
        features: Tensor,
        embedding: Tensor,
        labels: Tensor,
        gather: Gather | None = None,
        *,
        slow: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Moves what no optimiser moves: the state of losses that are `stateful` now, and the balance.

        Call it after an optimiser step, not after a skipped one, with the tensors of the last forward pass;
        the terms that took part in that pass are updated.

        Args:
            features: [B, F].
            embedding: [B, D].
            labels: [B] int64.
            gather: as in `forward`; keeps centers and memories of all ranks equal.
            slow: [B, F] and [B, D] of the same images from the network with `momentum`, if that is a number.

        Raises:
            ValueError: `slow` is missing.
        """
        for term in self._latest:
            if getattr(term.loss, "stateful", False):
                places = features, embedding
                if getattr(term.loss, "momentum", None) is not None:
                    if slow is None:
                        raise ValueError(f"{term.name}: its memory has a momentum; pass `slow` to after_step")
                    places = slow
                x = places[0 if term.on == "features" else 1].detach()
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
