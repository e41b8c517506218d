"""Who may speak to the server, and what its answers say to browsers: one ASGI layer around the app.

A page of another site may reach 127.0.0.1 from the user's browser. Its requests carry its Origin, and after DNS rebinding its
own name as Host: both are checked. The token comes as `Authorization: Bearer`, or as the cookie that a page opened with
?token=.. leaves: its <img> and <video> cannot send more.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.demo import (
    DemoConfig,
    is_loopback,
)

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
COOKIE = "token"
WITH_TOKEN = ("/api/", "/metrics")  # the pages themselves hold nothing


class Guard:
    """port: the one that is served."""

    def __init__(self, app: ASGIApp, cfg: DemoConfig, port: int) -> None:
        self._app, self._cfg, self._port = app, cfg, port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._stranger(headers)
        if scope["type"] == "websocket":
            if refusal:
                return await send(
                    {"type": "websocket.close", "code": 1008, "reason": "origin"}
                )  # before accept: HTTP 403
            return await self._app(scope, receive, send)

        cookie = {} if refusal else self._cookie(scope)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update({**HEADERS, **cookie})
            await send(message)

        if refusal:
            answer = JSONResponse({"code": "origin", "text": refusal}, 403)
        elif scope["path"].startswith(WITH_TOKEN) and not knows_token(headers, self._cfg.token):
            text = "the token is missing or not the one this server was started with (demo.token)"
            answer = JSONResponse({"code": "token", "text": text}, 401, {"WWW-Authenticate": "Bearer"})
        else:
            return await self._app(scope, receive, sending)
        await answer(scope, receive, sending)

    def _stranger(self, headers: Headers) -> str:
        """Why a request's Host or Origin is not ours; "" if it is. Where there is no Origin, no browser's page has sent it."""
        host, origin = headers.get("host", ""), headers.get("origin")
        ours = {urlsplit(o).netloc for o in self._cfg.origins}
        if is_loopback(self._cfg.host) and host not in ours and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return (
                f"Host {host!r} is not this server's; use http://127.0.0.1:{self._port}, or allow it with demo.origins"
            )
        if origin is None or origin in self._cfg.origins:
            return ""
        source = urlsplit(origin)
        if source.scheme in ("http", "https") and (source.netloc == host or self._is_local(source.netloc)):
            return ""
        return f"Origin {origin!r} is not this server's; open its own page, or allow it with demo.origins"

    def _is_local(self, netloc: str) -> bool:
        """A loopback name with the port that is served."""
        name, _, port = netloc.rpartition(":")
        return is_loopback(name) and port == str(self._port)

    def _cookie(self, scope: Scope) -> dict[str, str]:
        """For a page that is opened with the right token in its address."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not self._cfg.token or not same(given, self._cfg.token):
            return {}
        return {"Set-Cookie": f"{COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/"}


def knows_token(headers: Headers, token: str) -> bool:
    """By bearer or cookie. token: "" for none, which everybody knows."""
    if not token:
        return True
    sort, _, given = headers.get("authorization", "").partition(" ")
    if sort.lower() != "bearer":
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        given = cookie.value if cookie else ""
    return same(given.strip(), token)


def same(given: str, token: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(given.encode(), token.encode())
