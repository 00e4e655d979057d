"""The page itself: one HTML file that loads nothing from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from numpy.typing import NDArray

from metricid._version import __version__
from metricid.errors import InputError
from metricid.evaluation import ProtocolResult
from metricid.report.charts import map_chart, result_charts, training_charts
from metricid.report.embedding_map import EmbeddingMap
from metricid.report.pictures import Picture, Shown
from metricid.report.run_files import TrainingLog
from metricid.report.search_view import GROUPS, Confusion, IdentityRow, RankedList
from metricid.report.suspects import SuspectView
from metricid.report.svg import SHAPES
from metricid.report.templating import fill

MOST_BYTES = 10_000_000
_TILES = ("rank-1", "Recall@1", "mAP", "mINP", "accuracy", "TAR@FAR=0.001", "TAR@FAR=0.01", "EER", "AUC")
_MOST_TILES = 6


@dataclass(frozen=True)
class People:
    """What the page says of single images.

    Attributes:
        identities_of: [N] identity of each embedding.
        paths: [N].
        cameras: [N], or None where cameras play no part.
        pictures: by path; empty for a page without pictures.
        rule: who is searched among whom.
        lists: ranked lists; empty where nothing can be searched.
        confusions: the most frequent first.
        more_confusions: pairs that are not shown.
        identities: the lowest first.
        more_identities: identities that are not shown.
        check: what must be known of the numbers of this part; a sentence.
        why_none: why there are no lists.
    """

    identities_of: NDArray[Any]
    paths: Sequence[str]
    cameras: NDArray[Any] | None
    pictures: dict[str, Picture]
    rule: str
    lists: list[RankedList] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    more_confusions: int = 0
    identities: list[IdentityRow] = field(default_factory=list)
    more_identities: int = 0
    check: str = ""
    why_none: str = ""

    def row(self, row: int) -> Shown:
        """The image of an embedding."""
        camera = "" if self.cameras is None else str(self.cameras[row])
        path = self.paths[row]
        return Shown(str(self.identities_of[row]), path, camera, self.pictures.get(path))


@dataclass(frozen=True)
class Report:
    """Everything that a page shows; what is None or empty is left out.

    Attributes:
        title: name of the run.
        kind: what it is, in words.
        results: of the evaluation.
        summary: the values of `results.json` beside the results.
        log: of the training.
        recipe: text of the recipe.
        environment: name -> text.
        people: what the search does with single images.
        laid_out: the embedding map.
        suspects: lists of probably wrong labels, none of them empty.
        notes: what a reader must know; whole sentences.
        made: when; now if None.
    """

    title: str
    kind: str
    results: Sequence[ProtocolResult]
    summary: dict[str, Any] = field(default_factory=dict)
    log: TrainingLog | None = None
    recipe: str | None = None
    environment: Sequence[tuple[str, str]] = ()
    people: People | None = None
    laid_out: EmbeddingMap | None = None
    suspects: Sequence[SuspectView] = ()
    notes: Sequence[str] = ()
    made: str = field(default_factory=lambda: f"{datetime.now():%Y-%m-%d %H:%M}")
    version: str = __version__


def render(report: Report, *, most_bytes: int = MOST_BYTES) -> str:
    """The page.

    Raises:
        InputError: it would be larger than `most_bytes`.
    """
    chart, how = _map(report)
    page = fill(
        "report.html",
        r=report,
        tiles=_tiles(report.results),
        blocks=_blocks(report.results),
        groups=GROUPS,
        map_chart=chart,
        marked_how=how,
        training_charts=[] if report.log is None else training_charts(report.log),
        training_facts=_training_facts(report),
        version=report.version,
    )
    size = len(page.encode("utf-8", errors="replace"))
    if size > most_bytes:
        raise InputError(
            f"the report would have {size / 1e6:.1f} MB, over the limit of {most_bytes / 1e6:.0f} MB; "
            "give smaller --queries and --top"
        )
    return page


def _blocks(results: Sequence[ProtocolResult]) -> list[dict[str, Any]]:
    """Results of one protocol on the same data side by side, as in the table of the terminal."""
    groups: dict[tuple[Any, ...], list[ProtocolResult]] = {}
    for result in results:
        groups.setdefault((result.protocol, result.variant, *result.counts.items()), []).append(result)
    blocks = []
    for members in groups.values():
        names = dict.fromkeys(name for result in members for name in result.shown())
        rows = [(name, [result.cell(name) for result in members]) for name in names]
        blocks.append(
            {
                "protocol": members[0].protocol,
                "variant": members[0].variant,
                "counts": members[0].counts,
                "subjects": [result.subject or result.protocol for result in members],
                "rows": rows,
                "notes": list(dict.fromkeys(note for result in members for note in result.notes)),
                "starred": any("*" in cell for _, cells in rows for cell in cells),
                "charts": result_charts(members),
            }
        )
    return blocks


def _tiles(results: Sequence[ProtocolResult]) -> list[tuple[str, str, str]]:
    """The figures that one looks for first: name, value, protocol; of the first subject only."""
    if not results:
        return []
    first = [result for result in results if result.subject == results[0].subject]
    found = []
    for name in _TILES:
        result = next((r for r in first if name in r.metrics and name not in r.unsupported), None)
        if result is not None:
            found.append((name, result.cell(name), result.protocol))
    return found[:_MOST_TILES]


def _map(report: Report) -> tuple[Any, str]:
    people, laid_out = report.people, report.laid_out
    if people is None or laid_out is None:
        return None, ""
    marked, how = marked_identities(people)
    return map_chart(laid_out, people.identities_of, marked, len(people.paths)), how


def marked_identities(people: People) -> tuple[list[str], str]:
    """The identities that the map marks, and why these."""
    names = dict.fromkeys(name for pair in people.confusions for name in (pair.first, pair.second))
    if names:
        return list(names)[: len(SHAPES)], "identities from the pairs confused most often"
    counts: dict[str, int] = {}
    for name in people.identities_of.tolist():
        counts[name] = counts.get(name, 0) + 1
    largest = sorted(counts, key=lambda name: (-counts[name], name))
    return largest[: len(SHAPES)], "the identities with the most images"


def _training_facts(report: Report) -> list[tuple[str, str]]:
    """Images, times and skipped steps, from the log and from what the run wrote at its end."""
    facts: list[tuple[str, str]] = []
    log, summary = report.log, report.summary
    if log is None:
        return facts
    if log.windows:
        last = log.windows[-1]
        seconds = sum(window.seconds for window in log.windows)
        waiting = sum(window.waiting for window in log.windows)
        facts.append(("steps", f"{last.step:,}"))
        facts.append(("images seen", f"{last.images:,}"))
        if seconds > 0:
            facts.append(("time in steps", _duration(seconds)))
            computing = seconds - waiting
            facts.append(("of it computing", f"{_duration(computing)} ({computing / seconds:.1%})"))
            facts.append(("of it waiting for images", f"{_duration(waiting)} ({waiting / seconds:.1%})"))
            facts.append(("speed", f"{last.images / seconds:,.0f} images per second"))
        facts.append(("not counted", "validation, saving and the final evaluation"))
    skipped = summary.get("skipped_images")
    if isinstance(skipped, list) and skipped:
        facts.append(("unreadable images skipped", f"{len(skipped):,}"))
    if log.nonfinite:
        facts.append(("steps skipped (loss not finite)", f"{log.nonfinite:,}"))
    if log.damaged:
        facts.append(("damaged log lines, left out", f"{log.damaged:,}"))
    return facts


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
