"""`metricid evaluate SUBJECT`: a run, a checkpoint, stored embeddings, or a baseline on any data set."""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricid.cli.model import add_onnx_option
from metricid.cli.photos import align_photos
from metricid.cli.subject import Subject, check_overrides, open_subject, pick_tasks, warn
from metricid.config import (
    MAX_WORKERS,
    DataConfig,
    EvaluationConfig,
    expand,
)
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.factory import (
    DISTRACTORS,
    SYNTHETIC,
    build_splits,
    layout_names,
    layout_options,
    open_layout,
    pick_workers,
)
from metricid.data.layouts.lfw import Pairs, read_pairs
from metricid.data.manifest import Manifest
from metricid.data.sources import FolderSource, ImageSource, TarSource
from metricid.data.splits import query_gallery
from metricid.errors import InputError
from metricid.evaluation import PROTOCOLS, ProtocolResult, format_table
from metricid.evaluation.calibration import Calibration, calibrate
from metricid.export.vectors import embed_with
from metricid.models.embedder import embedder_to_dict
from metricid.registry import unknown
from metricid.report.plots import plot_result
from metricid.training.distributed import World, start_world, stop_world
from metricid.training.embedding import Embedded, embed_images, pixel_vectors
from metricid.training.precision import pick_precision
from metricid.training.run_folder import write_json
from metricid.training.tasks import TaskHeads
from metricid.training.validation import check_columns, flip_text, run_protocols

