"""A picture of what a search found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metricid.cli.search_place import say
from metricid.cli.search_queries import Answer, Verdicts
from metricid.config import expand
from metricid.data.sources import ImageSource, open_source
from metricid.demo.gallery import read_picture
from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.search.store import IDENTITY, KEY

MOST_QUERIES = 40
MOST_HITS = 20
TILE = 1.3  # inches
MATCH, NO_MATCH = "#0a7d32", "#b3261e"


def draw_grid(answers: Sequence[Answer], verdicts: Verdicts | None, root: str, file: Path) -> None:
    """Draws a row per query: its own picture, then those of its hits with score and identity.

    Frames are green for a match and red for none, where there is a threshold. An image that `root` does not
    have, or a damaged one, is an empty tile that says so.

    Args:
        answers: at most 40; at most 20 hits of each are drawn.
        verdicts: None for no frames.
        root: folder or tar file of the images of the index.
        file: PNG to write.

    Raises:
        InputError: too many queries, no such root, or a file that cannot be written.
    """
    if not answers:
        raise InputError("--grid: there is no query to draw; the embedding file has no rows")
    if len(answers) > MOST_QUERIES:
        raise InputError(f"--grid: draws up to {MOST_QUERIES} queries, got {len(answers)}; search for fewer")
    source = open_source(expand(root, "--root"))
    width = 1 + min(MOST_HITS, max(len(answer.hits) for answer in answers))
    figure = Figure(figsize=(TILE * width, 1.5 * TILE * len(answers)), dpi=100, layout="constrained")
    axes = figure.subplots(len(answers), width, squeeze=False)
    for line, answer in zip(axes, answers, strict=True):
        for place in line:
            place.set_axis_off()
        picture = _picture(source, answer.name) if answer.picture is None else answer.picture
        _tile(line[0], picture, f"query\n{_short(Path(answer.name).name)}", None)
        for place, hit in zip(line[1:], answer.hits, strict=False):
            color, text = None, f"{hit['score']:.3f}\n{_short(str(hit.get(IDENTITY, '')))}"
            if verdicts is not None:
                color = MATCH if verdicts.match(hit["score"]) else NO_MATCH
                text += f"\n{verdicts.word(hit['score'])}"
            _tile(place, _picture(source, hit[KEY]), text, color)
    tiles = [place for line in axes for place in line if place.axison]
    if empty := sum(not place.images for place in tiles):
        say(f"{root}: {empty} of {len(tiles)} pictures are missing, damaged or unreadable; is --root right?")
    with atomic_write(file) as out:
        figure.savefig(out, format="png")


def _picture(source: ImageSource, path: str) -> np.ndarray | None:
    return read_picture(source, path) if path in source else None


def _tile(axes: Axes, picture: np.ndarray | None, text: str, color: str | None) -> None:
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(text, fontsize=7, color=color or "black", parse_math=False)  # names may hold dollar signs
    if picture is None:
        axes.text(
            0.5, 0.5, "missing or\ndamaged", ha="center", va="center", fontsize=7, transform=axes.transAxes
        )
    else:
        axes.imshow(picture)
    for side in axes.spines.values():
        side.set(
            visible=color is not None or picture is None, color=color or "gray", linewidth=3 if color else 1
        )


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
