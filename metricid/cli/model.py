"""Opens the model that a command line names."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metricid.errors import InputError
from metricid.models.inference import CheckpointModel, InferenceModel
from metricid.models.onnx import OnnxModel, cuda_available
from metricid.models.onnx_plan import OnnxOptions
from metricid.registry import unknown
from metricid.training.checkpoint import load_embedder, open_checkpoint
from metricid.training.distributed import pick_device
from metricid.training.precision import pick_precision

ONNX_SUFFIX = ".onnx"


def add_onnx_option(parser: argparse.ArgumentParser) -> None:
    """Declares `--onnx`, for every command that takes a model."""
    parser.add_argument(
        "--onnx",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what an ONNX file does not say: size=112x112 (height x width), layout=NCHW or NHWC, mean=127.5 "
        "and std=127.5 (of pixels 0 to 255, one or three values), color_order=RGB or BGR, output=NAME",
    )


def onnx_options(texts: Sequence[str]) -> OnnxOptions:
    """The values of `--onnx`.

    Raises:
        InputError: another form, an unknown name, a value that cannot be.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not equals or not value:
            raise InputError(f"--onnx {text}: has the form NAME=VALUE, for example size=112x112")
        if name not in _ONNX:
            raise InputError(f"--onnx: {unknown('option of an ONNX file', name, sorted(_ONNX))}")
        values[name] = _ONNX[name](name, value)
    return OnnxOptions(**values)


def open_model(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    onnx: OnnxOptions | None = None,
) -> InferenceModel:
    """The model of a run folder (its best checkpoint), a checkpoint (`.pt`) or an ONNX file.

    Args:
        path: where it is.
        device: as `pick_device` takes it, or a device already chosen. An ONNX file with `auto` runs on the
            CPU where onnxruntime has no CUDA provider.
        precision: `auto`, `fp32`, `bf16` or `fp16`, of a checkpoint; an ONNX file has its own.
        onnx: what an ONNX file does not say itself.

    Raises:
        InputError: nothing there, nothing readable, or a device or precision that this machine has not.
    """
    file = Path(path)
    chosen = pick_device(device) if isinstance(device, str) else device
    if file.suffix.lower() == ONNX_SUFFIX:
        return _open_onnx(file, chosen, device == "auto", precision, onnx)
    if onnx is not None and onnx.given():
        raise InputError(f"--onnx {onnx.given()[0]}=...: is for ONNX files, {file} is none")
    return _open_checkpoint(file, chosen, precision)


def open_trained(path: Path) -> tuple[Path, dict[str, Any]]:
    """`open_checkpoint` for a path of the command line; standard error tells of damaged checkpoints.

    Raises:
        InputError: nothing there, or nothing readable.
    """
    if not path.exists():
        raise InputError(
            f"{path}: no such run folder or checkpoint; give the folder that metricid train made, such as "
            "runs/quickstart, or a checkpoint (.pt)"
        )
    return open_checkpoint(path, _warn)


def _open_checkpoint(path: Path, device: torch.device, precision: str) -> CheckpointModel:
    checkpoint, state = open_trained(path)
    arithmetic = pick_precision(precision, device)
    return CheckpointModel(
        load_embedder(state, checkpoint),
        name=f"{state['config']['name']} ({checkpoint.name})",
        device=device,
        autocast=arithmetic.autocast,
        precision=arithmetic.name,
        aligns=bool(state["config"].get("data", {}).get("align")),  # runs of before this option lack it
    )


def _open_onnx(
    path: Path, device: torch.device, free: bool, precision: str, options: OnnxOptions | None
) -> OnnxModel:
    if precision != "auto":
        raise InputError(f"--precision: {path} has its own arithmetic; leave the option out")
    if free and device.type == "cuda" and not cuda_available():
        _warn(f"{path}: runs on the CPU, the onnxruntime installed here has no CUDA provider")
        device = torch.device("cpu")
    return OnnxModel(path, device=device, options=options)


def _size(name: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise InputError(f"--onnx {name}={text}: has the form HEIGHTxWIDTH, for example 256x128")
    return int(found[1]), int(found[2])


def _channels(name: str, text: str) -> tuple[float, float, float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(abs(value) < 1e6 for value in values):
        raise InputError(f"--onnx {name}={text}: takes one number, or three with commas between")
    first, second, third = values * 3 if len(values) == 1 else values
    return first, second, third


def _choice(*known: str) -> Any:
    def pick(name: str, text: str) -> str:
        if text.upper() not in known:
            raise InputError(f"--onnx {name}={text}: is none of {', '.join(known)}")
        return text.upper()

    return pick


_ONNX: dict[str, Any] = {
    "size": _size,
    "layout": _choice("NCHW", "NHWC"),
    "mean": _channels,
    "std": _channels,
    "color_order": _choice("RGB", "BGR"),
    "output": lambda name, text: text,
}


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
