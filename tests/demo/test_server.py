"""Addresses, folders, and what the framework is told."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from metricid.demo import server
from metricid.demo.page import receive
from metricid.demo.uploads import Uploads
from metricid.errors import InputError


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_needs_no_token(host):
    server.check_door(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_machines_need_a_token(host):
    with pytest.raises(InputError, match="give a --token of at least 16 characters"):
        server.check_door(host, None)
    server.check_door(host, "0123456789abcdef")


@pytest.mark.parametrize(
    "token", ["", "short", "fifteen-letters", "with a space in it", "äöüäöüäöüäöüäöüäöü"]
)
def test_a_token_that_can_be_guessed_is_refused_and_not_repeated(token):
    with pytest.raises(InputError, match="at least 16 ASCII characters") as caught:
        server.check_door("127.0.0.1", token)
    assert not token or token not in str(caught.value)


def test_a_taken_port_is_one_clear_line():
    with server.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert server.address_of(first, "127.0.0.1") == f"http://127.0.0.1:{port}/"
        with pytest.raises(InputError, match=f"--port: {port} is taken on 127.0.0.1; give another one"):
            server.listen("127.0.0.1", port)
    server.listen("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid", "a..b", "x" * 300])
def test_an_address_of_another_machine_is_refused(host):
    with pytest.raises(InputError, match=f"--host {host}"):
        server.listen(host, 0)


def test_ipv6_addresses_are_written_in_brackets():
    try:
        taken = server.listen("::1", 0)
    except InputError:
        pytest.skip("this machine has no IPv6")
    with taken:
        assert server.address_of(taken, "::1").startswith("http://[::1]:")
        assert taken.family == socket.AF_INET6


def test_the_folder_of_uploads_is_private_and_goes_away():
    with server.private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "photo.jpg").write_bytes(b"face")
        with server.private_folder() as other:
            assert folder.exists() and other != folder, "another server's folder is left alone"
    assert not folder.exists()


def test_what_a_killed_server_left_is_removed_by_the_next():
    code = (
        "import os, signal\nfrom metricid.demo.server import private_folder\n"
        "with private_folder() as folder:\n    (folder / 'photo.jpg').write_bytes(b'face')\n"
        "    print(folder, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(ended.stdout.strip())
    assert (left / "photo.jpg").exists()
    with server.private_folder():
        assert not left.exists()


def test_an_old_framework_and_a_missing_one_are_told(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "5.49.1")
    with pytest.raises(InputError, match=r"gradio 6 or newer; 5\.49\.1 is installed"):
        server.check_extra()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'metricid\[demo\]'"):
        server.check_extra()


def test_the_framework_is_told_to_stay_off_the_network(tmp_path, monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "before")
    monkeypatch.setenv("GRADIO_RUN_HISTORY", "True")
    monkeypatch.setenv("GRADIO_SSR_MODE", "True")
    server.quiet_environment(tmp_path)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    assert os.environ["GRADIO_RUN_HISTORY"] == os.environ["GRADIO_SSR_MODE"] == "False"


class Refuses:
    """A studio that takes no photo."""

    def photo(self, data):
        raise InputError(f"this file: {len(data)} bytes are no image")


def test_an_uploaded_file_is_deleted_even_if_it_is_no_photo(tmp_path):
    file = tmp_path / "upload" / "face.jpg"
    file.parent.mkdir()
    file.write_bytes(b"no image")
    photo, told = receive(Refuses(), Uploads(), str(file), "Your photo")
    assert photo is None and "This file: 8 bytes are no image" in told
    assert not file.exists()
    assert "did not arrive" in receive(Refuses(), Uploads(), str(file), "Your photo")[1]
    assert "No file arrived" in receive(Refuses(), Uploads(), None, "Your photo")[1]
