"""Who may come in: every kind of request against the door alone."""

import asyncio

import pytest

from metricid.demo.door import COOKIE, Door

TOKEN = "a-token-of-sixteen-and-more"
HOST = "127.0.0.1:7860"


async def inside(scope, receive, send):
    """What is behind the door: answers everything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    headers = [(b"content-type", b"text/plain"), (b"cache-control", b"max-age=9")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(door, path="/", method="GET", kind="http", body=b"", **headers):
    """The messages that a request is answered with."""
    given = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": kind,
        "path": path,
        "method": method,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    sent = []

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message)

    asyncio.run(door(scope, receive, send))
    return sent


def status(sent):
    return sent[0]["status"]


def headers_of(sent):
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.fixture
def closed():
    return Door(inside, token=TOKEN)


PATHS = [
    "/",
    "/config",
    "/assets/index.js",
    "/gradio_api/upload",
    "/gradio_api/file=/etc/passwd",
    "/theme.css",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "DELETE"])
def test_without_the_token_nothing_is_answered(closed, path, method):
    for given in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"cookie": f"{COOKIE}={TOKEN}"}):
        sent = ask(closed, path, method, **given)
        assert status(sent) == 401 and b"inside" not in sent[1]["body"]
        assert headers_of(sent)["cache-control"] == "no-store"


def test_without_the_token_a_web_socket_is_closed(closed):
    assert ask(closed, kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_the_token_opens_as_a_header(closed):
    sent = ask(closed, authorization=f"Bearer {TOKEN}")
    assert status(sent) == 200 and sent[1]["body"] == b"inside"
    assert ask(closed, kind="websocket", authorization=f"Bearer {TOKEN}")[0]["type"] == "websocket.accept"


def test_the_form_gives_a_cookie_for_the_token_that_is_not_the_token(closed):
    page = ask(closed, accept="text/html")
    assert status(page) == 401 and b'name="token"' in page[1]["body"]
    entered = ask(closed, "/enter", "POST", body=f"token={TOKEN}".encode())
    assert status(entered) == 303 and headers_of(entered)["location"] == "/"
    cookie = headers_of(entered)["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    assert status(ask(closed, cookie=cookie.split(";")[0])) == 200
    other = Door(inside, token=TOKEN)
    assert status(ask(other, cookie=cookie.split(";")[0])) == 401, "each server gives cookies of its own"


@pytest.mark.parametrize(
    ("method", "body"),
    [("POST", b"token=wrong"), ("POST", b""), ("GET", b""), ("POST", b"token=" + b"x" * 10_000)],
)
def test_the_form_refuses_what_is_not_the_token(closed, method, body):
    sent = ask(closed, "/enter", method, body=body)
    assert status(sent) == 401 and "set-cookie" not in headers_of(sent)


@pytest.mark.parametrize("bad", ["%%%", "a=b; ;=;", 'metricid-demo="\\"'])
def test_a_damaged_cookie_is_no_pass(closed, bad):
    assert status(ask(closed, cookie=bad)) == 401


def test_a_local_server_answers_to_its_own_names_only():
    door = Door(inside, hosts=frozenset({"localhost", "127.0.0.1", "::1"}))
    for host in ("127.0.0.1:7860", "localhost", "[::1]:80"):
        assert status(ask(door, host=host)) == 200
    for host in (
        "evil.example",
        "127.0.0.1.evil.example:7860",
        "",
        "evil.example:127.0.0.1",
        "[",
        "127.0.0.1@evil",
    ):
        assert status(ask(door, host=host)) == 403
    assert ask(door, kind="websocket", host="evil.example")[0]["type"] == "websocket.close"


def test_a_page_elsewhere_cannot_send_requests():
    door = Door(inside)
    assert status(ask(door, method="POST", origin=f"http://{HOST}")) == 200
    for origin in ("http://evil.example", "null", "http://[", "http://127.0.0.1:9999"):
        assert status(ask(door, method="POST", origin=origin)) == 403


def test_answers_forbid_other_addresses_and_are_not_kept():
    sent = ask(Door(inside))
    found = headers_of(sent)
    assert found["cache-control"] == "no-store" and found["referrer-policy"] == "same-origin"
    policy = found["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    assert headers_of(ask(Door(inside), "/assets/index.js"))["cache-control"] == "max-age=9"
