"""`metricid report SUBJECT`: one HTML page about a run, a folder of results, or stored embeddings."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metricid.cli.subject import run_splits, warn
from metricid.config import EvaluationConfig, RunConfig, expand
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.factory import pick_workers
from metricid.data.manifest import Manifest, check_files
from metricid.data.sources import ImageSource, open_source
from metricid.errors import InputError
from metricid.evaluation import PROTOCOLS
from metricid.registry import unknown
from metricid.report.embedding_map import METHODS, check_method
from metricid.report.page import Report
from metricid.report.people import Choice
from metricid.report.run_files import read_environment, read_results
from metricid.report.search_view import MOST_QUERIES
from metricid.training.build import check_recipe
from metricid.training.checkpoint import load_embedder, open_checkpoint
from metricid.training.distributed import World, start_world, stop_world
from metricid.training.embedding import Embedded, embed_images
from metricid.training.precision import pick_precision
from metricid.training.run_folder import read_run_recipe
from metricid.training.run_page import NO_TEST, REPORT, Material, fact, run_material, write_page
from metricid.training.validation import check_columns, run_protocols
from metricid.yaml_files import apply_overrides

STORED = (".parquet", ".npy")
MOST_TOP = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("subject", help="run folder, folder of `evaluate -o`, or embeddings (.parquet, .npy)")
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="of the run's recipe, such as data.root=/moved"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the page (default: report.html)")
    parser.add_argument(
        "--embeddings", type=Path, metavar="FILE", help="stored ones, instead of computing them again"
    )
    parser.add_argument("--root", help="folder or tar file where the images are")
    parser.add_argument("--manifest", help="where the run's own table is now")
    parser.add_argument(
        "--no-pictures",
        action="store_true",
        help="read no image; ranked lists and map then need --embeddings",
    )
    parser.add_argument("--protocol", help="for stored embeddings, comma-separated")
    parser.add_argument("--queries", type=int, default=6, help="best, worst and random queries shown, each")
    parser.add_argument("--top", type=int, default=10, help="images in a ranked list")
    parser.add_argument("--seed", type=int, default=0, help="of the random queries and of the map")
    parser.add_argument("--map", default="pca", choices=METHODS, help="how the embedding map is made")
    parser.add_argument("--batch-size", type=int, help="images per forward pass")
    parser.add_argument("--workers", type=int, help="processes that read images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--json", action="store_true", help="print where the page is as JSON")


def run(options: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    subject = Path(options.subject)
    _check_numbers(options)
    check_method(options.map)
    output = _target(options, subject)
    world = start_world(options.device)
    try:
        material = _material(options, subject, world)
    finally:
        stop_world()
    if not world.is_main:
        return 0
    made = write_page(output, material, Choice(options.queries, options.top, options.seed), options.map)
    values = {"report": str(output), "bytes": made.size, "pictures": made.pictures}
    text = f"{output} ({made.size / 1e6:.1f} MB, {made.pictures} pictures)"
    print(json.dumps(values) if options.json else text)
    return 0


def _material(options: argparse.Namespace, subject: Path, world: World) -> Material:
    if subject.suffix.lower() in STORED:
        return _of_stored(options, subject)
    if not subject.is_dir():
        raise InputError(
            f"{subject}: no such folder; give a run folder, a folder of `metricid evaluate -o`, "
            "or embeddings (.parquet, .npy)"
        )
    recipe = read_run_recipe(subject)
    if recipe is None:
        return _of_results(options, subject)
    config = check_recipe(apply_overrides(recipe, options.overrides), str(subject / "recipe.yaml"))
    return _of_run(options, subject, config, world)


def _of_run(options: argparse.Namespace, folder: Path, config: RunConfig, world: World) -> Material:
    _refuse(options, folder, "a run", ("protocol",))
    read_results(folder)  # a run without them is refused before its images are embedded
    notes: list[str] = []
    splits = None
    if not options.no_pictures:
        hint = "--no-pictures makes a page without"
        splits = run_splits(config, root=options.root, manifest=options.manifest, hint=hint)
    embedded = None
    if options.embeddings is not None:
        embedded = _stored(options.embeddings)
    elif splits is None:
        notes.append("No image was read for this page: it has no ranked lists, confusions and map.")
    elif splits.test is None:
        notes.append(NO_TEST)
    else:
        embedded = _embed(options, folder, config, splits.source, splits.test, world)
        if _other_images(read_environment(folder / "environment.json"), splits.test):
            notes.append(
                "The test images have changed since the run: the ranked lists, confusions and map are of "
                "the images as they are now, the results are not."
            )
    source = None if splits is None else splits.source
    if embedded is not None and source is not None and options.embeddings is not None:
        _check_images(embedded.table, source)
    return run_material(folder, config, embedded, source, notes)


def _of_results(options: argparse.Namespace, folder: Path) -> Material:
    _refuse(options, folder, "a folder of results", ("protocol", "overrides", "manifest"))
    values, results = read_results(folder)
    notes = []
    embedded = source = None
    if options.embeddings is not None:
        embedded = _stored(options.embeddings)
        source = images_of(options, options.embeddings, embedded.table)
    else:
        _refuse(options, folder, "a folder of results without --embeddings", ("root",))
        notes.append("Without embeddings there are no ranked lists, confusions and map.")
    protocols = [r.protocol for r in results if r.subject == results[0].subject]
    settings = EvaluationConfig(protocols=protocols)
    title = str(values.get("subject") or folder.name)
    return Material(
        Report(title=title, kind="Evaluation", results=results, notes=notes), embedded, source, settings
    )


def _of_stored(options: argparse.Namespace, file: Path) -> Material:
    _refuse(options, file, "stored embeddings", ("embeddings", "overrides", "manifest"))
    stored = EmbeddingSet.read(file)
    protocols = _protocols(options, stored.table)
    check_columns(protocols, stored.table)
    source = images_of(options, file, stored.table)
    settings = EvaluationConfig(protocols=protocols)
    embedded = Embedded(stored.embeddings, stored.table, [])
    results = run_protocols(embedded, settings, subject=file.name)
    card = [(name, fact(value)) for name, value in stored.card.items()]
    report = Report(title=file.name, kind="Stored embeddings", results=results, environment=card)
    return Material(report, embedded, source, settings)


def _embed(
    options: argparse.Namespace,
    folder: Path,
    config: RunConfig,
    source: ImageSource,
    table: Manifest,
    world: World,
) -> Embedded:
    checkpoint, state = open_checkpoint(folder, warn)
    return embed_images(
        load_embedder(state, checkpoint).to(world.device),
        source,
        table,
        world=world,
        precision=pick_precision(options.precision, world.device),
        batch_size=options.batch_size or config.evaluation.batch_size,
        flip=config.evaluation.flip,
        workers=pick_workers(
            config.data.workers if options.workers is None else options.workers, world.size, world.device
        ),
        on_corrupt=config.data.on_corrupt,
    )


def images_of(options: argparse.Namespace, file: Path, table: Manifest) -> ImageSource | None:
    """Where the images of stored embeddings are; None for a page without pictures.

    Raises:
        InputError: the options do not say, or not all images are there.
    """
    if options.no_pictures:
        return None
    if options.root is None:
        raise InputError(
            f"{file}: does not say where its images are; give --root FOLDER, "
            "or --no-pictures for a page without"
        )
    source = open_source(expand(options.root, "--root"))
    _check_images(table, source)
    return source


def _check_images(table: Manifest, source: ImageSource) -> None:
    try:
        check_files(table, source)
    except InputError as error:
        raise InputError(
            f"{error} (say with --root where they are; --no-pictures makes a page without)"
        ) from error


def _stored(file: Path) -> Embedded:
    stored = EmbeddingSet.read(file)
    return Embedded(stored.embeddings, stored.table, [])


def _protocols(options: argparse.Namespace, table: Manifest) -> list[str]:
    if options.protocol is not None:
        names = options.protocol.split(",")
        usable = sorted(name for name in PROTOCOLS if name != "lfw")  # its pairs lie beside the images
        for name in names:
            if name not in usable:
                raise InputError(f"--protocol: {unknown('protocol', name, usable)}")
        return names
    split = table.column("split")
    divided = split is not None and {"query", "gallery"} <= set(split.tolist())
    first = "reid" if divided and table.column("camera") is not None else "identification"
    return [first, "verification"]


def _other_images(environment: dict[str, Any] | None, table: Manifest) -> bool:
    try:
        return environment is not None and environment["data"]["test"]["fingerprint"] != table.fingerprint()
    except (KeyError, TypeError):
        return False


def _refuse(options: argparse.Namespace, subject: Path, what: str, names: Sequence[str]) -> None:
    """Options that say nothing about this kind of subject."""
    for name in names:
        if getattr(options, name) not in (None, []):
            option = options.overrides[0] if name == "overrides" else f"--{name}"
            raise InputError(f"{option}: has no meaning for {subject}, which is {what}")


def _check_numbers(options: argparse.Namespace) -> None:
    limits = {
        "queries": (1, MOST_QUERIES),
        "top": (1, MOST_TOP),
        "batch_size": (1, None),
        "workers": (0, None),
        "seed": (0, 2**32 - 1),
    }
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if value is not None and (value < least or (most is not None and value > most)):
            upper = "" if most is None else f" and at most {most}"
            raise InputError(f"--{name.replace('_', '-')}: must be at least {least}{upper}, got {value}")


def _target(options: argparse.Namespace, subject: Path) -> Path:
    """Where the page goes; that it can be written is checked before an hour of embedding."""
    output: Path | None = options.output
    if output is None:
        stored = subject.suffix.lower() in STORED
        output = subject.with_suffix(".html") if stored else subject / REPORT
        if not stored and not subject.is_dir():
            return output  # the subject itself is what is wrong
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        raise InputError(f"--output: {output} must be a file whose name ends in .html")
    near = output.absolute().parent
    while not near.exists():
        near = near.parent
    if not (near.is_dir() and os.access(near, os.W_OK)):
        raise InputError(f"--output: {near} is no folder that can be written to; choose another place")
    return output
