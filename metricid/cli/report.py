"""`metricid report SUBJECT`: one HTML page about a run, a folder of results, or stored embeddings."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricid.config import DataConfig, EvaluationConfig, RunConfig, apply_overrides, expand
from metricid.data.decode import ImageError
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.factory import SYNTHETIC, Splits, build_splits, pick_workers
from metricid.data.manifest import Manifest, check_files
from metricid.data.sources import ImageSource, open_source
from metricid.errors import InputError
from metricid.evaluation import PROTOCOLS
from metricid.files import atomic_write
from metricid.registry import unknown
from metricid.report.embedding_map import METHODS
from metricid.report.page import Report, render
from metricid.report.people import Choice, lay_out, look_at_people
from metricid.report.run_files import read_environment, read_log, read_results, read_text
from metricid.report.search_view import MOST_QUERIES
from metricid.training.build import check_recipe
from metricid.training.checkpoint import load_embedder, open_checkpoint
from metricid.training.distributed import World, start_world, stop_world
from metricid.training.embedding import Embedded, embed_images
from metricid.training.precision import pick_precision
from metricid.training.run_folder import read_run_recipe
from metricid.training.validation import check_columns, run_protocols

STORED = (".parquet", ".npy")
MOST_TOP = 20
COLUMNS = ("identity", "camera", "split")


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


@dataclass(frozen=True)
class Material:
    """What a page is made of, before anything is searched.

    Attributes:
        report: the page without people and map.
        embedded: embeddings with their table, or None.
        source: where the images are; None for a page without pictures.
        settings: the evaluation that the search follows.
    """

    report: Report
    embedded: Embedded | None
    source: ImageSource | None
    settings: EvaluationConfig


def run(options: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    subject = Path(options.subject)
    _check_numbers(options)
    output = _target(options, subject)
    world = start_world(options.device)
    try:
        material = _material(options, subject, world)
    finally:
        stop_world()
    if not world.is_main:
        return 0
    page, pictures = _page(options, material)
    data = page.encode("utf-8", errors="replace")
    with atomic_write(output) as file:
        file.write(data)
    values = {"report": str(output), "bytes": len(data), "pictures": pictures}
    print(json.dumps(values) if options.json else f"{output} ({len(data) / 1e6:.1f} MB, {pictures} pictures)")
    return 0


def _page(options: argparse.Namespace, material: Material) -> tuple[str, int]:
    """The page and its number of different pictures."""
    report, embedded = material.report, material.embedded
    if embedded is None or not len(embedded.table):
        return render(report), 0
    table, settings = embedded.table, material.settings
    try:
        people = look_at_people(
            embedded.vectors,
            {name: table.column(name) for name in COLUMNS},
            table.paths,
            None if material.source is None else _reader(material.source),
            protocols=settings.protocols,
            distractors=settings.distractors,
            results=report.results,
            choice=Choice(options.queries, options.top, options.seed),
        )
        laid_out = lay_out(embedded.vectors, people, options.map, options.seed)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{options.subject}: {error}") from error
    full = Report(**{**vars(report), "people": people, "laid_out": laid_out})
    return render(full), len(people.pictures)


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
    values, results = read_results(folder)
    environment = read_environment(folder / "environment.json")
    notes: list[str] = []
    splits = None if options.no_pictures else _splits(options, config)
    embedded = None
    if options.embeddings is not None:
        embedded = _stored(options.embeddings)
    elif splits is None:
        notes.append("No image was read for this page: it has no ranked lists, confusions and map.")
    elif splits.test is None:
        notes.append("The recipe has no test identities: there is nothing to search.")
    else:
        embedded = _embed(options, folder, config, splits.source, splits.test, world)
        if _other_images(environment, splits.test):
            notes.append(
                "The test images have changed since the run: the ranked lists, confusions and map are of "
                "the images as they are now, the results are not."
            )
        if embedded.skipped:
            notes.append(f"{len(embedded.skipped)} unreadable images are left out of the ranked lists.")
    source = None if splits is None else splits.source
    if embedded is not None and source is not None and options.embeddings is not None:
        _check_images(embedded.table, source)
    report = Report(
        title=config.name,
        kind="Training run",
        results=results,
        summary=values,
        log=read_log(folder / "log.jsonl"),
        recipe=read_text(folder / "recipe.yaml"),
        environment=_facts(environment),
        notes=notes,
    )
    return Material(report, embedded, source, config.evaluation)


def _of_results(options: argparse.Namespace, folder: Path) -> Material:
    _refuse(options, folder, "a folder of results", ("protocol", "overrides", "manifest"))
    values, results = read_results(folder)
    notes = []
    embedded = source = None
    if options.embeddings is not None:
        embedded = _stored(options.embeddings)
        source = _images(options, options.embeddings, embedded.table)
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
    source = _images(options, file, stored.table)
    settings = EvaluationConfig(protocols=protocols)
    embedded = Embedded(stored.embeddings, stored.table, [])
    results = run_protocols(embedded, settings, subject=file.name)
    card = [(name, _plain(value)) for name, value in stored.card.items()]
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
    checkpoint, state = open_checkpoint(folder, _warn)
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


def _splits(options: argparse.Namespace, config: RunConfig) -> Splits:
    """The run's data, where it is now."""
    data: DataConfig = config.data
    if options.root is not None and data.train in SYNTHETIC:
        raise InputError(f"--root: layout {data.train} generates its images and takes none")
    if options.manifest is not None and data.train != "manifest":
        raise InputError(f"--manifest: is for layout manifest, this is {data.train}")
    moved = {"root": options.root, "manifest": options.manifest}
    data = data.model_copy(update={name: value for name, value in moved.items() if value is not None})
    try:
        return build_splits(data, make_queries=config.evaluation.query_gallery)
    except InputError as error:
        if options.root is not None:
            raise
        raise InputError(
            f"{error} (if the images have moved, say where with --root; --no-pictures makes a page without)"
        ) from error


def _images(options: argparse.Namespace, file: Path, table: Manifest) -> ImageSource | None:
    """Where the images of stored embeddings are."""
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


def _reader(source: ImageSource) -> Callable[[str], np.ndarray | None]:
    def read(path: str) -> np.ndarray | None:
        try:
            return source.read(path)
        except ImageError:
            return None

    return read


def _other_images(environment: dict[str, Any] | None, table: Manifest) -> bool:
    try:
        return environment is not None and environment["data"]["test"]["fingerprint"] != table.fingerprint()
    except (KeyError, TypeError):
        return False


def _facts(environment: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The environment of a run as names and texts."""
    facts = []
    for name, value in (environment or {}).items():
        if name == "command" and isinstance(value, list):
            facts.append((name, shlex.join(map(str, value))))
        elif name == "data" and isinstance(value, dict):
            for part, about in value.items():
                facts.append((f"data: {part}", _plain(about)))
        else:
            facts.append((name, _plain(value)))
    return facts


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return "unknown" if value is None else str(value)


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
        output = subject.with_suffix(".html") if stored else subject / "report.html"
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


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
