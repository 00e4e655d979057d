"""Vector stores behind a URL: its parts, its options, and patience with servers."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, unquote, urlsplit

from metricid.errors import InputError
from metricid.registry import unknown
from metricid.search.store import Store

T = TypeVar("T")
KINDS = ("pgvector", "qdrant")
_FORMS = "pgvector://USER@HOST:PORT/DATABASE?table=NAME or qdrant://HOST:PORT/COLLECTION"
_MAX_WAIT = 30.0


class InsecureKeyWarning(UserWarning):
    """A key goes over the network unencrypted."""


class RemoteStore(Store, Protocol):
    """A store on a server; what a `Store` does, with these differences.

    `add` writes in batches, each whole or absent. Everything is checked before the first one, and a row that
    is there already with the same content is passed over: an upload that was killed is continued by the same
    call. Only a row with other content under a known key needs `replace`.
    """

    def finish(self) -> None:
        """Builds or awaits the index after the last `add`, and measures its recall where the store has grown.

        Queries are right without it, only slower.
        """
        ...


def open_store(
    url: str, *, card: Mapping[str, Any] | None = None, retry: "Retry | None" = None
) -> RemoteStore:
    """Opens the store at a URL.

    To build: `open_store(url, card=card)`, `add` (once or often), `finish`. To add: `open_store(url)`,
    `check_same_model(store.card, ...)`, `add`, `finish`. To query, to remove or to ask for `stats`:
    `open_store(url)` and the method. `close` at the end.

    Args:
        url: `pgvector://user@host:port/database?table=name`, `qdrant://host:port/collection`, or
            `qdrant:///a/local/folder`, with options as `?name=value&...` (see docs/stores.md).
        card: of the vectors to be stored (`dimension`, `model`, `flip`, ...): creates the store where it is
            missing. None opens only what exists.
        retry: how patient to be with a server that does not answer.

    Raises:
        InputError: the URL or an option cannot be used, the server does not answer or refuses, the store does
            not exist or is no store of ours, or holds vectors of another model, width or preprocessing.
    """
    address = Address.parse(url)
    if address.kind == "pgvector":
        from metricid.search.pgvector import PgvectorStore

        return PgvectorStore(address, card=card, retry=retry or Retry())
    from metricid.search.qdrant import QdrantStore

    return QdrantStore(address, card=card, retry=retry or Retry())


@dataclass(frozen=True)
class Address:
    """The parts of a store's URL. `str` and `repr` never show the password."""

    kind: str
    user: str | None
    password: str | None = field(repr=False)
    host: str | None
    port: int | None
    path: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Reads a URL; messages about a wrong one leave out everything that could be a password.

        Raises:
            InputError: another scheme or form, or an option given twice.
        """
        kind, separator, rest = url.partition("://")
        if kind not in KINDS or not separator:
            # Anything else of the text may be a password.
            name = kind if separator and re.fullmatch(r"[a-z0-9+]+", kind) else "***"
            raise InputError(f"--store: {unknown('store', name, list(KINDS))}; give {_FORMS}")
        place, _, query = rest.partition("?")
        if "@" in query:  # what is before it may be the half of a password that has a question mark
            shown = f"{kind}://***"
        else:
            shown = f"{kind}://***@{place.rpartition('@')[2]}" if "@" in place else f"{kind}://{place}"
        shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
        try:
            parts = urlsplit(url)
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            pairs = None
        if pairs is None or parts.fragment or "@" in parts.path + query:
            raise InputError(
                f"--store: {shown} is not of the form {_FORMS}; "
                "write special characters of a password as %40 (@), %3A (:), %2F (/), %3F (?), %23 (#)"
            )
        host, user, password = parts.hostname, parts.username, parts.password
        try:
            port = parts.port
        except ValueError:  # without a host, what stands in its place may be a password
            shown = shown if "@" in place else f"{kind}://***"
            raise InputError(
                f"--store: {shown}: the port must be a number from 1 to 65535; correct the URL"
            ) from None
        twice = [name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place])]
        if twice:
            raise InputError(f"--store: {shown}: the option {twice[0]!r} is given twice; keep one")
        if wrong := _impossible(host or "", port, unquote(f"{user or ''}{parts.path}")):
            raise InputError(f"--store: {shown}: {wrong}; correct the URL")
        return cls(
            kind,
            unquote(user) if user else None,
            unquote(password) if password else None,
            host,
            port,
            unquote(parts.path),
            dict(pairs),
        )

    @staticmethod
    def is_meant(text: str) -> bool:
        """Whether a text is meant as a URL, right or wrong, and not as the path of a folder."""
        return "://" in text or re.match(r"(pgvector|qdrant|postgres|postgresql):", text) is not None

    @classmethod
    def refuse(cls, what: str, texts: Iterable[str | None]) -> None:
        """Refuses URLs where paths are meant; a message that quoted one might show a password.

        Raises:
            InputError: one is a URL.
        """
        if any(text is not None and cls.is_meant(text) for text in texts):
            raise InputError(
                f"{what}: is a URL, and must be the path of a file or folder here; the URL of a store goes "
                "to metricid search, once, as --store URL"
            )

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host or ""
        return f"{self.kind}://{user}{host}{port}{self.path}"


def _impossible(host: str, port: int | None, rest: str) -> str:
    """What no server has, and what clients and terminals stumble over; or an empty text."""
    if port == 0:
        return "there is no port 0"
    if not (host + rest).isprintable():
        return "it holds a control character"
    try:
        host.encode("idna")
    except UnicodeError:
        return "the host is no name of a computer"
    return "the host is no name of a computer" if re.search(r"[\s\\<>^`{|}%]", host) else ""


def read_options(address: Address, kind: type[T]) -> T:
    """The options of a URL as a dataclass of int, bool, text and tuple fields.

    Raises:
        InputError: an unknown option, or a value of another type. Values of unknown options are not shown.
    """
    hints = get_type_hints(kind)
    known = [option.name for option in fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in address.options.items():
        if name not in hints:
            raise InputError(f"{address}: {unknown('option', name, known)}")
        values[name] = _option(f"{address}: the option {name}", text, hints[name])
    return kind(**values)


def _option(where: str, text: str, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise InputError(f"{where} must be one of {', '.join(get_args(hint))}, got {text!r}")
        return text
    if hint is bool:
        if text not in ("true", "false"):
            raise InputError(f"{where} must be true or false, got {text!r}")
        return text == "true"
    if hint is int:
        # 1 to 9 digits: beyond that no option makes sense, and servers overflow.
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
            raise InputError(f"{where} must be a whole number from 1, got {text!r}")
        return int(text)
    if get_origin(hint) is tuple:
        return tuple(part for part in text.split(",") if part)
    if not text:
        raise InputError(f"{where} is empty")
    return text


@dataclass(frozen=True)
class Retry:
    """Tries again, waiting twice as long after each failure.

    Args:
        tries: calls in all.
        wait: seconds after the first failure.
    """

    tries: int = 5
    wait: float = 0.5

    def run(self, call: Callable[[], T], judge: "Callable[[Exception], Verdict | None]") -> T:
        """Calls until it succeeds.

        Args:
            call: may be called several times.
            judge: what an error means; None for one that is not the user's to mend, which goes up as it is.

        Raises:
            InputError: the verdict's message. It has no cause: errors of clients hold connections, and those
                passwords.
        """
        start = time.monotonic()
        verdict: Verdict | None = None
        for attempt in range(1, self.tries + 1):
            try:
                return call()
            except Exception as error:
                verdict = judge(error)
                if verdict is None:
                    raise
            if not verdict.passing:
                raise InputError(f"{verdict.what}; {verdict.remedy}")
            if attempt < self.tries:
                time.sleep(min(self.wait * 2 ** (attempt - 1), _MAX_WAIT))
        assert verdict is not None, "tries is at least 1"
        spent = f"{self.tries} tries in {time.monotonic() - start:.0f} s"
        raise InputError(f"{verdict.what}, {spent}; {verdict.remedy}")


@dataclass(frozen=True)
class Verdict:
    """What an error of a server means: whether it may pass by itself, what is wrong, and what to do."""

    passing: bool
    what: str
    remedy: str


def one_line(error: object, secrets: Sequence[str | None] = ()) -> str:
    """A foreign error's text on one line, without the secrets."""
    text = " ".join(str(error).split())
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def missing_extra(extra: str) -> InputError:
    """The error for an optional package that is not installed."""
    return InputError(f"the store {extra} needs the extra {extra}: pip install 'metricid[{extra}]'")
