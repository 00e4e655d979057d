"""`metricid advise DATA`: figures of a table, and what to start a training on it from, with reasons."""

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from tqdm import tqdm

from metricid.advice import Figures, NoiseEstimate, Plan, advise, describe, estimate_noise
from metricid.advice.figures import KINDS
from metricid.advice.recipe import complete, render
from metricid.advice.text import format_figures, format_plan, format_warnings
from metricid.cli.evaluate import check_folder
from metricid.config import expand
from metricid.data.decode import ImageError
from metricid.data.embedding_file import COLUMN
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.factory import DISTRACTORS, SYNTHETIC, layout_names, layout_options, open_layout
from metricid.data.layouts import market1501
from metricid.data.manifest import Manifest, check_files
from metricid.data.sources import ImageSource, open_source
from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.registry import unknown
from metricid.training.build import check_recipe

TABLES = (".csv", ".parquet")
SAMPLE = 64
WIDTH = 100
KNOWN_KINDS = {
    "lfw": "faces",
    "market1501": "people",
    "omniglot": "other",
    "synthetic_faces": "faces",
    "synthetic_pedestrians": "people",
}
NO_EMBEDDINGS = "not estimated; --embeddings FILE of a trained model tells (metricid embed)"
MARKET_NAMES = "if the names are those of Market-1501, add --layout market1501"
NO_IMAGES = "unknown: no images were found beside the table; --root says where they are"


@dataclass(frozen=True)
class Subject:
    """What the advice is about.

    Attributes:
        name: for the head line.
        table: one row per image.
        source: the images, None where they are not there.
        place: `data` of a recipe, as far as it says where the data is; None where no recipe can read it.
        layout: name of the layout.
        stored: embeddings of the table's own rows, if DATA is an embedding file.
    """

    name: str
    table: Manifest
    source: ImageSource | None
    place: dict[str, Any] | None
    layout: str
    stored: EmbeddingSet | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "data",
        nargs="?",
        help="table (.csv, .parquet), folder, tar file, embedding file (.parquet, .npy), or "
        + ", ".join(sorted(SYNTHETIC)),
    )
    parser.add_argument("--layout", help="what the data is: " + ", ".join(layout_names()))
    parser.add_argument("--root", help="where the images of a table are; with --layout, the data")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the layout, such as seed=1"
    )
    parser.add_argument("--embeddings", metavar="FILE", help="of these images, to estimate wrong labels by")
    parser.add_argument(
        "--other-cameras",
        action="store_true",
        help="for that, compare an image with those of other cameras only",
    )
    parser.add_argument("--shows", choices=KINDS, help="what the images show, in place of a guess")
    parser.add_argument("--seed", type=int, default=0, help="of the images looked at (default 0)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the advice as a recipe (.yaml)")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--json", action="store_true", help="print figures, advice and recipe as JSON")


