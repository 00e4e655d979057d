"""The report page of a run: from embeddings and a run folder to `report.html`."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metricid.config import EvaluationConfig, RunConfig
from metricid.data.decode import ImageError
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource
from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.report.page import Report, render
from metricid.report.people import Choice, lay_out, look_at_people
from metricid.report.run_files import read_environment, read_log, read_results, read_text
from metricid.report.suspects import Read, SuspectView, read_pairs, suspects_of
from metricid.training.embedding import Embedded
from metricid.training.mined import SUSPECTS

REPORT = "report.html"
NO_TEST = "The recipe has no test identities: there is nothing to search."
COLUMNS = ("identity", "camera", "split")
SHOWN_SUSPECTS = 10


@dataclass(frozen=True)
class Material:
    """What a page is made of, before anything is searched.

    Attributes:
        report: the page without people, map, and suspects among the embedded images.
        embedded: embeddings with their table, or None.
        source: where the images are; None for a page without pictures.
        settings: the evaluation that the search follows.
    """

    report: Report
    embedded: Embedded | None
    source: ImageSource | None
    settings: EvaluationConfig


@dataclass(frozen=True)
class Written:
    """A page on disk: its size and its number of different pictures."""

    file: Path
    size: int
    pictures: int


def run_material(
    folder: Path,
    config: RunConfig,
    embedded: Embedded | None,
    source: ImageSource | None,
    notes: Sequence[str] = (),
) -> Material:
    """What a run folder and the embeddings of its test images give.

    Args:
        folder: of a run that has results.
        config: its recipe.
        embedded: the test images, or None for a page without lists and map.
        source: where the images are; None for a page without pictures.
        notes: what a reader must know; whole sentences.

    Raises:
        InputError: no results, or files that cannot be read.
    """
    values, results = read_results(folder)
    told = list(notes)
    if embedded is not None and embedded.skipped:
        told.append(f"{len(embedded.skipped)} unreadable images are left out of the ranked lists.")
    report = Report(
        title=config.name,
        kind="Training run",
        results=results,
        summary=values,
        log=read_log(folder / "log.jsonl"),
        recipe=read_text(folder / "recipe.yaml"),
        environment=_facts(read_environment(folder / "environment.json")),
        suspects=_trained_suspects(folder, source),
        notes=told,
    )
    return Material(report, embedded, source, config.evaluation)


def write_page(file: Path, material: Material, choice: Choice | None = None, method: str = "pca") -> Written:
    """Searches the embeddings, and writes the page.

    Args:
        file: the page.
        material: what it is made of.
        choice: how much is shown; its seed is that of the map, too.
        method: of the embedding map.

    Raises:
        InputError: embeddings that cannot be searched, a page over its limit, or a place that cannot be
            written to.
    """
    page, pictures = _page(material, choice or Choice(), method)
    data = page.encode("utf-8", errors="replace")
    with atomic_write(file) as stream:
        stream.write(data)
    return Written(file, len(data), pictures)


def _page(material: Material, choice: Choice, method: str) -> tuple[str, int]:
    report, embedded, settings = material.report, material.embedded, material.settings
    if embedded is None or not len(embedded.table):
        return render(report), sum(view.pictured for view in report.suspects)
    table = embedded.table
    read = None if material.source is None else reader(material.source)
    try:
        people = look_at_people(
            embedded.vectors,
            {name: table.column(name) for name in COLUMNS},
            table.paths,
            read,
            protocols=settings.protocols,
            distractors=settings.distractors,
            results=report.results,
            choice=choice,
        )
        laid_out = lay_out(embedded.vectors, people, method, choice.seed)
        suspects = [*report.suspects, *_suspects(embedded, settings, read)]
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{report.title}: {error}") from error
    page = render(replace(report, people=people, laid_out=laid_out, suspects=suspects))
    return page, len(people.pictures) + sum(view.pictured for view in suspects)


def _suspects(embedded: Embedded, settings: EvaluationConfig, read: Read | None) -> list[SuspectView]:
    """Probably wrong labels among the embedded images, if there are any."""
    view = suspects_of(
        embedded.vectors,
        embedded.table.identities,
        embedded.table.paths,
        read,
        about="Among the images evaluated",
        top=SHOWN_SUSPECTS,
        ignore=settings.distractors,
    )
    return [] if view is None else [view]


def _trained_suspects(folder: Path, source: ImageSource | None) -> list[SuspectView]:
    """The pairs of identities that the sampler of a run kept apart, if it listed any."""
    file, table = folder / SUSPECTS, folder / "manifests" / "train.csv"
    if not file.is_file():
        return []
    trained = Manifest.read(table) if table.is_file() else None
    view = read_pairs(
        file,
        [] if trained is None else trained.identities.tolist(),
        [] if trained is None else trained.paths,
        None if source is None else reader(source),
        about="Among the images trained on",
        top=SHOWN_SUSPECTS,
    )
    return [] if view is None else [view]


def reader(source: ImageSource) -> Read:
    """Reads images by path; None for one that cannot be decoded or is not there."""

    def read(path: str) -> np.ndarray | None:
        try:
            return source.read(path)
        except ImageError:
            return None

    return read


def _facts(environment: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The environment of a run as names and texts."""
    facts = []
    for name, value in (environment or {}).items():
        if name == "command" and isinstance(value, list):
            facts.append((name, shlex.join(map(str, value))))
        elif name == "data" and isinstance(value, dict):
            for part, about in value.items():
                facts.append((f"data: {part}", fact(about)))
        else:
            facts.append((name, fact(value)))
    return facts


def fact(value: Any) -> str:
    """A value of a card or of an environment as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {fact(part)}" for name, part in value.items())
    return "unknown" if value is None else str(value)
