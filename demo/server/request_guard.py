"""An ASGI middleware that checks the origin and the token of every request, and adds security headers to every response.

A page of another site can reach 127.0.0.1 from the user's browser. Its requests carry its Origin and, after DNS rebinding, its
own name as Host, so both are checked. The token comes as `Authorization: Bearer`, or as the cookie that a page opened with
?token=... sets, since <img> and <video> cannot send headers.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.demo import DemoConfig, is_loopback

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
WITH_TOKEN = ("/api/", "/metrics")  # the pages themselves hold no data


class RequestGuard:
    """Checks requests before the app sees them. port: the one that the server listens on."""

    def __init__(self, app: ASGIApp, cfg: DemoConfig, port: int) -> None:
        self._app, self._cfg, self._port = app, cfg, port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
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
        elif scope["path"].startswith(WITH_TOKEN) and not has_token(headers, self._cfg.token):
            text = "the token is missing or not the one this server was started with (demo.token)"
            answer = JSONResponse({"code": "token", "text": text}, 401, {"WWW-Authenticate": "Bearer"})
        else:
            return await self._app(scope, receive, sending)
        await answer(scope, receive, sending)

    def _refusal(self, headers: Headers) -> str:
        """Returns why a request is refused because of its Host or Origin, or "". A request without an Origin was not sent
        by a page
        in a browser."""
        host, origin = headers.get("host", ""), headers.get("origin")
        ours = {urlsplit(o).netloc for o in self._cfg.origins}
        if is_loopback(self._cfg.host) and host not in ours and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            text = f"Host {host!r} is not a name of this server"
            return f"{text}; use http://127.0.0.1:{self._port}, or allow it with demo.origins"
        if origin is None or origin in self._cfg.origins:
            return ""
        source = urlsplit(origin)
        if source.scheme in ("http", "https") and (source.netloc == host or self._is_local(source.netloc)):
            return ""
        return f"Origin {origin!r} is not a page of this server; open its own page, or allow it with demo.origins"

    def _is_local(self, netloc: str) -> bool:
        """Tells whether it is a loopback name with the served port."""
        name, _, port = netloc.rpartition(":")
        return is_loopback(name) and port == str(self._port)

    def _cookie(self, scope: Scope) -> dict[str, str]:
        """Returns the header that sets the cookie, if the page was opened with the right token in its address."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not self._cfg.token or not tokens_match(given, self._cfg.token):
            return {}
        return {"Set-Cookie": f"{COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/"}


def has_token(headers: Headers, token: str) -> bool:
    """Tells whether a request carries the token, as a bearer or a cookie. token: "" if none is needed."""
    if not token:
        return True
    sort, _, given = headers.get("authorization", "").partition(" ")
    if sort.lower() != "bearer":
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        given = cookie.value if cookie else ""
    return tokens_match(given.strip(), token)


def tokens_match(given: str, token: str) -> bool:
    """Compares tokens in constant time."""
    return hmac.compare_digest(given.encode(), token.encode())
