"""Which arithmetic a step runs in."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from metricid.errors import InputError


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a run: float32, or autocast to bfloat16 or float16."""

    name: str
    device_type: str

    @property
    def scaled(self) -> bool:
        """Whether the loss is scaled, so that small float16 gradients do not vanish."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager[object]:
        """The context for forward passes."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, torch.bfloat16 if self.name == "bf16" else torch.float16)


def pick_precision(setting: str, device: torch.device) -> Precision:
    """The arithmetic for a setting; `auto` takes the fastest that the device computes natively.

    Raises:
        InputError: fp16 where the device has no loss scaling for it.
    """
    if setting == "auto":
        if device.type == "cuda":
            setting = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        elif device.type == "cpu":
            setting = "bf16" if _cpu_has_bf16() else "fp32"
        else:
            setting = "fp32"
    if setting == "fp16" and device.type != "cuda":
        raise InputError(
            f"precision: fp16 needs a CUDA GPU, this run is on {device.type}; use bf16, fp32 or auto"
        )
    return Precision(setting, device.type)


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
