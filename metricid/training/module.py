"""The network under training: one module, compiled and spread over ranks as the recipe asks."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from metricid.errors import InputError
from metricid.losses.objective import Objective, ObjectiveOutput
from metricid.losses.term import Side
from metricid.models.embedder import Embedder
from metricid.models.weights import first_line
from metricid.training.build import Run
from metricid.training.distributed import gather_batch, wrap_ddp
from metricid.training.precision import Precision


class TrainingModule(nn.Module):
    """Embedder and objective as one module, so that gradients of both are averaged over ranks alike."""

    def __init__(self, embedder: Embedder, objective: Objective, precision: Precision, distributed: bool):
        super().__init__()
        self.embedder = embedder
        self.objective = objective
        self.precision = precision
        self.gather = gather_batch if distributed else None

    def forward(
        self, images: Tensor, labels: Tensor, progress: float, norms: bool = False, side: Side | None = None
    ) -> tuple[ObjectiveOutput, Tensor, Tensor]:
        """The objective of a batch, with the features and embeddings it was computed from.

        Args:
            images: [B, H, W, 3] uint8.
            labels: [B] int64.
            progress: share of the training that is done.
            norms: measure the gradients of the terms, as `Objective.forward` does.
            side: columns and teachers, for the terms that read them.
        """
        side = replace(side or Side(), model=self.embedder)
        if self.objective.reads_images:
            images = self.embedder.normalize(images)
            side = replace(side, images=images)
        with self.precision.autocast():
            if self.objective.reads_map:
                features, embedding, found = self.embedder(images, with_map=True)
                side = replace(side, map=found)
            else:
                features, embedding = self.embedder(images)
            output = self.objective(
                features, embedding, labels, progress, self.gather, norms=norms, side=side
            )
        return output, features.detach(), embedding.detach()


def build_module(run: Run) -> nn.Module:
    """The module that a training step calls, in training mode."""
    train = run.config.train
    if train.compile:
        run.embedder.compile()
    run.embedder.train()
    run.objective.train()
    module = TrainingModule(run.embedder, run.objective, run.precision, run.world.distributed)
    if not run.world.distributed:
        return module
    return wrap_ddp(module, run.world.device, sync_buffers=not train.sync_batchnorm)


def check_compiler(device: torch.device) -> None:
    """Refuses `train.compile` where it cannot work, by compiling one line.

    Raises:
        InputError: torch.compile finds no compiler, or does not know the device.
    """
    try:
        torch.compile(_one_line)(torch.ones(2, device=device))
    except Exception as error:
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        raise InputError(
            f"train.compile: torch.compile does not work on {device.type} here ({first_line(error)}); "
            f"it needs {needs}: install that, or leave it out: train.compile=false"
        ) from error


def _one_line(x: Tensor) -> Tensor:
    return x.sin() + 1
