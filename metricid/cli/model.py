"""Opens the model that a command line names."""

import sys
from pathlib import Path

import torch

from metricid.errors import InputError
from metricid.models.inference import CheckpointModel, InferenceModel
from metricid.training.checkpoint import load_embedder, open_checkpoint
from metricid.training.distributed import pick_device
from metricid.training.precision import pick_precision


def open_model(
    path: str | Path, *, device: str | torch.device = "auto", precision: str = "auto"
) -> InferenceModel:
    """The model of a run folder (its best checkpoint), a checkpoint (`.pt`) or an ONNX file.

    Args:
        path: where it is.
        device: as `pick_device` takes it, or a device already chosen.
        precision: `auto`, `fp32`, `bf16` or `fp16`, of a checkpoint.

    Raises:
        InputError: nothing there, nothing readable, or a device or precision that this machine has not.
    """
    file = Path(path)
    chosen = pick_device(device) if isinstance(device, str) else device
    if file.suffix.lower() == ".onnx":
        return _open_onnx(file)
    return _open_checkpoint(file, chosen, precision)


def _open_checkpoint(path: Path, device: torch.device, precision: str) -> CheckpointModel:
    checkpoint, state = open_checkpoint(path, _warn)
    arithmetic = pick_precision(precision, device)
    return CheckpointModel(
        load_embedder(state, checkpoint),
        name=f"{state['config']['name']} ({checkpoint.name})",
        device=device,
        autocast=arithmetic.autocast,
        precision=arithmetic.name,
    )


def _open_onnx(path: Path) -> InferenceModel:
    raise InputError(f"{path}: ONNX files cannot be opened yet; give a run folder or a checkpoint")


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
