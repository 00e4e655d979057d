"""`metricid search build | query | add | remove | stats`: an index of embeddings, and what is asked of it."""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from metricid._version import __version__
from metricid.cli import search_align
from metricid.cli.model import add_onnx_option
from metricid.cli.search_align import Alignment
from metricid.cli.search_grid import draw_grid
from metricid.cli.search_place import check_words, open_embeddings, open_place, open_server, say, shown
from metricid.cli.search_queries import (
    Answer,
    Verdicts,
    answer_embeddings,
    answer_images,
    answer_rows,
    embed_photos,
    is_embedding_file,
    model_for,
    path_of_model,
)
from metricid.data.embedding_file import EmbeddingReader
from metricid.errors import InputError
from metricid.evaluation.calibration import Calibration
from metricid.report.text import shown as printable
from metricid.search import KINDS, Filter, SearchIndex, Store
from metricid.search.build import Batch, CheckedSource
from metricid.search.recall import TARGET
from metricid.search.remote import Address, RemoteStore
from metricid.search.store import KEY, check_same_model

UPLOAD_ROWS = 8192  # of an embedding file, handed to a store on a server at a time
MOST_HITS = 10  # without -k
CELL = 200  # characters of a name or path in a table; --json has them whole
SHOWN_COLUMNS = ("identity", "camera", "split", "path")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text)
        made.add_argument("--json", action="store_true", help="print the outcome as JSON")
        return made

    build = action("build", "make an index from stored embeddings")
    build.add_argument("embeddings", help="file of metricid embed (.parquet, .npy)")
    _add_store(build)
    build.add_argument("-o", "--output", metavar="INDEX", help="folder of the index, such as people.index")
    build.add_argument("--kind", default="auto", help=f"auto (by the number of rows), {', '.join(KINDS)}")
    build.add_argument("--target", type=float, default=TARGET, help="recall@10 that searches are tuned for")
    build.add_argument("--overwrite", action="store_true", help="replace the index that is there")
    _add_model(build, "remember it for searches by image")
    build.add_argument("--calibration", metavar="FILE", help="thresholds to remember, of evaluate")

    query = action("query", "find the most alike rows")
    query.add_argument("words", nargs="*", metavar="INDEX IMAGE", help="the index, then images to search for")
    _add_store(query)
    query.add_argument(
        "--row", action="append", default=[], help="search for a row: path, or number in a folder"
    )
    query.add_argument("--embeddings", metavar="FILE", help="search for each row of an embedding file")
    query.add_argument(
        "-k", type=int, help=f"how many (default: {MOST_HITS}, or all rows where there are fewer)"
    )
    query.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="only such rows")
    query.add_argument("--calibration", metavar="FILE", help="thresholds, of metricid evaluate")
    query.add_argument("--far", type=float, help="false accept rate of the threshold (default: 0.001)")
    query.add_argument("--grid", type=Path, metavar="FILE", help="draw what was found (.png); needs --root")
    query.add_argument("--root", help="folder or tar file of the images of the index")
    search_align.add_arguments(query)
    _add_model(query, "the model of the index, for images")

    add = action("add", "add rows: an embedding file, or images through the model")
    add.add_argument("words", nargs="*", metavar="INDEX DATA", help="the index, then what to add")
    _add_store(add)
    add.add_argument("--identity", help="whom single images show")
    add.add_argument("--root", help="where the images of a table are")
    add.add_argument("--replace", action="store_true", help="rows that are there already are replaced")
    search_align.add_arguments(add)
    _add_model(add, "the model of the index, for images")

    remove = action("remove", "forget an identity or single rows: no trace of them stays in the files")
    remove.add_argument("words", nargs="*", metavar="INDEX", help="the index")
    _add_store(remove)
    remove.add_argument("--identity", help="all rows of this identity")
    remove.add_argument("--key", action="append", help="one row, by its path; may be given several times")

    stats = action("stats", "what an index holds, how large and how exact it is")
    stats.add_argument("words", nargs="*", metavar="INDEX", help="the index")
    _add_store(stats)
    stats.add_argument("--verify", action="store_true", help="compare the checksum of a large vector file")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="URL", help="pgvector://... or qdrant://... in place of INDEX")


