"""Who may talk to the server: by the name it is called by, the page's origin, and a token."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from contextlib import suppress
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastfss.app.settings import Settings

COOKIE = "fastfss-token"

# The page runs nothing and loads nothing but its own files; pictures may come from its memory.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; media-src blob:; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class Guard:
    """Refuses what comes under another name, from another page, or without the token.

    Another name: a page elsewhere whose host name leads to this machine (DNS rebinding). Another
    page: browsers name it in `Origin`, for each WebSocket and each request that changes something.

    Args:
        app: what is guarded.
        settings: token and hosts.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope)
        if problem is None:
            await self._pass(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": problem[1]})
        else:
            await _refuse(send, *problem)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        headers, settings = Headers(scope=scope), self._settings
        host = headers.get("host", "")
        if settings.hosts and _host_name(host) not in settings.hosts:
            return 403, f"host: expected {' or '.join(settings.hosts)}, got {host[:80]!r}"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, f"origin: expected the server's own page, got {origin[:80]!r}"
        if settings.token is None:
            return None
        if not any(_same(settings.token, given) for given in _tokens(scope, headers)):
            return 401, "token: expected the one that `fastfss serve` printed"
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def query_token(scope: Scope) -> str | None:
    """The token in the address, as `fastfss serve` prints it."""
    found = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
    return found[0] if found else None


def _tokens(scope: Scope, headers: Headers) -> list[str]:
    found = []
    if scope["type"] == "http" and scope["path"] == "/" and (given := query_token(scope)):
        found.append(given)
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() in ("bearer", "token"):
        found.append(value.strip())
    elif kind.lower() == "basic":  # as Label Studio does; the name is of no matter
        with suppress(binascii.Error):
            decoded = base64.b64decode(value).decode("utf-8", "replace")
            found.append(decoded.partition(":")[2])
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except Exception:  # http.cookies raises anything for a bad header
        return found
    return [*found, cookies[COOKIE].value] if COOKIE in cookies else found


def _same(token: str, given: str) -> bool:
    return hmac.compare_digest(token.encode(), given.encode("utf-8", "surrogateescape"))


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, text: str) -> None:
    body = json.dumps({"message": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
