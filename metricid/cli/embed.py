"""`metricid embed MODEL [DATA] -o FILE`: embeddings of any number of images in one file."""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from metricid._version import __version__
from metricid.cli.model import ONNX_SUFFIX, add_onnx_option, onnx_options, open_model
from metricid.cli.photos import align_photos, check_layout, open_photos
from metricid.cli.subject import own_recipe, run_splits
from metricid.config import RunConfig
from metricid.data.aligned import AlignedSource
from metricid.data.decode import MAX_PIXELS
from metricid.data.embedding_file import check_target, file_suffix, sidecars, write_embeddings
from metricid.data.embedding_parts import PartFolder, stamp_images
from metricid.data.factory import SYNTHETIC, layout_names, layout_options, pick_workers
from metricid.data.float16 import float16_error
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource
from metricid.errors import InputError
from metricid.models.inference import CheckpointModel, InferenceModel
from metricid.training.distributed import World, barrier, gather_objects, pick_device, start_world, stop_world
from metricid.training.embed_parts import Speed, embed_parts

PART_IMAGES = 2048
OWN_FILE = "embeddings.parquet"
SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", help="run folder, checkpoint (.pt) or ONNX file")
    parser.add_argument(
        "data",
        nargs="?",
        help="folder, tar file, table of images (.csv, .parquet), or "
        + ", ".join(sorted(SYNTHETIC))
        + "; without it the run's own test images",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=".parquet or .npy")
    parser.add_argument("--root", help="where the images of a table are, or the run's own are now")
    parser.add_argument("--manifest", help="where the run's own table is now")
    parser.add_argument("--layout", help="what the data is: " + ", ".join(layout_names()))
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the layout, such as seed=1"
    )
    parser.add_argument("--split", help="only the rows whose split column has this value")
    parser.add_argument("--align", action="store_true", help="align faces by the landmarks of the table")
    parser.add_argument("--aligned", action="store_true", help="the images are aligned already")
    parser.add_argument("--flip", action="store_true", help="add the embedding of the mirrored image")
    parser.add_argument("--normalise", action="store_true", help="scale every embedding to length 1")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"], help="how it is stored")
    parser.add_argument("--license", metavar="TEXT", help="what others may do with it, for the card")
    parser.add_argument("--on-corrupt", choices=["error", "skip"], help="unreadable images")
    parser.add_argument("--max-pixels", type=int, help="largest image")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--part-images", type=int, default=PART_IMAGES, help="a kill loses at most so many")
    parser.add_argument("--workers", type=int, help="processes that read images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    add_onnx_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE, and parts of another run")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(options: argparse.Namespace) -> int:
    """Embeds what is not embedded yet, joins the parts, and prints what was done."""
    _resolve(options)
    _check_words(options)
    _check_target(options)
    world = start_world(options.device)
    try:
        outcome = _embed(options, world)
    finally:
        stop_world()
    if outcome is not None:
        print(json.dumps(outcome, indent=2) if options.json else _text(outcome), flush=True)
    return 0


def _resolve(options: argparse.Namespace) -> None:
    """Says what follows from DATA being there or not."""
    model = Path(options.model)
    if options.data is not None:
        if options.manifest is not None:
            raise InputError("--manifest: is for the run's own images; another table is given as DATA")
        if options.output is None:
            raise InputError("-o: give the file to write, .parquet or .npy")
        return
    if model.suffix.lower() == ONNX_SUFFIX:
        raise InputError(f"{model}: an ONNX file says nothing of test images; give DATA")
    for name in ("layout", "option"):
        if getattr(options, name):
            raise InputError(f"--{name}: says what DATA is; give DATA")
    if options.output is None:
        if not model.is_dir():
            raise InputError(f"{model}: is no run folder; give -o FILE, or the folder of a run")
        options.output = model / OWN_FILE


