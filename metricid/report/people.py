"""From embeddings and their columns to what a page says of single images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricid.evaluation import ProtocolResult
from metricid.report.embedding_map import EmbeddingMap, embedding_map
from metricid.report.page import People, marked_identities
from metricid.report.pictures import encode_pictures
from metricid.report.search_view import (
    Confusion,
    RankedList,
    Search,
    by_identity,
    confusions,
    measure,
    plan_search,
    ranked_lists,
)

MOST_CONFUSIONS = 40
MOST_IDENTITIES = 400
PICTURE_BYTES = 6_000_000  # of all pictures; the rest of a page takes at most some 2 MB
_SAME = 5e-5  # rates that agree in the digits that are shown

Read = Callable[[str], np.ndarray | None]


@dataclass(frozen=True)
class Choice:
    """What a reader asked for: queries of each group, images of a list, the seed of the random ones."""

    queries: int = 6
    top: int = 10
    seed: int = 0


def look_at_people(
    embeddings: ArrayLike,
    columns: Mapping[str, ArrayLike | None],
    paths: Sequence[str],
    read: Read | None,
    *,
    protocols: Sequence[str],
    distractors: Sequence[str] = (),
    results: Sequence[ProtocolResult] = (),
    choice: Choice | None = None,
) -> People:
    """Searches the embeddings and picks what is worth looking at.

    Args:
        embeddings: [N, D].
        columns: `identity` ([N] text), and `camera`, `split` where the table has them.
        paths: [N] paths of the images.
        read: path -> [H, W, 3] uint8 RGB, or None where it cannot be read; None for a page without pictures.
        protocols: what was evaluated; see `plan_search`.
        distractors: identities that never match, under `reid`.
        results: of the evaluation; where the search here gives other numbers, the page says so.
        choice: how much is shown.
    """
    choice = choice or Choice()
    search = plan_search(embeddings, columns, protocols, distractors)
    try:
        measured = measure(search)
    except ValueError as error:
        return People(
            search.identities, paths, search.cameras, {}, search.rule, why_none=str(error).rstrip(".")
        )
    lists = ranked_lists(search, measured, count=choice.queries, top=choice.top, seed=choice.seed)
    pairs, taken = confusions(search, measured)
    identities = by_identity(search, measured, taken)
    shown = pairs[:MOST_CONFUSIONS]
    pictures = {}
    if read is not None:
        pictures = encode_pictures(read, (paths[row] for row in _rows(lists, shown)), PICTURE_BYTES)
    return People(
        search.identities,
        paths,
        search.cameras,
        pictures,
        search.rule,
        lists,
        shown,
        len(pairs) - len(shown),
        identities[:MOST_IDENTITIES],
        max(0, len(identities) - MOST_IDENTITIES),
        _check(measured.rank1, search, results),
    )


def lay_out(embeddings: NDArray[np.float32], people: People, method: str, seed: int) -> EmbeddingMap | None:
    """The embedding map, with all images of the identities that the page marks.

    Raises:
        InputError: the method's package is not installed.
    """
    marked = marked_identities(people)[0]
    return embedding_map(embeddings, people.identities_of, method, always=marked, seed=seed)


def _rows(lists: Sequence[RankedList], pairs: Sequence[Confusion]) -> Iterator[int]:
    """Every place of a picture, the most important first."""
    for entry in lists:
        yield entry.row
        yield from (item.row for item in entry.items)
        if entry.first_right is not None:
            yield entry.first_right.row
    for pair in pairs:
        yield pair.query_row
        yield pair.found_row


def _check(rank1: float, search: Search, results: Sequence[ProtocolResult]) -> str:
    """Whether the numbers of this part are those of the table."""
    names = {"reid"} if search.cameras is not None else {"retrieval"}
    names |= {"identification"} if search.leave_one_out else set()
    for result in [r for r in results if r.protocol in names][:1]:
        stored = _stored_rank1(result)
        if stored is not None and abs(stored - rank1) > _SAME:
            return (
                f"The embeddings were computed again for this part: rank-1 is {rank1:.2%} here "
                f"and {stored:.2%} in the table."
            )
    return ""


def _stored_rank1(result: ProtocolResult) -> float | None:
    values: Any = (result.metrics.get(name) for name in ("rank-1", "Recall@1"))
    return next((value for value in values if value is not None), None)
