"""Protocols run on the embeddings of a model."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from metricid.config import DataConfig, EvaluationConfig
from metricid.data.factory import pick_workers
from metricid.data.layouts.lfw import Pairs
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource
from metricid.errors import InputError
from metricid.evaluation import NEEDED, PROTOCOLS, ProtocolResult
from metricid.models.embedder import Embedder
from metricid.training.distributed import World, interrupt
from metricid.training.embedding import Embedded, embed_images, pixel_vectors
from metricid.training.precision import Precision

COLUMNS = ("identity", "camera", "split", "group")


def check_columns(protocols: Sequence[str], table: Manifest) -> None:
    """Refuses a protocol before the work that it would fail after.

    Raises:
        InputError: the table lacks a column that a protocol reads.
    """
    for protocol in protocols:
        missing = [name for name in NEEDED[protocol] if name in COLUMNS and table.column(name) is None]
        if missing:
            raise InputError(
                f"evaluation: protocol {protocol} needs the column {missing[0]!r}, which the data has not"
                + ("; divide it into query and gallery (query_gallery)" if missing == ["split"] else "")
            )
        counts = np.unique(table.identities.astype(str), return_counts=True)[1]
        if protocol != "lfw" and (len(counts) < 2 or counts.max() < 2):
            raise InputError(
                f"evaluation: protocol {protocol} needs two identities, and two images of one of them; "
                f"there are {len(counts)} identities with at most {counts.max(initial=0)} images"
            )


class _Stoppable:
    """An embedder that leaves the evaluation before the next batch once `stop` says so."""

    def __init__(self, embedder: Embedder, stop: Callable[[], bool], world: World):
        self._embedder, self._stop, self._world = embedder, stop, world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        if self._stop():
            interrupt(self._world)
        return self._embedder.embed(images, flip=flip)


def embed_for_protocols(
    embedder: Embedder,
    source: ImageSource,
    table: Manifest,
    data: DataConfig,
    options: EvaluationConfig,
    world: World,
    precision: Precision,
    stop: Callable[[], bool] | None = None,
) -> Embedded:
    """Embeds a manifest as an evaluation wants it; all ranks embed, all get the whole.

    Args:
        embedder: the model.
        source: where the images are.
        table: the test images.
        data: its workers and its policy for unreadable images are used.
        options: batch size and flip.
        world: this process among its peers.
        precision: arithmetic of the forward pass.
        stop: asked before each batch whether to leave; one rank's yes holds for all.

    Raises:
        InputError: an unreadable image.
        Interrupted: `stop` said so.
    """
    watched = embedder if stop is None else cast(Embedder, _Stoppable(embedder, stop, world))
    return embed_images(
        watched,
        source,
        table,
        world=world,
        precision=precision,
        batch_size=options.batch_size,
        flip=options.flip,
        workers=pick_workers(data.workers, world.size, world.device),
        on_corrupt=data.on_corrupt,
    )


def evaluate_model(
    embedder: Embedder,
    source: ImageSource,
    table: Manifest,
    data: DataConfig,
    options: EvaluationConfig,
    world: World,
    precision: Precision,
    subject: str = "",
    pairs: Pairs | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[ProtocolResult]:
    """Embeds a manifest and runs protocols.

    Args:
        embedder: the model.
        source: where the images are.
        table: the test images.
        data: see `embed_for_protocols`.
        options: what is measured, and how.
        world: this process among its peers; all get the results.
        precision: arithmetic of the forward pass.
        subject: what is evaluated, for the table.
        pairs: pairs of rows of the table, for the protocol `lfw`.
        stop: see `embed_for_protocols`.

    Raises:
        InputError: an unreadable image, or data that a protocol cannot use.
        Interrupted: `stop` said so.
    """
    embedded = embed_for_protocols(embedder, source, table, data, options, world, precision, stop)
    return run_protocols(embedded, options, subject=subject, how=flip_text(options), pairs=pairs)


def flip_text(options: EvaluationConfig) -> str:
    """Which of the two usual forms of the embedding a number belongs to."""
    return "flip-sum" if options.flip else "no flip"


def evaluate_pixels(
    source: ImageSource,
    table: Manifest,
    data: DataConfig,
    options: EvaluationConfig,
    pairs: Pairs | None = None,
) -> list[ProtocolResult]:
    """The protocols on raw pixels, the baseline that needs no model.

    Raises:
        InputError: more pixels than 4 GiB of float32.
    """
    embedded = pixel_vectors(
        source, table, data.size, pick_workers(data.workers, 1, torch.device("cpu")), data.on_corrupt
    )
    return run_protocols(embedded, options, subject="raw pixels", how="no flip", pairs=pairs)


def run_protocols(
    embedded: Embedded,
    options: EvaluationConfig,
    *,
    subject: str = "",
    how: str = "",
    pairs: Pairs | None = None,
) -> list[ProtocolResult]:
    """Runs protocols on embeddings.

    Raises:
        InputError: data that a protocol cannot use.
    """
    columns = {name: embedded.table.column(name) for name in COLUMNS}
    table = {name: values for name, values in columns.items() if values is not None}
    if pairs is not None:
        if embedded.skipped:
            raise InputError(
                f"{embedded.skipped[0]}: unreadable, and the pairs file may name it; replace it "
                f"({len(embedded.skipped)} unreadable images)"
            )
        table |= {"pairs": np.stack([pairs.a, pairs.b], axis=1), "same": pairs.same, "folds": pairs.fold}
    who = ", ".join(part for part in (subject, how) if part)
    results = []
    for name in options.protocols:
        accepted = inspect.signature(PROTOCOLS[name]).parameters
        extra: dict[str, Any] = {"bootstrap": options.bootstrap, "distractors": options.distractors}
        extra = {key: value for key, value in extra.items() if key in accepted}
        try:
            result = PROTOCOLS[name](embedded.vectors, table, variant_prefix=options.variant, **extra)
        except ValueError as error:
            raise InputError(f"evaluation: {name}: {error}") from error
        if embedded.skipped:
            result.notes.append(f"{len(embedded.skipped)} unreadable images are left out.")
        results.append(replace(result, subject=who))
    return results
