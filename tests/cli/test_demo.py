"""`metricid demo` at the door: what is refused before anything is served."""

import socket

import pytest

from metricid.cli.main import main


def refuse(capsys, *arguments):
    """The one line that a refused command prints."""
    assert main(["demo", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("metricid demo: ")
    return lines[0]


def test_no_run(capsys, tmp_path):
    assert "no run folder or checkpoint" in refuse(capsys, tmp_path / "absent", "--port", 0)
    assert str(tmp_path) in refuse(capsys, tmp_path, "--port", 0)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--top", 0, "--top: must be at least 1 and at most 50, got 0"),
        ("--top", 51, "at most 50"),
        ("--port", 70_000, "--port: must be at least 0 and at most 65535"),
        ("--batch-size", 0, "--batch-size: must be at least 1"),
        ("--workers", -1, "--workers: must be at least 0"),
        ("--host", "0.0.0.0", "--host 0.0.0.0: other machines can reach it"),
        ("--token", "short", "--token: must be at least 16"),
        ("--index-root", "photos", "--index-root: is for the images of an index; give --index"),
    ],
)
def test_options_that_cannot_be(capsys, tmp_path, option, value, message):
    assert message in refuse(capsys, tmp_path, option, value)


def test_a_taken_port(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"--port: {port} is taken on 127.0.0.1" in refuse(capsys, tmp_path, "--port", port)