def _check_words(options: argparse.Namespace) -> None:
    """What is wrong whatever lies on the disk."""
    file_suffix(options.output)
    for name, least in (("batch_size", 1), ("part_images", 1), ("max_pixels", 1), ("workers", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: must be at least {least}, got {value}")
    if options.align and options.aligned:
        raise InputError("--align: is for images that are not aligned; leave out one of --align, --aligned")
    onnx_options(options.onnx)
    pick_device(options.device)
    if options.layout is not None:
        check_layout(options.layout)
        layout_options(options.layout, options.option)


def _check_target(options: argparse.Namespace) -> None:
    """What cannot be written is said before a model is opened."""
    target = options.output
    made = [target, *(sidecars(target) if target.suffix.lower() == ".npy" else ())]
    try:
        for file in made:
            if file.is_dir():
                raise InputError(f"{file}: is a folder; choose another name")
        if target.exists() and not options.overwrite:
            left = PartFolder(target, 0, 1).folder
            if left.exists():
                raise InputError(
                    f"{target}: exists, and {left.name} is left of a run that was killed; "
                    "end that run by the same command with --overwrite, or choose another name"
                )
            raise InputError(f"{target}: exists; choose another name, or replace it with --overwrite")
        check_target(target)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise InputError(f"{target}: cannot be written ({error.strerror}); choose another place") from None


def _embed(options: argparse.Namespace, world: World) -> dict[str, Any] | None:
    """The outcome, on the main rank."""
    place, config = own_recipe(Path(options.model)) if options.data is None else (options.model, None)
    if options.on_corrupt is None:
        options.on_corrupt = "error" if config is None else config.data.on_corrupt
    model = open_model(
        place,
        device=options.device if world.size == 1 else world.device,
        precision=options.precision,
        onnx=onnx_options(options.onnx),
    )
    if config is None:
        source, table = open_photos(
            options.data,
            root=options.root,
            layout=options.layout,
            option=options.option,
            split=options.split,
            max_pixels=options.max_pixels or MAX_PIXELS,
            size=model.preprocessing.size,
            say=_say if world.is_main else _silent,
        )
        source = align_photos(
            source,
            table,
            model.preprocessing.size,
            align=options.align,
            by_recipe=isinstance(model, CheckpointModel) and model.aligns and not options.aligned,
        )
    else:
        source, table = _own_images(options, config)
    batch = min(options.batch_size, options.part_images)
    parts = PartFolder(options.output, len(table), options.part_images // batch * batch)
    if not world.is_main:
        _make_parts(options, world, model, source, table, parts, batch)
        return None
    with parts.locked():
        afresh = parts.bind(_binding(options, model, source, parts, batch), afresh=options.overwrite)
        if afresh:
            _say(f"{parts.folder}: parts of another run removed")
        done, speed = _make_parts(options, world, model, source, table, parts, batch)
        outcome = _join(options, model, source, table, parts)
        parts.remove()
    images = sum(part.images for part in speed)
    seconds = max(part.seconds for part in speed)
    waited = sum(part.waited for part in speed) / sum(part.seconds for part in speed)
    return outcome | {
        "embedded_before": done,
        "embedded": images,
        "images_per_second": round(images / seconds, 1) if images else None,
        "waiting_for_images": round(waited, 4) if images else None,
    }


def _own_images(options: argparse.Namespace, config: RunConfig) -> tuple[ImageSource, Manifest]:
    """The run's test images."""
    align = (config.data.align or options.align) and not options.aligned
    splits = run_splits(
        config.model_copy(update={"data": config.data.model_copy(update={"align": align})}),
        root=options.root,
        manifest=options.manifest,
        max_pixels=options.max_pixels,
        hint="or give DATA",
    )
    if splits.test is None:
        raise InputError(f"{options.model}: its recipe has no test identities (data.split); give DATA")
    table = splits.test
    if options.split is not None:
        column = table.column("split")
        if column is None or not (column == options.split).any():
            raise InputError(f"--split: no test image of {options.model} has split {options.split!r}")
        table = table.select(column == options.split)
    return splits.source, table


def _binding(
    options: argparse.Namespace, model: InferenceModel, source: ImageSource, parts: PartFolder, batch: int
) -> dict[str, Any]:
    """All that a vector depends on besides its image."""
    return {
        "model": model.fingerprint,
        "precision": model.describe().get("precision"),
        "flip": options.flip,
        "batch size": batch,
        "part images": parts.part_images,
        **({"aligned": "by landmarks"} if isinstance(source, AlignedSource) else {}),
    }


def _make_parts(
    options: argparse.Namespace,
    world: World,
    model: InferenceModel,
    source: ImageSource,
    table: Manifest,
    parts: PartFolder,
    batch: int,
) -> tuple[int, list[Speed]]:
    """Makes what is missing, a share on each rank.

    Returns:
        The number of images that were done before, and the speed of every rank.
    """
    todo = _todo(options, source, table, parts) if world.is_main else []
    todo = gather_objects(todo, world)[0]
    done = len(table) - sum(len(parts.rows(part)) for part in todo)
    if world.is_main and done:
        _say(f"{parts.folder}: {done} of {len(table)} images are done; continuing")
    mine = todo[world.rank :: world.size]
    with tqdm(
        total=sum(len(parts.rows(part)) for part in mine),
        desc="embed" if world.size == 1 else f"embed (rank 0 of {world.size})",
        unit="img",
        disable=not (world.is_main and mine),
        mininterval=1.0,
    ) as bar:
        speed = embed_parts(
            model,
            source,
            table,
            parts,
            mine,
            device=world.device,
            batch_size=batch,
            flip=options.flip,
            workers=pick_workers(
                "auto" if options.workers is None else options.workers, world.size, world.device
            ),
            on_corrupt=options.on_corrupt,
            bar=bar,
        )
    barrier(world)
    return done, gather_objects(speed, world)


def _todo(options: argparse.Namespace, source: ImageSource, table: Manifest, parts: PartFolder) -> list[int]:
    """The parts that are missing, or of images that have changed, or that left images out which now count."""
    usable = ("whole", "partial") if options.on_corrupt == "skip" else ("whole",)
    states = {
        part: parts.state(part, stamp_images(source, table, parts.rows(part))) for part in range(len(parts))
    }
    changed = sum(state == "changed" for state in states.values())
    if changed:
        _say(f"{parts.folder}: {changed} parts are of other or changed images and are made again")
    return [part for part, state in states.items() if state not in usable]


def _join(
    options: argparse.Namespace,
    model: InferenceModel,
    source: ImageSource,
    table: Manifest,
    parts: PartFolder,
) -> dict[str, Any]:
    """Writes the file from all parts, one after the other."""
    kept = np.concatenate([parts.read(part)[0] for part in range(len(parts))])
    if not len(kept):
        raise InputError(f"{table.name}: not one of the {len(table)} images can be read")
    missing = np.setdiff1d(np.arange(len(table)), kept)
    if len(missing):
        shown = ", ".join(table.path_at(int(row)) for row in missing[:SHOWN])
        _say(
            f"{len(missing)} of {len(table)} images cannot be read and are left out: {shown}"
            + (", ..." if len(missing) > SHOWN else "")
        )
    error = float16_error(_blocks(parts, table, options.normalise)) if options.dtype == "float16" else None
    card = {
        "format": 1,
        "model": model.describe(),
        "normalised": options.normalise,
        "flip": options.flip,
        "how": "flip-sum" if options.flip else "no flip",
        "aligned": options.aligned or isinstance(source, AlignedSource),
        "dtype": options.dtype,
        "float16_error": error,
        "license": options.license,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "metricid": __version__,
        "images": len(kept),
        "skipped": len(missing),
    }
    rows = table.select(kept) if len(missing) else table
    write_embeddings(
        options.output,
        rows,
        _blocks(parts, table, options.normalise),
        card,
        dimension=model.output_dim,
        dtype=options.dtype,
    )
    return {"file": str(options.output), "dimension": model.output_dim, **_outcome(card)}


def _outcome(card: dict[str, Any]) -> dict[str, Any]:
    return {
        name: card[name]
        for name in ("images", "skipped", "dtype", "normalised", "flip", "aligned", "float16_error")
    }


def _blocks(parts: PartFolder, table: Manifest, normalise: bool) -> Iterator[np.ndarray]:
    """The vectors of one part after the other, float32 [b, D]; scaled to length 1 if so asked.

    Raises:
        InputError: a zero vector, which has no direction.
    """
    for part in range(len(parts)):
        rows, vectors = parts.read(part)
        if normalise:
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            zero = np.flatnonzero(lengths == 0)
            if len(zero):
                raise InputError(
                    f"{table.path_at(int(rows[zero[0]]))}: its embedding is zero and cannot be normalised; "
                    "leave out --normalise"
                )
            vectors = (vectors / lengths).astype(np.float32)
        yield vectors


def _text(outcome: dict[str, Any]) -> str:
    form = f"{outcome['dtype']}, {'length 1' if outcome['normalised'] else 'not normalised'}"
    form += ", of aligned faces" if outcome["aligned"] else ""
    lines = [f"{outcome['file']}: {outcome['images']} embeddings of {outcome['dimension']} values ({form})"]
    error = outcome["float16_error"]
    if error is not None:
        lines.append(
            f"float16: a value is off by at most {error['max_abs']:.2g}; a cosine by at most "
            f"{error['max_cosine_change']:.2g} in {error['pairs']} pairs, by at most "
            f"{error['cosine_bound']:.2g} in any"
        )
    if outcome["images_per_second"] is not None:
        lines.append(
            f"{outcome['images_per_second']:.0f} img/s; "
            f"{outcome['waiting_for_images']:.1%} of the time went by waiting for images"
        )
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _silent(line: str) -> None:
    """What other ranks say: the main one has said it."""
