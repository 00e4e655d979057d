"""A connection to PostgreSQL that is made again when it is lost, and errors in words that help."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from metricid.errors import InputError
from metricid.search.remote import Address, Retry, Verdict, missing_extra, one_line

T = TypeVar("T")
# Serialisation failure, deadlock, too many connections, starting up: they pass.
_PASSING = ("40001", "40P01", "53300", "57P03")
_REMEDIES = {
    "3F000": "create the schema, or correct the URL",
    "42P01": "somebody dropped the table: build it again",
    "42501": "ask the database's administrator for the right",
    "25006": "give the address of the primary server, this one only reads",
    "53100": "free space on the server and run the same command again",
    "54000": "store fewer columns or smaller vectors",
    "55P03": "try again when others have let go of the table",
    "57014": "raise statement_timeout on the server",
    "58P01": "install pgvector on the server (package postgresql-NN-pgvector)",
    "0A000": "install pgvector on the server (package postgresql-NN-pgvector)",
}
# In the text of a connection that fails: what no second try mends.
_LASTING = ("does not exist", "pg_hba.conf", "sslmode", "certificate", "does not support SSL")


class Session:
    """Runs calls with a connection to one database.

    Args:
        address: host, port, user, password and database; what is missing libpq takes from `PGHOST`,
            `PGPASSWORD`, `~/.pgpass` and so on.
        retry: how patient to be.
        options: further arguments of a libpq connection; None is left out.
    """

    def __init__(self, address: Address, retry: Retry, **options: Any):
        try:
            import pgvector.psycopg
            import psycopg
        except ImportError:
            raise missing_extra("pgvector") from None
        self._psycopg = psycopg
        self._register = pgvector.psycopg.register_vector
        self._address = address
        self._retry = retry
        self._options = options
        self._connection: Any = None
        self.warnings: list[str] = []

    def run(self, call: Callable[[Any], T]) -> T:
        """Calls with a psycopg connection (autocommit), again when it is lost: what is done twice must do no
        harm.

        Raises:
            InputError: the server does not answer, or refuses.
        """

        def attempt() -> T:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            return call(self._connection)

        return self._retry.run(attempt, self._judge)

    def register_vector(self, connection: Any) -> None:
        """Makes the connection read and write vectors, where the database has the extension."""
        if connection.execute("SELECT FROM pg_extension WHERE extname = 'vector'").fetchone() is not None:
            self._register(connection)

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Any:
        arguments = {
            "host": self._address.host,
            "port": self._address.port,
            "user": self._address.user,
            "password": self._address.password,
            "dbname": self._address.path.strip("/") or None,
            **self._options,
        }
        connection = self._psycopg.connect(
            **{name: value for name, value in arguments.items() if value is not None},
            application_name="metricid",
            autocommit=True,
            # Each query is planned with its values: a rare value of a filter is better served by a B-tree.
            prepare_threshold=None,
        )
        connection.add_notice_handler(self._notice)
        self.register_vector(connection)
        return connection

    def _notice(self, notice: Any) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(notice.message_primary)

    def _judge(self, error: Exception) -> Verdict | None:
        if not isinstance(error, self._psycopg.Error):
            return None
        text = one_line(error, (self._address.password, os.environ.get("PGPASSWORD")))
        if error.pgconn is not None or (self._connection is None and error.sqlstate is None):
            return self._judge_connecting(error, text.removeprefix("connection failed: "))
        lost = self._connection is not None and self._connection.closed
        if lost:
            return Verdict(
                True, f"{self._address}: the connection was lost ({text})", "check the server's log"
            )
        state = error.sqlstate or ""
        if state in _PASSING:
            return Verdict(True, f"{self._address}: the server is busy ({text})", "try again later")
        if state in _REMEDIES:
            return Verdict(False, f"{self._address}: the server refuses ({text})", _REMEDIES[state])
        return None

    def _judge_connecting(self, error: Any, text: str) -> Verdict:
        """libpq gives no codes for failed connections: what it knows of passwords, and the text, must do."""
        shown = text.partition(" Is the server running")[0]
        asked = error.pgconn  # None where the host was not even found
        if asked and (asked.needs_password or (asked.used_password and "password" in text)):
            who = self._address.user or asked.user.decode(errors="replace")
            return Verdict(
                False,
                f"{self._address}: the server refuses the password of {who!r}, or got none",
                "put the right one into PGPASSWORD or ~/.pgpass",
            )
        if any(word in text for word in _LASTING):
            return Verdict(False, f"{self._address}: the server refuses ({text})", "correct the URL")
        return Verdict(
            True,
            f"{self._address}: no connection ({shown})",
            "start the server, or check host and port in the URL",
        )


def check_name(name: str, what: str) -> None:
    """Refuses what PostgreSQL would cut off or cannot hold; any other text is quoted.

    Raises:
        InputError: empty, longer than 63 bytes, or with a null character.
    """
    if not 0 < len(name.encode()) <= 63 or "\0" in name:
        raise InputError(
            f"{what} {name!r} must have 1 to 63 bytes and no null character; choose another name"
        )
