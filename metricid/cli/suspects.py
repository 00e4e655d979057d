"""`metricid suspects SUBJECT`: labels that are probably wrong, by stored embeddings."""

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from metricid.cli.embed import OWN_FILE
from metricid.cli.evaluate import check_folder
from metricid.cli.report import STORED, images_of
from metricid.cli.subject import run_splits
from metricid.config import expand
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import check_files
from metricid.data.sources import ImageSource
from metricid.data.table_io import write_table
from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.mining.noise import GAP, SuspectImages
from metricid.mining.suspects import Suspects, find_suspects
from metricid.report.suspects import ALONE_BYTES, MOST_TOP, render_suspects, show_suspects
from metricid.report.text import shown, tail
from metricid.training.build import check_recipe
from metricid.training.distributed import pick_device
from metricid.training.run_folder import read_run_recipe
from metricid.training.run_page import reader

KINDS = ("pair", "image", "far")
LISTS = (".csv", ".parquet", ".json")
LEAST_IDENTITIES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("subject", help=f"embeddings (.parquet, .npy), or a run folder that holds {OWN_FILE}")
    parser.add_argument(
        "--guard",
        type=float,
        help="cosine of two identities above which they are listed (default: by halves)",
    )
    parser.add_argument(
        "--gap",
        type=float,
        default=GAP,
        help=f"by which an image is nearer to another identity than to its own (default {GAP})",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="an identity that stands for nobody, such as 0000; may be repeated",
    )
    parser.add_argument("--top", type=int, default=20, help="entries of each list shown (default 20)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="whole lists: .csv, .parquet or .json")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="a page with pictures")
    parser.add_argument("--root", help="folder or tar file where the images are")
    parser.add_argument("--no-pictures", action="store_true", help="a page of names alone")
    parser.add_argument("--seed", type=int, default=0, help="of the halves (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    parser.add_argument("--json", action="store_true", help="print the lists as JSON")


def run(options: argparse.Namespace) -> int:
    """Makes the lists, writes what was asked for, and prints the first of each."""
    _check(options)
    device = pick_device(options.device)
    file, stored, source = _open(options)
    codes = stored.table.labels()
    names = np.array(stored.table.identity_names(), dtype=object)
    keep = np.flatnonzero(~np.isin(names[codes], options.ignore))
    _check_ignored(options, names)
    used, labels = np.unique(codes[keep], return_inverse=True)
    names = names[used]
    if len(names) < LEAST_IDENTITIES:
        raise InputError(f"{file}: has fewer than two identities; wrong labels take two or more")
    vectors = stored.embeddings if len(keep) == len(codes) else stored.embeddings[keep]
    paths = [stored.table.path_at(int(row)) for row in keep]
    try:
        with tqdm(total=len(vectors), desc="compare", unit="img", leave=False, disable=None) as bar:
            found = find_suspects(
                torch.from_numpy(vectors),
                torch.from_numpy(labels),
                guard=options.guard,
                gap=options.gap,
                seed=options.seed,
                device=device,
                advance=bar.update,
            )
    except ValueError as error:
        if options.guard is not None:
            raise
        raise InputError(f"{file}: {error}: --guard 0.8, for example") from error
    about = {
        "embeddings": str(file),
        "images": len(vectors),
        "identities": len(names),
        "single_images": int((np.bincount(labels) == 1).sum()),
        "guard": round(found.guard, 4),
        "gap": options.gap,
        "counts": {"pairs": len(found.pairs), "images": len(found.images), "far": len(found.far)},
    }
    rows = _rows(found, labels, names, paths)
    if options.out is not None:
        _write(options.out, about, rows)
    if options.html is not None:
        view = show_suspects(
            found,
            options.gap,
            vectors,
            labels,
            names.tolist(),
            paths,
            None if source is None else reader(source),
            about=f"Among {len(vectors):,} images of {len(names):,} identities",
            top=options.top,
            budget=ALONE_BYTES,
        )
        page = render_suspects(view, file.name, _notes(about), f"{datetime.now():%Y-%m-%d %H:%M}")
        with atomic_write(options.html) as stream:
            stream.write(page.encode("utf-8", errors="replace"))
    first = {kind: found_rows[: options.top] for kind, found_rows in rows.items()}
    print(json.dumps(about | _named(first), indent=2) if options.json else _text(options, about, first))
    return 0


def _check(options: argparse.Namespace) -> None:
    """What is wrong whatever lies on the disk."""
    if options.guard is not None and not -1 < options.guard < 1:
        raise InputError(f"--guard: must be above -1 and below 1, got {options.guard}")
    if not 0 <= options.gap < 2:
        raise InputError(f"--gap: must be at least 0 and below 2, got {options.gap}")
    if not 1 <= options.top <= MOST_TOP:
        raise InputError(f"--top: must be from 1 to {MOST_TOP}, got {options.top}")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed: must be from 0 to 2^63 - 1, got {options.seed}")
    if options.html is None:
        for name in ("root", "no_pictures"):
            if getattr(options, name):
                raise InputError(
                    f"--{name.replace('_', '-')}: is for the pictures of a page; give --html PAGE"
                )
    for name, suffixes in (("out", LISTS), ("html", (".html", ".htm"))):
        target = getattr(options, name)
        if target is None:
            continue
        if target.suffix.lower() not in suffixes or target.is_dir():
            raise InputError(f"--{name}: {target} must be a file whose name ends in {' or '.join(suffixes)}")
        if target.absolute() == Path(options.subject).absolute():
            raise InputError(f"--{name}: {target} is the file to read; choose another name")
        check_folder(f"--{name}", target.parent)


def _check_ignored(options: argparse.Namespace, names: np.ndarray) -> None:
    for name in options.ignore:
        if name not in names:
            raise InputError(f"--ignore: {options.subject} has no identity {name!r}")


def _open(options: argparse.Namespace) -> tuple[Path, EmbeddingSet, ImageSource | None]:
    """The embeddings, and the images where the page shows them."""
    subject = expand(options.subject, "SUBJECT")
    config = None
    file = subject
    if subject.is_dir():
        file = subject / OWN_FILE
        if not file.is_file():
            raise InputError(f"{subject}: holds no {OWN_FILE}; make it with: metricid embed {subject}")
        recipe = read_run_recipe(subject)
        config = None if recipe is None else check_recipe(recipe, str(subject / "recipe.yaml"))
    elif subject.suffix.lower() not in STORED:
        raise InputError(f"{subject}: give embeddings (.parquet, .npy) or a run folder")
    stored = EmbeddingSet.read(file)
    if not len(stored):
        raise InputError(f"{file}: has no images")
    if options.html is None:
        return file, stored, None
    if config is None or options.root is not None or options.no_pictures:
        return file, stored, images_of(options, file, stored.table)
    source = run_splits(config, hint="--no-pictures makes a page without").source
    check_files(stored.table, source)
    return file, stored, source


def _rows(
    found: Suspects, labels: np.ndarray, names: np.ndarray, paths: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Whole lists, as they are written."""
    pairs = [
        {"identity": names[one], "other": names[two], "cosine": cosine}
        for (one, two), cosine in zip(found.pairs.tolist(), _rounded(found.cosines), strict=True)
    ]

    def images(some: SuspectImages) -> list[dict[str, Any]]:
        columns = (some.rows.tolist(), _rounded(some.own), some.other.tolist(), _rounded(some.cosine))
        return [
            {
                "path": paths[row],
                "identity": names[labels[row]],
                "own_cosine": own,
                "other": names[other],
                "cosine": near,
            }
            for row, own, other, near in zip(*columns, strict=True)
        ]

    return dict(zip(KINDS, (pairs, images(found.images), images(found.far)), strict=True))


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _named(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {"pairs": rows["pair"], "suspect_images": rows["image"], "far_images": rows["far"]}


def _write(file: Path, about: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> None:
    if file.suffix.lower() == ".json":
        with atomic_write(file, "w") as stream:
            json.dump(about | _named(rows), stream, indent=2)
        return
    flat = [{"kind": kind, **row} for kind in KINDS for row in rows[kind]]
    text = ("kind", "identity", "other", "path")
    schema = pa.schema(
        [(name, pa.string() if name in text else pa.float64()) for name in (*text, "cosine", "own_cosine")]
    )
    write_table(pa.Table.from_pylist(flat, schema=schema), file)


def _notes(about: dict[str, Any]) -> list[str]:
    """What a reader of the lists must know; whole sentences."""
    single = about["single_images"]
    if not single:
        return []
    return [
        f"{single:,} of {about['identities']:,} identities have one image: nothing tells whether it is far "
        "from its own; it is listed as one of a pair if it resembles somebody."
    ]


def _text(options: argparse.Namespace, about: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> str:
    counts = about["counts"]
    how = "as given" if options.guard is not None else "by halves of identities"
    lines = [f"{about['embeddings']}: {about['images']:,} images of {about['identities']:,} identities"]
    lines += _notes(about)
    lines += [
        "",
        f"{counts['pairs']:,} pairs of identities that are probably one (guard {about['guard']}, {how})",
    ]
    lines += [
        f"  {row['cosine']:6.3f}  {shown(row['identity'], 40)}  {shown(row['other'], 40)}"
        for row in rows["pair"]
    ]
    lines += ["", f"{counts['images']:,} images that probably show somebody else (gap {about['gap']})"]
    lines += [_line(row) for row in rows["image"]]
    lines += ["", f"{counts['far']:,} images far from everybody"]
    lines += [_line(row) for row in rows["far"]]
    made = [f"{name}: {file}" for name, file in (("lists", options.out), ("page", options.html)) if file]
    return "\n".join([*lines, *([""] if made else []), *made])


def _line(row: dict[str, Any]) -> str:
    return (
        f"  {row['own_cosine']:6.3f} own {row['cosine']:6.3f} {shown(row['other'], 30)}  "
        f"{tail(row['path'], 60)} ({shown(row['identity'], 30)})"
    )
