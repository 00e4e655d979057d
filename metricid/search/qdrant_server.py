"""The way to a Qdrant server, or to a local folder in its place, and errors in words that help."""

import os
import re
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from metricid.errors import InputError
from metricid.search.remote import Address, InsecureKeyWarning, Retry, Verdict, missing_extra, one_line

API_KEY = "METRICID_QDRANT_API_KEY"


class QdrantServer:
    """Asks for things of one collection.

    Args:
        address: of a server, or without a host of a local folder, which one process at a time can open.
        collection: its name.
        retry: how patient to be.
        create: make the local folder where it is missing.
        tls: speak https.
        timeout: seconds for an answer.

    Attributes:
        name: how messages call the collection.
        folder: the local folder, else None.
        models: the client's models.

    Raises:
        InputError: a name or URL that cannot be used, or the local folder is missing or in use.
    """

    def __init__(
        self, address: Address, collection: str, retry: Retry, *, create: bool, tls: bool, timeout: int
    ):
        try:
            import qdrant_client
            from qdrant_client.http import exceptions
        except ImportError:
            raise missing_extra("qdrant") from None
        if address.user or address.password:
            raise InputError(f"--store: a qdrant URL has no user or password; put the API key into {API_KEY}")
        if address.host is None and (address.port is not None or not address.path.strip("/.")):
            raise InputError(
                f"{address}: names neither a server nor a folder; give qdrant://HOST:PORT/COLLECTION, or "
                "qdrant:///a/local/folder"
            )
        if not collection:
            raise InputError(f"{address}: names no collection; give qdrant://HOST:PORT/COLLECTION")
        if not re.fullmatch(r"\w[\w.-]{0,254}", collection):
            raise InputError(
                f"{address}: the collection {collection!r} must be named with letters, digits, _ . -"
            )
        self.models = qdrant_client.models
        self.folder = None if address.host else Path(address.path)
        self.name = str(address) if self.folder is None else f"{address} collection {collection!r}"
        self._collection = collection
        self._address = address
        self._retry = retry
        self._errors = exceptions
        self._key = os.environ.get(API_KEY) or None
        if self.folder is None:
            host = f"[{address.host}]" if ":" in str(address.host) else address.host
            if self._key and not tls:
                warnings.warn(
                    f"{address}: the API key is sent unencrypted; beyond one machine, use ?tls=true",
                    InsecureKeyWarning,
                    stacklevel=2,
                )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Api key is used with an insecure connection")  # said above
                try:
                    self._client = qdrant_client.QdrantClient(
                        url=f"{'https' if tls else 'http'}://{host}:{address.port or 6333}",
                        api_key=self._key,
                        timeout=timeout,
                        check_compatibility=False,
                    )
                except ValueError as error:  # the client has rules of its own for the names of hosts
                    why = one_line(error, [self._key])
                    raise InputError(f"{address}: cannot be asked ({why}); correct the URL") from None
            return
        if not create and not (self.folder / "meta.json").is_file():
            raise InputError(f"{address}: no local Qdrant folder; build it first, or correct the URL")
        if self.folder.is_dir() and not (self.folder / "meta.json").is_file() and any(self.folder.iterdir()):
            raise InputError(f"{address}: the folder holds other files; give a new one, or an empty one")
        try:
            self._client = qdrant_client.QdrantClient(path=str(self.folder))
        except (RuntimeError, OSError, ValueError) as error:
            raise InputError(f"{address}: cannot be opened ({one_line(error)})") from None

    def ask(self, method: str, **arguments: Any) -> Any:
        """Calls a method of the client on the collection, again when the server does not answer: what is done
        twice must do no harm.

        Raises:
            InputError: the server does not answer, or refuses.
        """
        call = getattr(self._client, method)
        return self._retry.run(lambda: call(collection_name=self._collection, **arguments), self._judge)

    def rewrite(self) -> None:
        """Writes a local collection's file anew: SQLite leaves the bytes of deleted rows in it."""
        assert self.folder is not None
        with closing(
            sqlite3.connect(self.folder / "collection" / self._collection / "storage.sqlite")
        ) as file:
            file.execute("VACUUM")

    def close(self) -> None:
        """Closes the connection, or lets go of the folder."""
        self._client.close()

    def _judge(self, error: Exception) -> Verdict | None:
        if isinstance(error, self._errors.ResponseHandlingException):
            text = one_line(error.source, [self._key]) or type(error.source).__name__
            return Verdict(
                type(error.source).__module__.startswith("httpx"),
                f"{self._address}: no answer of a Qdrant server ({text})",
                "start the server, or check host, port and tls in the URL",
            )
        if not isinstance(error, self._errors.UnexpectedResponse):
            return None
        code = error.status_code or 0
        if code in (401, 403):
            what = f"{self._address}: the server refuses the API key, or got none"
            return Verdict(False, what, f"put the right one into {API_KEY}")
        text = one_line(error.content.decode(errors="replace")[:300], [self._key])
        what = f"{self._address}: the server refuses with {code} ({text})"
        return Verdict(code == 429 or code >= 500, what, "see the server's log, or correct the URL")
