"""The pass over the training set before an epoch whose batches hold the hardest negatives of each image."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from metricid.data.factory import pick_workers
from metricid.errors import InputError
from metricid.training.build import Run
from metricid.training.distributed import World, gather_objects, interrupt, share_buffers
from metricid.training.embedding import embed_stream

CHUNK = 1 << 16  # rows that are sent at a time


def mine_offline(run: Run, folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Embeds the training images with the present network, and gives the sampler what it finds among them.

    The images pass as in an evaluation: not augmented, the network in evaluation mode, its embedding as it is
    exported. Ranks share the images and the search, and all hold the same in the end. Memory: N x D in
    float16, on a GPU for the search there as well, and the tables.

    Args:
        run: its sampler asks for this.
        folder: takes the lists of suspects.
        stop: asked before each batch whether to leave; one rank's yes holds for all.

    Returns:
        For the log: seconds and counts.

    Raises:
        InputError: an unreadable image, or embeddings that are not finite.
        Interrupted: `stop` said so.
    """
    assert run.mined is not None
    began = time.perf_counter()
    vectors, skipped = _embed(run, stop)
    embedded = time.perf_counter()
    world = run.world
    found = run.mined.sampler.use_embeddings(
        vectors, normalized=True, join=(lambda part: join_rows(part, world)) if world.distributed else None
    )
    searched = time.perf_counter()
    listed = run.mined.list_images(folder, run.splits.train, vectors, found) if world.is_main else {}
    return {
        "images": len(vectors),
        "unreadable": skipped,
        "embed_seconds": round(embedded - began, 3),
        "search_seconds": round(searched - embedded, 3),
        "search_recall": found.images.recall,
        **listed,
    }


def _embed(run: Run, stop: Callable[[], bool]) -> tuple[Tensor, int]:
    """Embeddings [N, D] float16 of length 1, zeros for images that cannot be read; how many these are."""
    config, world, embedder, table = run.config, run.world, run.embedder, run.splits.train
    if not config.train.sync_batchnorm:
        share_buffers(embedder, world)
    mine = np.array_split(np.arange(len(table)), world.size)[world.rank]
    vectors = torch.zeros(len(mine), embedder.output_dim, dtype=torch.float16)
    skipped: list[str] = []
    bad: list[str] = []
    stream = embed_stream(
        embedder,
        run.splits.source,
        table.select(mine),
        world=world,
        precision=run.precision,
        batch_size=config.evaluation.batch_size,
        flip=False,
        workers=pick_workers(config.data.workers, world.size, world.device),
        on_corrupt=config.data.on_corrupt,
        skipped=skipped,
        label="offline",
    )
    with closing(stream):
        for batch, places in stream:
            if stop():
                interrupt(world)
            unit = F.normalize(torch.from_numpy(batch), dim=1)
            bad += [table.path_at(int(mine[places[row]])) for row in _not_finite(unit)]
            vectors[places] = unit.half()
    parts = gather_objects((bad, len(skipped)), world)
    bad = [path for part in parts for path in part[0]]
    if bad:
        raise InputError(
            f"{bad[0]}: the model gives values that are not finite ({len(bad)} such images); has the "
            "training diverged? try a smaller optim.lr, train.clip_norm=1, or train.precision=fp32"
        )
    whole = join_rows(vectors, world)
    return whole.to(world.device) if world.device.type == "cuda" else whole, sum(part[1] for part in parts)


def _not_finite(rows: Tensor) -> list[int]:
    return (~rows.isfinite().all(dim=1)).nonzero().squeeze(1).tolist()


def join_rows(part: Tensor, world: World) -> Tensor:
    """The rows of all ranks, in rank order, to the bit the same on all; on the CPU.

    Args:
        part: [n, ...] on the CPU, any dtype, n of this rank's own.
        world: this process among its peers.
    """
    if not world.distributed:
        return part
    sizes = gather_objects(len(part), world)
    whole = part.new_empty(sum(sizes), *part.shape[1:])
    for rank, rows in enumerate(whole.split(sizes)):
        if rank == world.rank:
            rows.copy_(part)
        for chunk in rows.split(CHUNK):
            sent = chunk.view(torch.uint8).to(world.device)
            dist.broadcast(sent, rank)
            chunk.view(torch.uint8).copy_(sent)
    return whole
