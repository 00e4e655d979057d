"""Terms of an objective that read more than embeddings and labels: weights, images, columns, a teacher."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses.adversarial import TradesLoss, VirtualAdversarialLoss
from metricid.losses.checks import compute_dtype, no_autocast
from metricid.losses.domain import DomainAdversarialLoss
from metricid.losses.term import Moment, SideTerm, Term


class Classifier(Protocol):
    """A loss with class logits, as softmax and margin heads have them."""

    def logits(self, embeddings: Tensor) -> Tensor:
        """[B, C] of embeddings [B, D]."""
        ...


def class_vectors(loss: nn.Module) -> Tensor | None:
    """The learned vector of each class of a loss, [C, D], or None where it has none."""
    for name in ("weight", "centers"):
        found = getattr(loss, name, None)
        if isinstance(found, nn.Parameter) and found.ndim in (2, 3):
            return found.flatten(0, -2)
    return None


class WeightPenalty(SideTerm):
    """A regulariser of the class vectors of another term.

    Args:
        penalty: maps [C, D] to a scalar.
        of: name of that term.
    """

    def __init__(self, penalty: nn.Module, of: str):
        super().__init__()
        self.penalty, self.of = penalty, of

    def at(self, moment: Moment) -> Tensor:
        """The penalty; it does not depend on the batch."""
        vectors = class_vectors(moment.terms[self.of].loss)
        if vectors is None:
            raise ValueError(f"term {self.of!r} has no class vectors")
        return self.penalty(vectors)


class NetworkPenalty(SideTerm):
    """A regulariser of all trained weights of the network: matrices and kernels, not norms and biases.

    Args:
        penalty: maps several tensors to a scalar.
    """

    def __init__(self, penalty: nn.Module):
        super().__init__()
        self.penalty = penalty

    def at(self, moment: Moment) -> Tensor:
        """The penalty; it does not depend on the batch."""
        model = _present(moment.side.model, "the network", "model")
        return self.penalty(*(p for p in model.parameters() if p.requires_grad and p.ndim > 1))


class Distillation(SideTerm):
    """A distillation loss against one teacher: of the embeddings, or of the logits of another term.

    Args:
        loss: maps (student, teacher) to a scalar; `pairwise` if it compares samples with each other.
        teacher: its name among `Side.teachers`.
        of: name of the term that has the student's logits; None compares embeddings.
    """

    def __init__(self, loss: nn.Module, teacher: str, of: str | None = None):
        super().__init__()
        self.loss, self.teacher, self.of = loss, teacher, of

    def at(self, moment: Moment) -> Tensor:
        """The loss over the batch, over that of all ranks for a pairwise one."""
        taught = _present(moment.side.teachers.get(self.teacher), f"teacher {self.teacher!r}", "teachers")
        if self.of is not None:
            logits = _present(taught.logits, f"the logits of teacher {self.teacher!r}", "teachers")
            return self.loss(_logits_of(moment, self.of), logits)
        student, target = moment.x, taught.embedding
        if moment.gather is not None and getattr(self.loss, "pairwise", False):
            student, _ = moment.gather(student, moment.labels)
            target, _ = moment.gather(target, moment.labels)
        return self.loss(student, target)


class Perturbed(SideTerm):
    """Virtual adversarial or TRADES training of the classifier of another term.

    Of TRADES this term is the divergence alone; the classification loss is the other term. The clean logits
    are those of the forward pass in which the other terms are computed.

    Args:
        loss: one of the two.
        of: name of the term whose `logits` are to hold still.
    """

    def __init__(self, loss: VirtualAdversarialLoss | TradesLoss, of: str):
        super().__init__()
        self.loss, self.of = loss, of

    def at(self, moment: Moment) -> Tensor:
        """The divergence, mean over the batch, in nats."""
        side = moment.side
        network = _present(side.model, "the network", "model")
        images = _present(side.images, "the images", "images")
        model = _Pipeline(network, moment.terms[self.of])
        logits = _logits_of(moment, self.of)
        if isinstance(self.loss, TradesLoss):
            return self.loss(model, images, moment.labels, classification=None, logits=logits)
        alike = self.loss.batch_norm == "batch"  # else the clean logits were normalised in another way
        return self.loss(model, images, logits if alike else None)


class _Pipeline(nn.Module):
    """Images to logits: the network in training, then the classifier of a term."""

    def __init__(self, network: nn.Module, term: Term):
        super().__init__()
        self.network, self.term = network, term

    def forward(self, images: Tensor) -> Tensor:
        vectors = getattr(self.network(images), self.term.on)
        return cast(Classifier, self.term.loss).logits(vectors)


class DomainConfusion(SideTerm):
    """Adversarial training against the guess of a manifest column, such as the camera.

    Args:
        loss: the branch.
        column: its name among `Side.columns`: int64, -1 for a missing value.
    """

    def __init__(self, loss: DomainAdversarialLoss, column: str):
        super().__init__()
        self.loss, self.column = loss, column

    def at(self, moment: Moment) -> Tensor:
        """The loss over the images of all ranks that have a value; 0 with a graph if none has."""
        x, domains = _joined(moment, self.column)
        known = domains >= 0
        if not known.any():
            return _nothing(x, self.loss)
        return self.loss(x[known], domains[known], moment.progress)


class CategoryTask(SideTerm):
    """A classifier of a manifest column beside the identity.

    Args:
        loss: maps (embeddings [B, D], classes [B]) to a scalar; has `logits`.
        column: its name among `Side.columns`: int64, -1 for a missing value.
    """

    def __init__(self, loss: nn.Module, column: str):
        super().__init__()
        self.loss, self.column = loss, column

    def at(self, moment: Moment) -> Tensor:
        """The loss over the images of all ranks that have a value; 0 with a graph if none has."""
        x, classes = _joined(moment, self.column)
        known = classes >= 0
        return self.loss(x[known], classes[known]) if known.any() else _nothing(x, self.loss)

    def predict(self, x: Tensor) -> Tensor:
        """[B, C] probabilities of the classes."""
        return cast(Classifier, self.loss).logits(x).softmax(dim=1)


class AttributeTask(SideTerm):
    """A yes-or-no classifier for each of several manifest columns.

    Args:
        loss: maps (embeddings [B, D], targets [B, A], mask [B, A]) to a scalar, as `BinaryCrossEntropy` does.
        column: name among `Side.columns` of the float matrix [B, A], 0, 1 or NaN for a missing value.
    """

    def __init__(self, loss: nn.Module, column: str):
        super().__init__()
        self.loss, self.column = loss, column

    def at(self, moment: Moment) -> Tensor:
        """The loss over the known values of all ranks; 0 with a graph if there is none."""
        x, target = _joined(moment, self.column)
        return self.loss(x, target.nan_to_num(), ~target.isnan())

    def predict(self, x: Tensor) -> Tensor:
        """[B, A] probabilities."""
        return cast(Classifier, self.loss).logits(x).sigmoid()


class NumberTask(SideTerm):
    """A linear regression of a manifest column.

    The column is brought to mean 0 and standard deviation 1 first, so that the weight of the task and the
    threshold of its loss do not depend on the column's unit.

    Args:
        loss: maps (prediction [B], target [B], mask [B]) to a scalar.
        column: its name among `Side.columns`: float, NaN for a missing value.
        embedding_dim: D.
        mean: of the training values.
        std: of the training values, > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, loss: nn.Module, column: str, embedding_dim: int, mean: float, std: float):
        super().__init__()
        self.loss, self.column = loss, column
        self.linear = nn.Linear(embedding_dim, 1)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def at(self, moment: Moment) -> Tensor:
        """The loss in standard deviations, over the known values of all ranks; 0 with a graph if none is."""
        x, target = _joined(moment, self.column)
        known = ~target.isnan()
        return self.loss(self._standard(x), (target.nan_to_num() - self.mean) / self.std, known)

    def predict(self, x: Tensor) -> Tensor:
        """[B] values in the column's unit."""
        return self._standard(x) * self.std + self.mean

    def _standard(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x, self.linear.weight)
        with no_autocast(x):
            return F.linear(x.to(dtype), self.linear.weight.to(dtype), self.linear.bias.to(dtype)).squeeze(1)


