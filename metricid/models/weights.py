"""Weight files from anywhere, opened without running their code."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from metricid.errors import InputError

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "backbone")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.")


def load_weights_file(path: str | Path) -> dict[str, Tensor]:
    """Reads a `.safetensors`, `.pth`, `.pt` or `.bin` file of tensors to a flat name -> tensor mapping.

    Pickled files are opened by PyTorch's weights-only unpickler: code inside them is not run. Common
    wrappings (`{"state_dict": ...}`) and prefixes shared by all names (`module.`) are removed.

    Raises:
        InputError: no such file, not a weight file, or a file that holds more than tensors and plain values.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such weight file; check model.weights")
    try:
        content: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file}: refused, it is damaged or holds more than tensors (opening it could run its code); "
            "convert it to .safetensors on a machine you trust"
        ) from error
    except Exception as error:  # random bytes make the unpickler fail in any way
        raise InputError(f"{file}: not a readable weight file ({first_line(error)})") from error
    for _ in WRAPPERS:
        inner = next(
            (content[k] for k in WRAPPERS if isinstance(content, dict) and _is_mapping(content.get(k))), None
        )
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}, expected a mapping of names to tensors")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{file}: holds no tensors; expected a mapping of names to tensors")
    return strip_prefixes(tensors)


def strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes prefixes such as `module.` that every name carries; of an embedder, takes the backbone."""
    inside = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    tensors = inside or tensors
    for _ in PREFIXES:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            return tensors
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())
