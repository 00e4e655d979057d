"""What `metricid search` is given to work on: an index or a store, and files of embeddings."""

import argparse
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from metricid.cli.model import onnx_options
from metricid.data.embedding_file import EmbeddingReader
from metricid.errors import InputError
from metricid.search import SearchIndex
from metricid.search.kinds import check_kind
from metricid.search.recall import check_target
from metricid.search.remote import Address, InsecureKeyWarning, RemoteStore, open_store
from metricid.training.distributed import pick_device


def check_words(options: argparse.Namespace) -> None:
    """What is wrong in a command line whatever lies on the disk or on a server.

    Raises:
        InputError: names the option.
    """
    for name in ("embeddings", "output", "model", "calibration", "grid", "root", "landmarks"):
        given = getattr(options, name, None)
        if given is not None:
            Address.refuse("-o" if name == "output" else f"--{name}", [str(given)])
    Address.refuse(options.action, getattr(options, "words", [])[0 if options.store else 1 :])
    if "onnx" in options:
        onnx_options(options.onnx)
        pick_device(options.device)
    if "target" in options:
        check_target(options.target)
        if options.kind != "auto":
            check_kind(options.kind)
    if getattr(options, "k", None) is not None and options.k < 1:
        raise InputError(f"-k: must be at least 1, got {options.k}")
    for name in ("identity", "key", "row", "where", "store"):
        given = getattr(options, name, None) or []
        for text in [given] if isinstance(given, str) else given:
            check_text(f"--{name}", text)
    if getattr(options, "far", None) is not None and not 0 < options.far < 1:
        raise InputError(f"--far: must be a rate above 0 and below 1, got {options.far:g}")


def check_text(what: str, text: str) -> None:
    """`text` can be written down; Python keeps foreign bytes of a command line as lone surrogates.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what}: {text!a} is not UTF-8, as all text in an index is; rename it") from None


def open_place(place: str, *, verify: bool = False) -> SearchIndex | RemoteStore:
    """An index in a folder, or the store at a URL."""
    return open_server(place) if Address.is_meant(place) else SearchIndex(place, verify=verify)


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
    return str(Address.parse(place)) if Address.is_meant(place) else place


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr)