def run(options: argparse.Namespace) -> int:
    """Reads the table, prints figures and advice, and writes the recipe if asked to."""
    _check(options)
    subject = _open(options)
    sides, unreadable = _sample(subject, options.seed)
    distractors = DISTRACTORS.get(subject.layout, ())
    try:
        figures = describe(
            subject.table.identities,
            cameras=subject.table.column("camera"),
            splits=subject.table.column("split"),
            distractors=distractors,
            sides=sides,
            unreadable=unreadable,
        )
    except ValueError as error:
        raise InputError(f"{subject.name}: {error}") from error
    noise, note = _noise(options, subject)
    kind, known = _kind(options, subject, figures)
    plan = advise(figures, noise, kind=kind, known=known, distractors=distractors)
    if options.layout is None and subject.layout == "folder":
        plan = _told_by_names(plan, figures.spread.identities, subject.table.paths)
    text = _recipe_text(options, subject, plan) if options.write is not None else None
    if options.json:
        print(json.dumps(_values(subject, figures, noise, plan), indent=2))
    else:
        print(_page(subject, figures, noise, note, plan))
    if text is not None:
        with atomic_write(options.write, "w") as file:
            file.write(text)
        if not options.json:
            print(f"\nrecipe: {options.write}\nto train: metricid train {shlex.quote(str(options.write))}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """What can be known to be wrong before anything is read."""
    given = options.data is not None or (options.layout is not None and options.root is not None)
    if not given and options.layout not in SYNTHETIC:
        raise InputError("DATA: give a table, a folder, a tar file or an embedding file")
    if options.layout is not None and options.layout not in layout_names():
        raise InputError(f"--layout: {unknown('layout', options.layout, layout_names())}")
    if options.seed < 0:
        raise InputError(f"--seed: must be at least 0, got {options.seed}")
    target = options.write
    if target is None:
        if options.force:
            raise InputError("--force: replaces the file of --write; give that, too")
        return
    if target.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"--write: {target} must be a file whose name ends in .yaml")
    if target.is_dir():
        raise InputError(f"--write: {target} is a folder; choose another name")
    if target.exists() and not options.force:
        raise InputError(f"--write: {target} exists; choose another name, or replace it with --force")
    check_folder("--write", target.parent)


def _open(options: argparse.Namespace) -> Subject:
    """Finds out what DATA is."""
    data, layout = options.data, options.layout
    if data in SYNTHETIC and layout is None and not Path(data).exists():
        data, layout = None, data
    if layout == "manifest" and data is None:
        raise InputError("DATA: --layout manifest needs the table: metricid advise people.csv")
    is_table = data is not None and Path(data).suffix.lower() in (*TABLES, ".npy")
    if is_table and layout in (None, "manifest"):
        if options.option:
            raise InputError("--option: is of a layout, and a table takes none")
        return _stored(data, options.root) if _holds_embeddings(data) else _table(data, options.root)
    if layout in SYNTHETIC and (data not in (None, layout) or options.root is not None):
        raise InputError(f"--layout {layout}: generates its images and takes no data")
    if data is not None and options.root is not None:
        raise InputError(f"--root: is for the images of a table; {data} holds its images itself")
    return _layout(layout or "folder", data if data is not None else options.root, options.option)


def _layout(layout: str, root: str | None, texts: list[str]) -> Subject:
    given = layout_options(layout, texts)
    root = None if layout in SYNTHETIC else root
    source, table = open_layout(layout, root=root, options=given, option="DATA")
    place: dict[str, Any] = {"train": layout} | ({"root": root} if root else {})
    place |= {"options": given} if given else {}
    return Subject(f"{source.name} (layout {layout})", table, source, place, layout)


def _table(data: str, root: str | None) -> Subject:
    """A manifest, with its images where they are there."""
    file = expand(data, "DATA")
    table = Manifest.read(file)
    source = open_source(file.parent if root is None else expand(root, "--root"))
    if root is None and len(table) and not any(path in source for path in table.paths):
        return Subject(str(file), table, None, None, "manifest")
    check_files(table, source)
    place = {"train": "manifest"} | ({"root": root} if root else {}) | {"manifest": data}
    return Subject(str(file), table, source, place, "manifest")


def _stored(data: str, root: str | None) -> Subject:
    """An embedding file: a table whose rows have vectors."""
    stored = EmbeddingSet.read(expand(data, "DATA"))
    source = None
    if root is not None:
        source = open_source(expand(root, "--root"))
        check_files(stored.table, source)
    return Subject(f"{data} (embeddings)", stored.table, source, None, "manifest", stored)


def _holds_embeddings(data: str) -> bool:
    file = expand(data, "DATA")
    if file.suffix.lower() != ".parquet" or not file.is_file():
        return file.suffix.lower() == ".npy"
    try:
        return COLUMN in pyarrow.parquet.read_schema(file).names
    except (pyarrow.ArrowException, OSError):
        return False  # the reader of tables says what is wrong with it


def _sample(subject: Subject, seed: int) -> tuple[np.ndarray | None, int]:
    """[S, 2] sides of a random sample of the images, and how many of it cannot be read."""
    if subject.source is None or not len(subject.table):
        return None, 0
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(subject.table), min(SAMPLE, len(subject.table)), replace=False)
    sides, unreadable = [], 0
    for row in np.sort(rows):
        try:
            sides.append(subject.source.read(subject.table.path_at(int(row))).shape[:2])
        except ImageError:
            unreadable += 1
    return np.array(sides, np.int64).reshape(-1, 2), unreadable


def _noise(options: argparse.Namespace, subject: Subject) -> tuple[NoiseEstimate | None, str]:
    """The estimate of wrong labels by rows of the table, or why there is none."""
    stored = subject.stored
    if options.embeddings is not None:
        if stored is not None:
            raise InputError(f"--embeddings: {options.data} holds embeddings itself; give one of the two")
        stored = EmbeddingSet.read(expand(options.embeddings, "--embeddings"))
    if stored is None:
        if options.other_cameras:
            raise InputError("--other-cameras: is for the estimate of wrong labels; give --embeddings")
        return None, NO_EMBEDDINGS
    table = subject.table
    cameras = table.column("camera")
    if options.other_cameras and cameras is None:
        raise InputError(f"--other-cameras: {table.name} has no column 'camera'")
    place = {path: row for row, path in enumerate(stored.table.paths)}
    where = np.array([place.get(path, -1) for path in table.paths], np.int64)
    somebody = ~np.isin(table.identities, list(DISTRACTORS.get(subject.layout, ())))
    rows = np.flatnonzero((where >= 0) & somebody)
    if not len(rows):
        raise InputError(
            f"--embeddings: {options.embeddings} has no path of {table.name} (for example "
            f"{table.path_at(0)!r}); embed this table: metricid embed MODEL DATA -o FILE"
        )
    vectors = stored.embeddings[where[rows]]
    if not vectors.any(axis=1).all():
        raise InputError(f"{stored.table.name}: holds a zero vector, which has no direction; embed again")
    seen_by = None
    if options.other_cameras and cameras is not None:
        seen_by = np.unique(cameras[rows].astype(str), return_inverse=True)[1]
    with tqdm(desc="neighbours", unit="img", leave=False, disable=None) as bar:
        estimate = estimate_noise(
            vectors, table.labels()[rows], cameras=seen_by, seed=options.seed, advance=bar.update
        )
    if estimate is None:
        return None, "not estimated: it takes 30 images of identities with three or more"
    examples = tuple((int(rows[a]), int(rows[b])) for a, b in estimate.examples)
    return replace(estimate, examples=examples), ""


def _kind(options: argparse.Namespace, subject: Subject, figures: Figures) -> tuple[str, str]:
    """What the images show, and how that is known."""
    if options.shows is not None:
        return options.shows, "as --shows says"
    if subject.layout in KNOWN_KINDS:
        return KNOWN_KINDS[subject.layout], f"by the layout {subject.layout}"
    return ("other" if figures.shapes is None else figures.shapes.kind), ""


def _told_by_names(plan: Plan, folders: int, paths: Sequence[str]) -> Plan:
    """The advice for folders, and how to read identities from file names that tell of more."""
    named = market1501.named_identities(paths)
    if named <= folders:
        return plan
    if folders == 1:
        first, *others = plan.warnings
        return replace(
            plan, warnings=(f"{first}; {MARKET_NAMES}", *others), problem=f"{plan.problem}; {MARKET_NAMES}"
        )
    told = (
        f"{folders} folders were taken for identities, and the file names tell of {named:,}; {MARKET_NAMES}"
    )
    return replace(plan, warnings=(told, *plan.warnings))


def _recipe(subject: Subject, plan: Plan, name: str) -> dict[str, Any] | None:
    if plan.recipe is None or subject.place is None:
        return None
    return complete(plan, subject.place, name)


def _recipe_text(options: argparse.Namespace, subject: Subject, plan: Plan) -> str:
    """The recipe as it will be written, checked."""
    if plan.recipe is None:
        raise InputError(f"--write: {subject.name}: {plan.problem}")
    values = _recipe(subject, plan, _run_name(options.write))
    if values is None:
        raise InputError(
            f"--write: {subject.name}: a recipe needs a table and its images; give the table as DATA, --root "
            "where its images are, and vectors with --embeddings"
        )
    check_recipe(values, str(options.write))
    header = (
        f"Advice of metricid for {subject.name}: {len(subject.table):,} images. A start, not an optimum: "
        "every line has its reason above it.",
        "Paths are as they were given to metricid advise: train from the same folder.",
        *(f"Warning: {warning}." for warning in plan.warnings),
    )
    return render(values, plan.lines, header)


def _run_name(file: Path) -> str:
    """A run's name from that of the file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-")[:100] or "advised"


def _values(subject: Subject, figures: Figures, noise: NoiseEstimate | None, plan: Plan) -> Mapping[str, Any]:
    """Everything, for a program."""
    found = None
    if noise is not None:
        paths = [[subject.table.path_at(row) for row in pair] for pair in noise.examples]
        found = noise.to_json() | {"examples": paths}
    recipe = _recipe(subject, plan, "advised")
    return (
        {"data": subject.name, "figures": figures.to_json(), "label_noise": found}
        | plan.to_json()
        | {"recipe": recipe if recipe is not None else plan.recipe}
    )


def _page(subject: Subject, figures: Figures, noise: NoiseEstimate | None, note: str, plan: Plan) -> str:
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    names = subject.table.paths if noise is not None else []
    notes = {"image size": NO_IMAGES, "label noise": note}
    parts = [
        f"{subject.name}\n" + format_figures(figures, noise, notes, names, width),
        format_warnings(plan, width),
        "Advice: what to start from\n" + format_plan(plan, width),
    ]
    return "\n\n".join(part for part in parts if part)