STORED = (".parquet", ".npy")
FOR_IMAGES = (
    "baseline",
    "layout",
    "root",
    "manifest",
    "option",
    "pairs",
    "flip",
    "save_embeddings",
    "overrides",
    "batch_size",
    "workers",
    "on_corrupt",
    "device",
    "precision",
    "onnx",
    "recipe",
    "tasks",
    "aligned",
)
FOR_LAYOUT = ("option", "split", "pairs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("subject", help="run folder, checkpoint, .onnx, embeddings (.parquet, .npy), recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="of the recipe, such as data.root=/moved"
    )
    parser.add_argument(
        "--baseline", choices=["pixels", "random"], help="no trained model, on a recipe's data"
    )
    parser.add_argument("--recipe", help="recipe or run whose data and settings count, for an ONNX file")
    add_onnx_option(parser)
    parser.add_argument("--layout", help="evaluate on other data: " + ", ".join(layout_names()))
    parser.add_argument("--root", help="folder or tar file of that data, or where the run's own data is now")
    parser.add_argument("--manifest", help="table of that data, or where the run's own table is now")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the layout, such as seed=1",
    )
    parser.add_argument("--split", help="only the rows whose split column has this value")
    parser.add_argument("--query-gallery", action="store_true", help="divide images by identity and camera")
    parser.add_argument("--distractors", help="comma-separated identities that never match (Market-1501: 0)")
    parser.add_argument("--pairs", help="pairs file of protocol lfw, inside the data (default: pairs.txt)")
    parser.add_argument("--protocol", help="comma-separated: " + ", ".join(PROTOCOLS))
    parser.add_argument("--aligned", action="store_true", default=None, help="the images are aligned already")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, help="add the mirrored image")
    parser.add_argument("--tasks", action=argparse.BooleanOptionalAction, help="the tasks of the recipe, too")
    parser.add_argument("--variant", help="text that names the data beside each number")
    parser.add_argument("--bootstrap", type=int, help="resamples for 95%% intervals")
    parser.add_argument("--on-corrupt", choices=["error", "skip"], help="unreadable images")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--save-embeddings", type=Path, metavar="FILE", help="store them (.parquet or .npy)")
    parser.add_argument(
        "--save-calibration", type=Path, metavar="FILE", help="store the thresholds of verification as JSON"
    )
    parser.add_argument("-o", "--output", type=Path, help="folder for results.json and the curves as PNG")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found, and what may be stored of it."""

    results: list[ProtocolResult]
    fingerprint: str | None
    flip: bool
    embeddings: EmbeddingSet | None = None


def run(options: argparse.Namespace) -> int:
    """Evaluates, prints the table, and writes what was asked for."""
    _check_targets(options)
    check_overrides([] if options.baseline else options.overrides)
    world = start_world(options.device)
    try:
        outcome = _evaluate(options, world)
    finally:
        stop_world()
    if not world.is_main:
        return 0
    results = outcome.results
    card = _calibration(outcome) if options.save_calibration is not None else None
    values = {"subject": options.subject, "results": [result.to_json() for result in results]}
    print(json.dumps(values, indent=2) if options.json else format_table(results), flush=True)
    if options.output is not None:
        write_json(options.output / "results.json", values)
        for result in results:
            plot_result(result, options.output / "curves")
    if outcome.embeddings is not None:
        outcome.embeddings.write(options.save_embeddings)
    if card is not None:
        card.write(options.save_calibration)
        _say_calibration(options.save_calibration, card)
    return 0


def _check_targets(options: argparse.Namespace) -> None:
    """What is to be written can be written: nobody wants to learn that after an hour of embedding."""
    file = options.save_embeddings
    if file is not None and (file.suffix.lower() not in STORED or file.is_dir()):
        raise InputError(f"--save-embeddings: {file} must be a file whose name ends in .parquet or .npy")
    card = options.save_calibration
    if card is not None and (card.suffix.lower() != ".json" or card.is_dir()):
        raise InputError(f"--save-calibration: {card} must be a file whose name ends in .json")
    for option, folder in (
        ("--output", options.output),
        ("--save-embeddings", file and file.parent),
        ("--save-calibration", card and card.parent),
    ):
        if folder is not None:
            check_folder(option, folder)


def check_folder(option: str, folder: Path) -> None:
    """A file can be written into this folder, or into one to be made.

    Raises:
        InputError: names the option.
    """
    near = folder.absolute()
    while not os.path.exists(near):
        near = near.parent
    if not (near.is_dir() and os.access(near, os.W_OK)):
        raise InputError(f"{option}: {near} is no folder that can be written to; choose another place")


def _check_data(options: argparse.Namespace, subject: Subject) -> None:
    """The options that say where the data is fit together."""
    if subject.settings is None and options.layout is None:
        raise InputError(
            f"{options.subject}: an ONNX file says nothing of test images; give --layout and --root, or "
            "--recipe with the recipe or run whose data counts"
        )
    for name in FOR_LAYOUT:
        if options.layout is None and getattr(options, name):
            raise InputError(f"--{name}: is for other data than the run's own; give --layout and --root")
    if options.aligned and not subject.data.align and options.save_embeddings is None:
        raise InputError(f"--aligned: {options.subject} aligns no images (data.align); leave it out")
    layout = options.layout or subject.data.train
    if layout in SYNTHETIC and options.root is not None:
        raise InputError(f"--root: layout {layout} generates its images and takes none")
    if layout != "manifest" and options.manifest is not None:
        raise InputError(f"--manifest: is for layout manifest, this is {layout}")
    if options.layout == "manifest" and options.manifest is None:
        raise InputError("--manifest: --layout manifest needs the table: --manifest /path/to/table.csv")


def _evaluate(options: argparse.Namespace, world: World) -> Outcome:
    """The results, and the embeddings if they are to be stored."""
    path = Path(options.subject)
    if path.suffix in STORED:
        return _evaluate_stored(options, path)
    subject = open_subject(options, path, world)
    _check_data(options, subject)
    data = _changed(
        subject.data,
        workers=options.workers,
        on_corrupt=options.on_corrupt,
        align=False if options.aligned else None,
    )
    if options.layout is None:
        data = _changed(data, root=options.root, manifest=options.manifest)
        settings = _settings(options, subject.settings or EvaluationConfig())
        source, table = _own_data(data, settings)
        pairs = None
    else:
        source, table = _other_data(options, data)
        settings = _settings(options, EvaluationConfig(**_defaults(options.layout, table)))
        table = query_gallery(table, settings.distractors) if options.query_gallery else table
        pairs = _pairs(options, source, table) if "lfw" in settings.protocols else None
        source = align_photos(source, table, subject.size, align=False, by_recipe=data.align)
    check_columns(settings.protocols, table)
    fingerprint = subject.fingerprint
    _check_calibration(options, settings.protocols, fingerprint)
    if subject.embedder is None and subject.model is None:
        settings = _changed(settings, flip=False)
    tasks = pick_tasks(options, subject, table)
    embedded = _embed(options, subject, source, table, data, settings, world, tasks)
    how = flip_text(settings)
    results = run_protocols(embedded, settings, subject=subject.name, how=how, pairs=pairs)
    if subject.embedder is not None:
        size = subject.embedder.config.preprocessing.size
        results += tasks.results(embedded.table, source, size, world, subject.name)
    stored = None
    if options.save_embeddings is not None:
        stored = _to_store(embedded, subject, how, bool(options.aligned) or data.align)
    return Outcome(results, fingerprint, settings.flip, stored)


def _embed(
    options: argparse.Namespace,
    subject: Subject,
    source: ImageSource,
    table: Manifest,
    data: DataConfig,
    settings: EvaluationConfig,
    world: World,
    tasks: TaskHeads,
) -> Embedded:
    workers = pick_workers(data.workers, world.size, world.device)
    if subject.model is not None:
        vectors, kept, skipped = embed_with(
            {subject.name: subject.model},
            source,
            table,
            flip=settings.flip,
            batch_size=settings.batch_size,
            workers=workers,
            on_corrupt=data.on_corrupt,
        )
        return Embedded(vectors[subject.name], kept, skipped)
    if subject.embedder is None:
        return pixel_vectors(source, table, data.size, workers, data.on_corrupt)
    return embed_images(
        tasks.watching(subject.embedder.to(world.device)),
        source,
        table,
        world=world,
        precision=pick_precision(options.precision, world.device),
        batch_size=settings.batch_size,
        flip=settings.flip,
        workers=workers,
        on_corrupt=data.on_corrupt,
    )


def _settings(options: argparse.Namespace, recipe: EvaluationConfig) -> EvaluationConfig:
    """The settings of the recipe, or the defaults for other data, under the options of the command line."""
    names = options.protocol.split(",") if options.protocol is not None else None
    for name in names or []:
        if name not in PROTOCOLS:
            raise InputError(f"--protocol: {unknown('protocol', name, sorted(PROTOCOLS))}")
    for option, least in (("batch_size", 1), ("bootstrap", 0), ("workers", 0)):
        value = getattr(options, option)
        if value is not None and value < least:
            raise InputError(f"--{option.replace('_', '-')}: must be at least {least}, got {value}")
    if options.workers is not None and options.workers > MAX_WORKERS:
        raise InputError(f"--workers: must be at most {MAX_WORKERS}, got {options.workers}")
    chosen = recipe.protocols if names is None else names
    if options.distractors and "reid" not in chosen and not options.query_gallery:
        raise InputError(f"--distractors: only protocol reid has them, this is {', '.join(chosen)}")
    return _changed(
        recipe,
        protocols=names,
        flip=options.flip,
        variant=options.variant,
        bootstrap=options.bootstrap,
        batch_size=options.batch_size,
        query_gallery=options.query_gallery or None,
        distractors=options.distractors.split(",") if options.distractors else None,
    )


def _defaults(layout: str, table: Manifest) -> dict[str, Any]:
    """What one measures on data of this layout unless told otherwise."""
    if layout == "lfw":
        return {"protocols": ["lfw"]}
    if table.column("camera") is not None:
        return {"protocols": ["reid"], "distractors": list(DISTRACTORS.get(layout, ()))}
    return {"protocols": ["identification"]}


def _own_data(data: DataConfig, settings: EvaluationConfig) -> tuple[ImageSource, Manifest]:
    splits = build_splits(data, make_queries=settings.query_gallery)
    if splits.test is None:
        raise InputError("the recipe has no test identities (data.split); give --layout and --root")
    return splits.source, splits.test


def _other_data(options: argparse.Namespace, data: DataConfig) -> tuple[ImageSource, Manifest]:
    """The images of another data set: one split if asked for, else query and gallery where it has them."""
    source, table = open_layout(
        options.layout,
        root=options.root,
        manifest=options.manifest and str(expand(options.manifest, "--manifest")),
        options=layout_options(options.layout, options.option),
        max_pixels=data.max_pixels,
        option="--root",
    )
    column = table.column("split")
    if options.split is not None:
        if column is None or not (column == options.split).any():
            raise InputError(f"--split: no image of {source.name} has split {options.split!r}")
        return source, table.select(column == options.split)
    if column is not None and {"query", "gallery"} <= set(column.tolist()):
        return source, table.select((column == "query") | (column == "gallery"))
    return source, table


def _pairs(options: argparse.Namespace, source: ImageSource, table: Manifest) -> Pairs:
    if not isinstance(source, (FolderSource, TarSource)):
        raise InputError(f"--protocol lfw: {options.layout} has no pairs file")
    return read_pairs(source, table, options.pairs or "pairs.txt")


def _evaluate_stored(options: argparse.Namespace, path: Path) -> Outcome:
    unused = [name for name in FOR_IMAGES if getattr(options, name) not in (None, [], "auto")]
    if unused:
        raise InputError(
            f"{path}: --{unused[0].replace('_', '-')} is for images, these are stored embeddings"
        )
    stored = EmbeddingSet.read(path)
    settings = _settings(options, EvaluationConfig(**_defaults("", stored.table)))
    table = query_gallery(stored.table, settings.distractors) if options.query_gallery else stored.table
    rows = stored.embeddings
    if options.split is not None:
        column = table.column("split")
        chosen = np.zeros(len(table), bool) if column is None else column == options.split
        if not chosen.any():
            raise InputError(f"--split: no row of {path} has split {options.split!r}")
        table, rows = table.select(chosen), rows[chosen]
    model = stored.card.get("model")
    fingerprint = model.get("fingerprint") if isinstance(model, dict) else None
    _check_calibration(options, settings.protocols, fingerprint)
    how = str(stored.card.get("how", ""))
    results = run_protocols(Embedded(rows, table, []), settings, subject=path.name, how=how)
    return Outcome(results, fingerprint, bool(stored.card.get("flip")))


def _check_calibration(options: argparse.Namespace, protocols: list[str], fingerprint: str | None) -> None:
    """A card can be made; said before the work."""
    if options.save_calibration is None:
        return
    if not {"verification", "lfw"} & set(protocols):
        raise InputError(
            "--save-calibration: needs protocol verification or lfw; give --protocol verification"
        )
    if fingerprint is None:
        raise InputError(
            f"--save-calibration: {options.subject} names no model that thresholds could belong to; "
            "evaluate the run, checkpoint or ONNX file itself"
        )


def _calibration(outcome: Outcome) -> Calibration:
    """The card: of all pairs where these were evaluated, else of the pairs file."""
    by_name = {result.protocol: result for result in outcome.results}
    result = by_name.get("verification") or by_name["lfw"]
    assert outcome.fingerprint is not None
    return calibrate(result, model=outcome.fingerprint, flip=outcome.flip)


def _say_calibration(file: Path, card: Calibration) -> None:
    warn(
        f"{file}: thresholds down to FAR {card.thresholds[-1].far:g}, "
        f"from {card.same:,} pairs of one identity and {card.different:,} of two"
    )
    if card.uncertain:
        rates = ", ".join(f"{far:g}" for far in card.uncertain)
        warn(f"{file}: fewer than 30 false accepts stand behind FAR {rates}; calibrate on more images")


def _to_store(embedded: Embedded, subject: Subject, how: str, aligned: bool) -> EmbeddingSet:
    card: dict[str, Any] = {"subject": subject.name, "normalised": False, "how": how, "aligned": aligned}
    if subject.embedder is not None:
        card["embedder"] = embedder_to_dict(subject.embedder.config)
    return EmbeddingSet(embedded.vectors, embedded.table, card)


def _changed(section: Any, **values: Any) -> Any:
    """A copy of a section of a recipe with those values that are given."""
    return section.model_copy(update={name: value for name, value in values.items() if value is not None})
