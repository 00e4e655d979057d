"""A pairwise loss whose batch is also compared with a memory of past batches."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from metricid.losses.catalog import LOSSES
from metricid.losses.checks import OptionError, check_options
from metricid.losses.mined import may_mine, miner_of
from metricid.losses.pairwise import PairwiseLoss
from metricid.losses.term import Moment, SideTerm
from metricid.mining.memory import CrossBatchMemory
from metricid.mining.miners import MINERS
from metricid.registry import signature_problems, unknown


@dataclass(frozen=True)
class MemoryOptions:
    """The `memory` of a term.

    Attributes:
        size: images that it holds, over all processes together.
        warmup: until when the batch is compared with itself alone, while the memory is filled: a share of the
            whole training below 1, or a whole number, from 1 on, of batches that the memory took in.
        momentum: None keeps the embeddings as the network computed them. A number keeps those of a second
            network, whose weights are a moving average: of each step (1 - momentum) goes into them.
    """

    size: int
    warmup: int | float = 0.0
    momentum: float | None = None

    def __post_init__(self) -> None:
        check_options(
            size=(self.size >= 1, f"must be at least 1 image, got {self.size}"),
            warmup=(
                0 <= self.warmup < 1 or (isinstance(self.warmup, int) and self.warmup >= 1),
                f"is a share of the training in [0, 1), or a whole number of batches, got {self.warmup}",
            ),
            momentum=(
                self.momentum is None or 0 <= self.momentum < 1,
                f"must be in [0, 1), such as 0.999, or null for no second network, got {self.momentum}",
            ),
        )


class RememberedLoss(SideTerm):
    """A pairwise loss over the batch and a memory of past ones (Wang et al., CVPR 2020).

    The anchors are the batch. They are compared with the batch, through which gradients run, and with the
    memory, through which none does: no embedding meets itself, but an image may meet what it was in an
    earlier batch. While the memory is empty, and during its warm-up, this is the loss alone.

    Args:
        loss: takes `references` and `with_batch`.
        dim: of what it reads.
        options: of the memory.

    Attributes:
        stateful: tells the objective that there is something to do after a step.
        momentum: of the network whose embeddings are kept; None for the trained one.
    """

    stateful = True

    def __init__(self, loss: PairwiseLoss, dim: int, options: MemoryOptions):
        super().__init__()
        self.loss = loss
        self.memory = CrossBatchMemory(options.size, dim)
        self.warmup, self.momentum = options.warmup, options.momentum

    def at(self, moment: Moment) -> Tensor:
        """The loss of the batch of all ranks, or of this one for a term without `gather`."""
        x, labels = moment.x, moment.labels
        if moment.gather is not None:
            x, labels = moment.gather(x, labels)
        done = moment.progress if self.warmup < 1 else self.memory.pushes
        if done < self.warmup:
            return self.loss(x, labels)
        return self.loss(x, labels, *self.memory.references(), with_batch=True)

    def after_step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Keeps the embeddings [B, D] and labels [B] of the batch of all ranks."""
        self.memory.push(embeddings, labels)


def memory_problems(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with the `memory` of a term whose other options are right, as (key, message) pairs."""
    memory = options["memory"]
    if not isinstance(memory, Mapping):
        return [("memory", f"expected a mapping such as {{size: 8192}}, got {memory!r}")]
    unfit = _unfit(options)
    if unfit is not None:
        return [("memory", unfit)]
    names = [field.name for field in fields(MemoryOptions)]
    found = [(f"memory.{key}", unknown("option", key, names)) for key in memory if key not in names]
    known = {key: value for key, value in memory.items() if key in names}
    lines = signature_problems(MemoryOptions, known)
    if not lines:
        try:
            chosen = MemoryOptions(**known)
        except OptionError as error:
            lines = error.problems
        else:
            end = options.get("end", 1.0)
            if end <= chosen.warmup < 1:
                lines = [
                    f"warmup: ends at {chosen.warmup}, the term already at {end}: it would never be used"
                ]
    split = (line.partition(": ") for line in lines)
    return found + [(f"memory.{key}", text) for key, _, text in split]


def takes_memory(loss: type) -> bool:
    """Whether a class of losses compares a batch with references."""
    return issubclass(loss, PairwiseLoss)


def _unfit(options: Mapping[str, Any]) -> str | None:
    """Why a loss that takes references would do so at a price that no memory is worth."""
    name, choice = options["loss"], options.get("miner", "batch_hard")
    price = "which would compare all of the memory with itself"
    if options.get("swap", False) and may_mine(choice)[0]:
        miner = miner_of(choice)
        if miner is None or not miner.in_triplets:
            single = [known for known in MINERS.names() if MINERS.get(known)().in_triplets]
            return (
                f"is not for swap: true and miner: {'batch_all' if miner is None else miner.name}, {price}; "
                f"take swap: false, or a miner of single triplets ({', '.join(single)})"
            )
    if getattr(LOSSES.get(name), "grows_squared", False):
        return f"is not for loss {name}, {price}; leave one of them out"
    return None
