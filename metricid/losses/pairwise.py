"""What the modules of pairwise losses share."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from metricid.losses.mined import MinerChoice, may_mine, miner_of


class PairwiseLoss(nn.Module):
    """A loss that compares samples with each other: options in front of a pure function.

    Attributes:
        pairwise: tells the objective to join the batches of all ranks first.
        grows_squared: references are compared with each other, so that M of them cost M^2; refuses memories.
        function: maps (embeddings, labels, references, reference_labels, **options) to a scalar.
        options: the keyword arguments for `function`.
        miner: chooses the pairs or triplets that count; None for all. Its tally says how many it found.
    """

    pairwise: ClassVar[bool] = True
    grows_squared: ClassVar[bool] = False
    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, *, miner: MinerChoice = None, **options: Any):
        super().__init__()
        self.options = options
        # What cannot be built is reported by `check_options`, with whatever else is wrong.
        self.miner = miner_of(miner) if may_mine(miner)[0] else None

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        *,
        with_batch: bool = False,
    ) -> Tensor:
        """Loss of embeddings [B, D] with labels [B] int64.

        Args:
            embeddings: [B, D], the anchors.
            labels: [B] int64.
            references: [M, D] that the anchors are compared with, such as a memory; gradients reach those
                that require them. None compares the batch with itself, without self-pairs.
            reference_labels: [M] int64.
            with_batch: compare with the batch itself beside the references, without self-pairs.
        """
        return type(self).function(
            embeddings,
            labels,
            references=references,
            reference_labels=reference_labels,
            with_batch=with_batch,
            **self.arguments,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The options, and the miner where there is one."""
        return self.options if self.miner is None else {**self.options, "miner": self.miner}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.arguments.items())


def positive(value: float) -> tuple[bool, str]:
    """Rule for `check_options`: a finite number above 0."""
    return 0 < value < float("inf"), f"must be positive, got {value}"


def not_negative(value: float) -> tuple[bool, str]:
    """Rule for `check_options`: a finite number, 0 or more."""
    return 0 <= value < float("inf"), f"must be at least 0, got {value}"


def one_of(value: str, names: tuple[str, ...]) -> tuple[bool, str]:
    """Rule for `check_options`: one of some names."""
    return value in names, f"must be one of {names}, got {value!r}"
