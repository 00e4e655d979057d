"""The slow second network whose embeddings a memory of past batches may keep."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metricid.models.embedder import Embedder
from metricid.training.build import Run
from metricid.training.optim import WeightAverage
from metricid.training.precision import Precision


class SlowNetwork:
    """A moving average of the embedder that embeds what goes into a memory (He et al., CVPR 2020, eq. 2).

    The decay is the momentum from the first step on, as in the paper. The paper normalises the batches of the
    second network by shuffled statistics of their own; this one runs in evaluation mode, so that an embedding
    does not depend on the other images of its batch, with the running statistics of the trained network.

    Args:
        embedder: the network in training, at its start.
        momentum: what stays of the weights at each step, in [0, 1).
        precision: of the training.
    """

    def __init__(self, embedder: Embedder, momentum: float, precision: Precision):
        self._average = WeightAverage(embedder, momentum, rising=False)
        self._precision = precision

    def update(self, embedder: Embedder) -> None:
        """Moves the weights after an optimiser step."""
        self._average.update(embedder)

    @torch.no_grad()
    def of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F] and embeddings [B, D] of images, without a graph.

        Args:
            images: as the embedder takes them.
        """
        with self._precision.autocast():
            features, embedding = self._average.model(images)
        return features, embedding

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self._average.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._average.model.load_state_dict(state)


def slow_network(run: Run) -> SlowNetwork | None:
    """The second network of a run, None where no memory asks for one."""
    momentum = run.objective.momentum
    return None if momentum is None else SlowNetwork(run.embedder, momentum, run.precision)