def _add_model(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--model", help=f"run folder, checkpoint or ONNX file: {what}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    add_onnx_option(parser)


def run(options: argparse.Namespace) -> int:
    """Does what the action says, and prints its outcome."""
    check_words(options)
    outcome = _ACTIONS[options.action](options)
    if options.json:
        print(json.dumps(_plain(outcome.values), indent=2, allow_nan=False), flush=True)
    else:
        print(outcome.text, flush=True)
    return 0


@dataclass(frozen=True)
class Outcome:
    """What an action has to say, for programs and for people."""

    values: dict[str, Any]
    text: str


def _plain(value: Any) -> Any:
    """The same without NaN, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _split(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The place of the index, and the other words."""
    if options.store:
        Address.parse(options.store)  # is a URL, and no folder of that name
    words = [*([options.store] if options.store else ()), *options.words]
    if not words:
        raise InputError(f"{options.action}: name the index, or give --store URL")
    return words[0], words[1:]


def _alone(options: argparse.Namespace) -> str:
    place, rest = _split(options)
    if rest:
        raise InputError(f"{options.action}: takes one index, got also {rest[0]!r}")
    return place


@dataclass(frozen=True)
class _File:
    """An embedding file as the builder of an index wants it."""

    reader: EmbeddingReader

    @property
    def dimension(self) -> int:
        return self.reader.dimension

    def __len__(self) -> int:
        return len(self.reader)

    def batches(self) -> Iterator[Batch]:
        return self.reader.blocks()


def _build(options: argparse.Namespace) -> Outcome:
    if (options.output is None) == (options.store is None):
        raise InputError("build: give either -o INDEX or --store URL")
    reader = open_embeddings(options.embeddings)
    about = _about(options, reader)
    if options.store is not None:
        for name, value, default in (("kind", options.kind, "auto"), ("target", options.target, TARGET)):
            if value != default:
                raise InputError(f"--{name}: is for an index in a folder; options of a store are in its URL")
        if options.overwrite:
            raise InputError("--overwrite: a store keeps what it has; remove it there, or take another table")
        store = open_server(options.store, about)
        try:
            _upload(store, reader, replace=False)
            stats = store.stats()
        finally:
            store.close()
        return Outcome({"index": shown(options.store), **stats}, _stats_text(shown(options.store), stats))
    with _Bar() as progress:
        index = SearchIndex.build(
            options.output,
            _File(reader),
            kind=options.kind,
            about=about,
            overwrite=options.overwrite,
            target=options.target,
            name=str(reader.path),
            progress=progress,
        )
    stats = index.stats()
    recall = stats["recall"]["value"]
    if recall is not None and recall < options.target:
        say(f"{options.output}: recall@10 is {recall:.3f}, below the target of {options.target:g}")
    return Outcome({"index": options.output, **stats}, _stats_text(options.output, stats))


def _about(options: argparse.Namespace, reader: EmbeddingReader) -> dict[str, Any]:
    """What the card of the index says of the vectors."""
    card = reader.card
    about = {
        "model": card.get("model"),
        "flip": card.get("flip"),
        "aligned": card.get("aligned"),
        "dimension": reader.dimension,
        "license": card.get("license"),
        "source": reader.path.name,
        "model_path": None,
        "onnx": None,
        "calibration": None,
        "metricid": __version__,
    }
    if options.model is not None:
        model_for(about, options, str(reader.path))
        about |= {"model_path": path_of_model(options.model), "onnx": options.onnx or None}
    if options.calibration is not None:
        about["calibration"] = Verdicts.check(options.calibration, about, str(reader.path)).to_json()
    return about


def _upload(store: RemoteStore, reader: EmbeddingReader, *, replace: bool) -> int:
    """Hands a file over piece by piece, after all of it has passed the checks of the door."""
    stored = 0
    with _Bar() as progress:
        for vectors, _ in CheckedSource(_File(reader), str(reader.path)).batches():
            stored += len(vectors)
            progress("check", stored, len(reader))
        stored = 0
        for vectors, rows in reader.blocks(UPLOAD_ROWS):
            store.add(rows[KEY].to_pylist(), vectors, rows, replace=replace)
            stored += len(vectors)
            progress("store", stored, len(reader))
    store.finish()
    return stored


def _query(options: argparse.Namespace) -> Outcome:
    place, images = _split(options)
    if not images and not options.row and options.embeddings is None:
        raise InputError("query: give an image, --row or --embeddings to search for")
    if options.grid is not None and options.root is None:
        raise InputError("--grid: needs the images of the index: --root FOLDER")
    if options.grid is not None and options.grid.suffix.lower() != ".png":
        raise InputError(f"--grid: {options.grid} must be the name of a .png file")
    where = Filter.parse(options.where) if options.where else None
    store = open_place(place)
    try:
        alignment = Alignment.of(store.card, options, shown(place), images=bool(images))
        verdicts = _verdicts(options, store, place)
        k = min(MOST_HITS, store.stats()["rows"]) if options.k is None else options.k
        answers: list[Answer] = []
        if images:
            faces = alignment.queries(images)
            model = model_for(store.card, options, shown(place))
            answers += answer_images(store, model, faces, k, where)
        answers += answer_rows(store, options.row, k, where)
        if options.embeddings is not None:
            answers += answer_embeddings(store, options.embeddings, k, where, shown(place))
    finally:
        store.close()
    if options.grid is not None:
        draw_grid(answers, verdicts, options.root, options.grid)
    values = {
        "index": shown(place),
        "threshold": None if verdicts is None else verdicts.to_json(),
        "queries": [answer.to_json(verdicts) for answer in answers],
    }
    return Outcome(values, "\n\n".join(_answer_text(answer, verdicts, where) for answer in answers))


def _verdicts(options: argparse.Namespace, store: Store, place: str) -> Verdicts | None:
    """Match or no match, where a calibration card says from which score."""
    stored = store.card.get("calibration")
    if options.calibration is not None:
        card: Calibration | None = Verdicts.check(options.calibration, store.card, place)
    else:
        card = None if stored is None else Verdicts.stored(stored, place)
    if card is None and options.far is not None:
        raise InputError("--far: needs a calibration card; give --calibration FILE here or at build")
    return None if card is None else Verdicts.at(card, options.far)


def _add(options: argparse.Namespace) -> Outcome:
    place, data = _split(options)
    if not data:
        raise InputError("add: give an embedding file, a folder, a tar file, a table or images to add")
    store = open_place(place)
    try:
        stored = len(data) == 1 and is_embedding_file(data[0])
        alignment = Alignment.of(store.card, options, shown(place), images=not stored)
        if stored:
            if options.identity is not None:
                raise InputError("--identity: is for single images; an embedding file names its own")
            reader = open_embeddings(data[0])
            theirs = {**reader.card, "dimension": reader.dimension}
            check_same_model(store.card, theirs, shown(place), data[0])
            if not isinstance(store, SearchIndex):
                count = _upload(store, reader, replace=options.replace)
                return Outcome({"index": shown(place), "added": count}, f"{count} rows are in {shown(place)}")
            blocks = list(CheckedSource(_File(reader), data[0]).batches())
        else:
            model = model_for(store.card, options, shown(place))
            flip = bool(store.card.get("flip"))
            blocks = [
                embed_photos(
                    model,
                    data,
                    identity=options.identity,
                    root=options.root,
                    flip=flip,
                    alignment=alignment,
                )
            ]
        rows = pa.concat_tables([rows for _, rows in blocks])
        vectors = np.concatenate([vectors for vectors, _ in blocks])
        count = store.add(rows[KEY].to_pylist(), vectors, rows, replace=options.replace)
        if not isinstance(store, SearchIndex):
            store.finish()
        total = store.stats()["rows"]
    finally:
        store.close()
    text = f"{count} rows added to {shown(place)}, which has {total} now"
    return Outcome({"index": shown(place), "added": count, "rows": total}, text)


def _remove(options: argparse.Namespace) -> Outcome:
    place = _alone(options)
    if (options.identity is None) == (options.key is None):
        raise InputError("remove: give either --identity or --key")
    store = open_place(place)
    try:
        count = store.remove(keys=options.key, identity=options.identity)
        total = store.stats()["rows"]
    finally:
        store.close()
    text = f"{count} rows removed from {shown(place)}, which has {total} now"
    return Outcome({"index": shown(place), "removed": count, "rows": total}, text)


def _stats(options: argparse.Namespace) -> Outcome:
    place = _alone(options)
    store = open_place(place, verify=options.verify)
    try:
        stats = store.stats()
    finally:
        store.close()
    return Outcome({"index": shown(place), **stats}, _stats_text(shown(place), stats))


_ACTIONS: dict[str, Callable[[argparse.Namespace], Outcome]] = {
    "build": _build,
    "query": _query,
    "add": _add,
    "remove": _remove,
    "stats": _stats,
}


class _Bar:
    """A progress bar per step of a build, on standard error."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._step = ""

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, step: str, done: int, total: int) -> None:
        if self._bar is None or step != self._step:
            self.__exit__()
            self._bar, self._step = tqdm(total=total, desc=step, unit="row", mininterval=1.0), step
        self._bar.update(done - self._bar.n)


def _answer_text(answer: Answer, verdicts: Verdicts | None, where: Filter | None) -> str:
    hits = answer.hits
    columns = [name for name in SHOWN_COLUMNS if hits and name in hits[0]]
    table = [["", "score", *columns, *([""] if verdicts else [])]]
    for rank, hit in enumerate(hits, 1):
        said = [verdicts.word(hit["score"])] if verdicts else []
        table.append(
            [str(rank), f"{hit['score']:.4f}", *(printable(hit[name], CELL) for name in columns), *said]
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    name = printable(answer.name, CELL)
    if not hits:  # of a row, which is left out of its own answer
        return f"{name}: there is no other row" + (f" with {where}" if where else "")
    head = name if verdicts is None else f"{name} ({verdicts})"
    return "\n".join([head, *(line.rstrip() for line in lines)])


def _stats_text(place: str, stats: Mapping[str, Any]) -> str:
    recall, model = stats.get("recall"), stats.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    lines = [f"{place}: {stats['rows']} rows of {stats['dimension']} values, kind {stats['kind']}"]
    how = (", with the mirrored image" if stats.get("flip") else "") + (
        ", of aligned faces" if stats.get("aligned") is True else ""
    )
    lines.append(f"model: {name or 'unknown'}{how}")
    for part in ("disk", "memory"):
        size = stats.get(f"{part}_bytes")
        lines.append(f"{part}: {'unknown' if size is None else f'{size / 1e6:.1f} MB'}")
    if recall and recall["value"] is not None:
        how = f" ({recall['queries']} queries against {recall['against']})" if recall["queries"] else ""
        lines.append(f"recall@{recall['at']}: {recall['value']:.3f}{how}")
    return "\n".join(lines)
