"""Runs a function in two processes that are one training."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from metricid.training.distributed import start_world, stop_world


def in_two_ranks(main: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `main(world, *arguments)` returns in ranks 0 and 1, on the CPU, with one thread each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (port, main, arguments, results), nprocs=2)
        return [results[rank] for rank in (0, 1)]


def _rank(rank: int, port: int, main: Callable[..., Any], arguments: tuple[Any, ...], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = start_world("cpu")
    results[rank] = main(world, *arguments)
    dist.barrier()
    stop_world()
