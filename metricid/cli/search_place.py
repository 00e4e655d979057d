"""What `metricid search` is given to work on: an index or a store, and files of embeddings."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any

from metricid.data.embedding_file import EmbeddingReader
from metricid.errors import InputError
from metricid.search import SearchIndex
from metricid.search.remote import Address, InsecureKeyWarning, RemoteStore, open_store


def open_place(place: str, *, verify: bool = False) -> SearchIndex | RemoteStore:
    """An index in a folder, or the store at a URL."""
    return open_server(place) if "://" in place else SearchIndex(place, verify=verify)


def open_server(url: str, card: Mapping[str, Any] | None = None) -> RemoteStore:
    """`open_store`, with its warning as one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InsecureKeyWarning)
        try:
            return open_store(url, card=card)
        finally:
            for warning in caught:
                say(str(warning.message))


def open_embeddings(file: str) -> EmbeddingReader:
    """Stored embeddings whose width is that of their model.

    Raises:
        InputError: as `EmbeddingReader`, or the card contradicts the vectors.
    """
    reader = EmbeddingReader(file)
    model = reader.card.get("model")
    width = model.get("dimension") if isinstance(model, Mapping) else None
    if width is not None and width != reader.dimension:
        raise InputError(
            f"{file}: its vectors are {reader.dimension} wide, its card says that the model gives {width}; "
            "they are not the model's as they are: embed again, or write a card of their own"
        )
    return reader


def shown(place: str) -> str:
    """The place without a password or options."""
    return str(Address.parse(place)) if "://" in place else place


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr)
