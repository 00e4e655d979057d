"""The server of the page: one address, one private folder, and a quiet end."""

import asyncio
import errno
import importlib.util
import ipaddress
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from metricid.demo.door import App, Door
from metricid.errors import InputError

if TYPE_CHECKING:
    import uvicorn

SHORTEST_TOKEN = 16
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_SECONDS_TO_END = 1  # open event streams of a browser would otherwise hold the server for ever
_FOLDER = re.compile(r"metricid-demo-(\d+)-\w+")


def check_extra() -> None:
    """The packages of the page are there.

    Raises:
        InputError: the extra is missing, or too old.
    """
    from importlib import metadata

    wanted = "metricid demo needs the extra demo: pip install 'metricid[demo]'"
    if importlib.util.find_spec("gradio") is None:
        raise InputError(wanted)
    if int(metadata.version("gradio").split(".")[0]) < 6:
        raise InputError(f"{wanted} (gradio 6 or newer; {metadata.version('gradio')} is installed)")


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_door(host: str, token: str | None) -> None:
    """Other machines come in by a token only.

    Raises:
        InputError: no token for an address that others reach, or one that can be guessed.
    """
    if token is None and not is_local(host):
        raise InputError(
            f"--host {host}: other machines can reach it, and photos of people are behind it; "
            f"give a --token of at least {SHORTEST_TOKEN} characters, or stay with 127.0.0.1"
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or " " in token):
        raise InputError(
            f"--token: must be at least {SHORTEST_TOKEN} ASCII characters without spaces; "
            "openssl rand -hex 16 makes a good one"
        )


def listen(host: str, port: int) -> socket.socket:
    """Takes the address before the long work begins.

    Args:
        host: name or address.
        port: 0 for any that is free.

    Raises:
        InputError: taken, not of this machine, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):  # the second: a part of the name is empty or too long
        raise InputError(f"--host {host}: no such address; give 127.0.0.1") from None
    taken = socket.socket(family, kind, protocol)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(address)
        taken.listen(128)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"--port: {port} is taken on {host}; give another one, or 0 for any that is free"
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"--host {host}: is no address of this machine; give one of its own, or leave it out"
            ) from None
        raise InputError(
            f"--port: {port} cannot be opened on {host} ({error.strerror}); give another one, above 1023"
        ) from None
    return taken


def address_of(taken: socket.socket, host: str) -> str:
    """What to type into a browser."""
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{taken.getsockname()[1]}/"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads under way that nobody else can read: in memory where the system has such a place.

    It is removed at the end. What a killed server left behind is removed by the next one.
    """
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for old in parent.glob("metricid-demo-*"):
        named = _FOLDER.fullmatch(old.name)
        if named is not None and not _runs(int(named[1])):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"metricid-demo-{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def quiet_environment(folder: Path) -> None:
    """Settings that gradio reads when it is imported: no network, and uploads into our folder."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["GRADIO_SSR_MODE"] = "False"


def serve(app: App, taken: socket.socket, *, host: str, token: str | None, ready: Callable[[], None]) -> None:
    """Answers requests until SIGINT, SIGTERM or SIGHUP.

    Args:
        app: the page.
        taken: from `listen`.
        host: the address that was asked for.
        token: see `Door`.
        ready: called when the first request can be answered.
    """
    import uvicorn

    door = Door(app, token=token, hosts=_LOCAL | {host} if is_local(host) else None)
    logging.getLogger("uvicorn.error").addFilter(_worth_a_line)
    config = uvicorn.Config(
        door,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )
    _server(config, ready).run(sockets=[taken])


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Leaves out that open streams of a browser were cut at the end, which is how they end."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown" not in record.getMessage()


def _server(config: "uvicorn.Config", ready: Callable[[], None]) -> "uvicorn.Server":
    import uvicorn

    class Server(uvicorn.Server):
        """Ends on a signal without raising it again: that would skip the clean-up after it."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            def end(number: int, frame: FrameType | None) -> None:
                self.should_exit = True

            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            before: dict[int, Any] = {number: signal.signal(number, end) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server(config)
