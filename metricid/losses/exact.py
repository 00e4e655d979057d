"""Constants of a loss in float64, whatever dtype the loss is cast to."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

WITHOUT_FLOAT64 = ("mps",)


def exact_tensor(values: float | Sequence[float]) -> Tensor:
    """The values in float64 on the default device; in float32 if that is a kind that has no float64."""
    device = torch.empty(0).device
    return torch.tensor(values, dtype=_widest(device), device=device)


class ExactBuffers(nn.Module):
    """A module whose own float64 buffers stay in float64 when it is cast or moved.

    `module.half()` and `module.bfloat16()` would round them for good, and a float64 loss needs all their
    digits. A forward pass casts them to the dtype of its arithmetic: [C] numbers beside [B, C] logits. On a
    device without float64 they are float32, and come back with all digits unless they were changed there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}  # on the CPU, of buffers on a device that holds fewer digits

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        held = {
            name: buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and (buffer.dtype == torch.float64 or name in self._exact)
        }
        self._buffers.update(dict.fromkeys(held))
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(held)
        for name, buffer in held.items():
            # A float32 probe: a move to a device without float64 refuses float64 before it could be cast.
            device = fn(torch.empty(0, dtype=torch.float32, device=buffer.device)).device
            self._buffers[name] = self._moved(name, buffer, device)
        return self

    def _moved(self, name: str, buffer: Tensor, device: torch.device) -> Tensor:
        known = self._exact.pop(name, None)
        if buffer.is_meta:
            if known is None:
                return torch.empty_like(buffer, device=device)
            buffer = known
        elif known is not None and torch.equal(known.to(buffer.dtype), buffer.cpu()):
            buffer = known
        if device.type in ("meta", *WITHOUT_FLOAT64):
            self._exact[name] = buffer.cpu()
        return buffer.to(device, _widest(device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Digits that a checkpoint of a lower precision has lost are kept where it agrees otherwise."""
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is None or buffer.dtype != torch.float64 or not isinstance(saved, Tensor):
                continue
            if saved.is_floating_point() and saved.shape == buffer.shape and not buffer.is_meta:
                wide = saved.to(buffer)
                same = torch.allclose(wide, buffer, rtol=torch.finfo(saved.dtype).eps, atol=0)
                state_dict[prefix + name] = buffer if same else wide
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
