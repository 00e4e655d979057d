"""Who may come in: every request passes here before the page sees it."""

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "metricid-demo"
ENTRANCE = "/enter"
_MOST_FORM = 4096
# The framework needs inline scripts and styles. Nothing may come from, or go to, another address.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' blob:; worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"same-origin"),  # without one, a form of our own would come from "null"
    (b"x-content-type-options", b"nosniff"),
]
_NOT_KEPT = (b"cache-control", b"no-store")
_FORM = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>metricid demo</title>
<style>body{{font:16px system-ui,sans-serif;max-width:22rem;margin:15vh auto;padding:0 1rem;
color-scheme:light dark}}input,button{{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;
margin-top:.5rem}}</style>
<h1>metricid demo</h1><form method="post" action="{action}">
<label for="token">Token</label><input id="token" name="token" type="password" required autofocus>
<button>Open</button></form><p role="alert">{problem}</p></html>"""


class Door:
    """An ASGI application around another one.

    Requests for another host name are refused (a page elsewhere cannot reach a local server by giving it a
    name of its own), as are those that another page sends. With a token, nothing is answered without it: no
    page, no call, no file.

    Args:
        app: what is behind the door.
        token: who knows it may come in; None lets everybody in.
        hosts: host names that the server goes by; None for any.
    """

    def __init__(self, app: App, *, token: str | None = None, hosts: frozenset[str] | None = None):
        self._app, self._token, self._hosts = app, token, hosts
        self._pass = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._foreign(headers)
        if refused:
            await _refuse(scope, send, 403, refused)
        elif self._token is not None and scope["type"] == "http" and scope["path"] == ENTRANCE:
            await self._enter(scope, receive, send)
        elif self._token is not None and not self._known(headers, self._token):
            wants_page = scope["type"] == "http" and "text/html" in headers.get("accept", "")
            await _refuse(scope, send, 401, _form("") if wants_page else "a token is needed\n")
        else:
            await self._app(scope, receive, _with_headers(send, scope))

    def _foreign(self, headers: MutableMapping[str, str]) -> str:
        """Why a request is not for this server, or is not of its own page; empty if all is well."""
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return "this server does not go by that name\n"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "requests of other pages are not answered\n"
        return ""

    def _known(self, headers: MutableMapping[str, str], token: str) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _equal(given.strip(), token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _equal(cookie.value, self._pass)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The form of the token: a right one is exchanged for a cookie."""
        given = parse_qs(await _body(receive)).get("token", [""])[0] if scope["method"] == "POST" else ""
        if self._token is None or not _equal(given, self._token):
            await _refuse(scope, send, 401, _form("That is not the token." if given else ""))
            return
        cookie = f"{COOKIE}={self._pass}; HttpOnly; SameSite=Strict; Path=/"
        await _answer(send, 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())])


def _name(host: str) -> str | None:
    """The name in a `Host` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _form(problem: str) -> str:
    return _FORM.format(action=ENTRANCE, problem=problem)


async def _body(receive: Receive) -> str:
    """A small body as text; of a large one nothing."""
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if len(data) > _MOST_FORM or message["type"] != "http.request":
            return ""
        if not message.get("more_body"):
            return data.decode("utf-8", errors="replace")


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    more = [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await _answer(send, status, text, more)


async def _answer(send: Send, status: int, text: str, more: list[tuple[bytes, bytes]]) -> None:
    kind = b"text/html" if text.startswith("<!doctype") else b"text/plain"
    data = text.encode()
    headers = [
        (b"content-type", kind + b"; charset=utf-8"),
        (b"content-length", str(len(data)).encode()),
        _NOT_KEPT,
        *_HEADERS,
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _with_headers(send: Send, scope: Scope) -> Send:
    """Adds our headers; but for scripts and styles, the browser keeps nothing on its disk."""
    path = scope.get("path", "")
    fixed = path.startswith(("/assets/", "/static/"))

    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in _HEADERS} | (set() if fixed else {_NOT_KEPT[0]})
            kept = [(name, value) for name, value in message["headers"] if name.lower() not in names]
            message = {**message, "headers": [*kept, *_HEADERS, *([] if fixed else [_NOT_KEPT])]}
        await send(message)

    return wrapped