class MaskTask(SideTerm):
    """A mask image drawn from the feature map: a 1x1 convolution, enlarged to the size of the image.

    Args:
        loss: maps (logits [B, H, W], target [B, H, W], mask [B, H, W]) to a mean over the images with a mask.
        column: its name among `Side.columns`: uint8 [B, H, W], 0 or 1, and 255 for a missing value.
        channels: C of the feature map.
    """

    def __init__(self, loss: nn.Module, column: str, channels: int):
        super().__init__()
        self.loss, self.column = loss, column
        self.conv = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def at(self, moment: Moment) -> Tensor:
        """The mean over the known masks of all ranks; 0 with a graph if there is none."""
        target = _column(moment, self.column)
        found = _present(moment.side.map, "the feature map", "map")
        known = target != 255
        loss = self.loss(self._logits(found, target.shape[1:]), (target == 1).float(), known)
        if moment.gather is None:
            return loss
        counted = known.flatten(1).any(dim=1)  # ranks may know unlike numbers of masks
        _, joined = moment.gather(moment.x.detach(), counted)
        ranks = len(joined) / len(counted)
        return loss * (ranks * counted.sum() / joined.sum().clamp_min(1))

    def predict(self, found: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, *size] probabilities, of a feature map [B, C, h, w]."""
        return self._logits(found, size).sigmoid()

    def _logits(self, found: Tensor, size: Sequence[int]) -> Tensor:
        dtype = compute_dtype(found, self.conv.weight)
        with no_autocast(found):
            bias = cast(Tensor, self.conv.bias)
            small = F.conv2d(found.to(dtype), self.conv.weight.to(dtype), bias.to(dtype))
            return F.interpolate(small, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _logits_of(moment: Moment, name: str) -> Tensor:
    """[B, C] of a term, from what that term reads."""
    term = moment.terms[name]
    return cast(Classifier, term.loss).logits(moment.places[term.on])


def _joined(moment: Moment, column: str) -> tuple[Tensor, Tensor]:
    """Vectors and values of all ranks, which may know unlike numbers of values."""
    x, values = moment.x, _column(moment, column)
    return (x, values) if moment.gather is None else moment.gather(x, values)


def _column(moment: Moment, name: str) -> Tensor:
    return _present(moment.side.columns.get(name), f"column {name!r}", "columns")


def _present(value: Any, what: str, where: str) -> Any:
    if value is None:
        raise ValueError(f"the objective needs {what}: pass side=Side({where}=...) to its forward")
    return value


def _nothing(x: Tensor, loss: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for the batch and the parameters."""
    total = 0 * x.float().sum()
    for parameter in loss.parameters():
        total = total + 0 * parameter.flatten()[:1].sum()
    return total
