"""Several processes as one: start, exact gradients, shared statistics."""

import inspect
import os
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metricid.config import DEVICE
from metricid.errors import InputError
from metricid.training.memory import keep_freed_memory


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """Whether there are peers."""
        return self.size > 1


def start_world(device: str) -> World:
    """Joins the process group if `torchrun` started several processes, and picks this process's device.

    On a CPU, this process keeps its freed memory from then on (see `keep_freed_memory`).

    Args:
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.

    Raises:
        InputError: a device that this machine has not, or one for all ranks; half of torchrun's variables.
    """
    size, rank, local_rank = _ranks()
    chosen = pick_device(device, local_rank)
    if size > 1 and device.startswith("cuda:"):
        raise InputError(f"device: all {size} processes would share {device}; use device=cuda")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    elif chosen.type == "cpu":
        keep_freed_memory()
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)


def _ranks() -> tuple[int, int, int]:
    """World size, rank and local rank, as `torchrun` sets them."""
    set_by_torchrun = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    try:
        size, rank, local_rank = (
            int(os.environ.get(name, default))
            for name, default in zip(set_by_torchrun, ("1", "0", "0"), strict=True)
        )
    except ValueError as error:
        raise InputError(
            f"{', '.join(set_by_torchrun)}: not all numbers; start with torchrun, or unset WORLD_SIZE"
        ) from error
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and missing:
        raise InputError(
            f"WORLD_SIZE={size} without {', '.join(missing)}; start with torchrun, or unset WORLD_SIZE"
        )
    return size, rank, local_rank


def stop_world() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def pick_device(device: str, local_rank: int = 0) -> torch.device:
    """The device for a name; `auto` takes a GPU where there is one.

    Raises:
        InputError: no device's name, or a device that this machine has not.
    """
    if not re.fullmatch(DEVICE, device):
        raise InputError(f"device: {device!r} is none of auto, cpu, cuda, cuda:N, mps")
    if device == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        else:
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = local_rank if chosen.index is None else chosen.index
        if index >= count:
            has = "no CUDA GPU" if count == 0 else f"{count} CUDA GPU(s), numbered from 0"
            raise InputError(f"device: {device} was asked for, this machine has {has}; use device=auto")
        return torch.device("cuda", index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: mps was asked for, this machine has none; use device=auto")
    return chosen


class _AllGather(torch.autograd.Function):
    """Concatenates a tensor over ranks; the gradients of all ranks for a slice are summed for its owner.

    Every rank computes the loss of the joined batch, so that sum is `size` times the gradient of one loss,
    and the averaging of gradients over ranks divides by `size` again: the joined batch's gradient, exactly.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_batch(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The joined batch of all ranks, in rank order, with a gradient.

    Args:
        x: [B, D], the same B on every rank.
        labels: [B].

    Returns:
        [size * B, D] and [size * B].
    """
    parts = [torch.empty_like(labels) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, labels.contiguous())
    return _AllGather.apply(x.contiguous()), torch.cat(parts)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


class JoinedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the joined batch of all ranks, on any device.

    PyTorch's SyncBatchNorm runs on GPUs only; this one serves where there are none. Child modules (the
    activation that timm fuses into a norm) are applied to the result.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.ndim}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises `[B, C, ...]`; in evaluation it is the ordinary layer."""
        y = self._normalize(input) if self.training else super().forward(input)
        for part in self.children():
            y = part(y)
        return y

    def _normalize(self, input: Tensor) -> Tensor:
        x = input if input.dtype == torch.float64 else input.float()
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _SumOverRanks.apply(x.sum(axes)) / count
        centered = x - mean.view(shape)
        variance = _SumOverRanks.apply(centered.square().sum(axes)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        y = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


def join_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replaces the batch normalisations of a model by ones that see the joined batch of all ranks."""
    if device.type == "cuda":
        import timm.layers

        return timm.layers.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, _joined(child))
        else:
            join_batchnorm(child, device)
    return module


def _joined(norm: nn.modules.batchnorm._BatchNorm) -> JoinedBatchNorm:
    new = JoinedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new._parameters.update(norm._parameters)
    new._buffers.update(norm._buffers)
    new._modules.update(norm._modules)
    new.training = norm.training
    return new


def wrap_ddp(module: nn.Module, device: torch.device, *, sync_buffers: bool) -> DistributedDataParallel:
    """Averages the gradients of all ranks; with `sync_buffers`, rank 0's running statistics hold for all."""
    accepted = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
    options: dict[str, Any] = {name: sync_buffers, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(module, **options)


@torch.no_grad()
def share_buffers(module: nn.Module, world: World) -> None:
    """Gives every rank the running statistics of rank 0."""
    if world.distributed:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def any_rank(flag: bool, world: World) -> bool:
    """Whether the flag is set on any rank."""
    if not world.distributed:
        return flag
    value = torch.tensor(int(flag), device=world.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


class Interrupted(Exception):
    """A rank has left what all ranks were doing together."""


def gather_objects(value: Any, world: World) -> list[Any]:
    """The value of every rank, in rank order, on every rank.

    Raises:
        Interrupted: a rank has called `interrupt` instead.
    """
    values: list[Any] = [value] * world.size
    if world.distributed:
        dist.all_gather_object(values, value)
    for found in values:
        if isinstance(found, Interrupted):
            raise found
    return values


def interrupt(world: World) -> None:
    """Leaves joint work ahead of its `gather_objects`, at which the other ranks leave it as well.

    Raises:
        Interrupted: always.
    """
    gather_objects(Interrupted(), world)


def barrier(world: World) -> None:
    """Waits for all ranks."""
    if world.distributed:
        dist.barrier()
