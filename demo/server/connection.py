"""One WebSocket: introduced, queued, then the user of a session; and the end of it, whatever the reason."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from typing import TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from demo.server import protocol as wire
from demo.server.guard import (
    knows_token,
    same,
)
from demo.server.lobby import Full
from demo.server.session import Session
from demo.server.studio import Studio

log = logging.getLogger(__name__)
CLOSING_SECONDS = 2.0  # for what is sent last
E = TypeVar("E", bound=BaseException)


class Ended(Exception):
    """The connection ends with this close code; 0 where the client is gone already. error: a code for the client, or ""."""

    def __init__(self, code: int, text: str = "", error: str = "") -> None:
        self.code, self.text, self.error = code, text, error
        super().__init__(text)


class Connection:
    """serve() is its whole life. Three tasks: one hears, one does, one watches the clock; the end of one is that of all."""

    def __init__(self, studio: Studio, socket: WebSocket) -> None:
        self._studio, self._socket, self._cfg = studio, socket, studio.cfg
        self._opened = self._heard_at = time.monotonic()
        self._greeted = asyncio.Event()
        self._session: Session | None = None
        self._ending: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    def end(self, code: int, text: str) -> None:
        """From outside."""
        if not self._ending.done():
            self._ending.set_result(Ended(code, text))

    async def serve(self) -> None:
        """Accepts the socket, and has closed it at the end. Nothing of it is left then but what the worker still finishes."""
        await self._socket.accept()
        studio = self._studio
        if len(studio.connections) >= self._cfg.max_sockets:
            text = f"{self._cfg.max_sockets} sockets are open already; try again later"
            return await self._close(Ended(wire.FULL, text, "too_many_sockets"))
        studio.connections.add(self)
        try:
            await self._close(await self._live())
        finally:
            studio.connections.discard(self)

    async def _live(self) -> Ended:
        """Why it ended."""
        ended = Ended(wire.LEFT)
        try:
            async with asyncio.TaskGroup() as group:
                for part in (self._hear(), self._do(), self._watch()):
                    group.create_task(part)
        except* Ended as several:
            ended = _first(several)
        except* Exception as faults:
            log.exception("a session failed", exc_info=faults)
            cause = _first(faults)
            ended = Ended(wire.FAULT, f"{type(cause).__name__}: {cause}; the server's log has the rest", "fault")
        return ended

    async def _close(self, ended: Ended) -> None:
        self._studio.meters.closed.labels(str(ended.code)).inc()
        if not ended.code:
            return
        try:
            async with asyncio.timeout(CLOSING_SECONDS):
                if ended.error:
                    await self._error(ended.error, ended.text, fatal=True)
                await self._socket.close(ended.code, ended.text.encode()[:120].decode(errors="ignore"))
        except (WebSocketDisconnect, TimeoutError, RuntimeError) as error:
            log.debug("a socket was gone before it could be closed: %r", error)

    async def _send(self, message: wire.Message, payload: Sequence[bytes] = ()) -> None:
        try:
            await self._socket.send_bytes(wire.encode(message, payload))
        except WebSocketDisconnect:
            raise Ended(0) from None

    async def _error(self, code: str, text: str, fatal: bool) -> None:
        self._studio.meters.errors.labels(code).inc()
        await self._socket.send_bytes(wire.encode(wire.Error(code=code, text=text, fatal=fatal)))

    async def _hear(self) -> None:
        strikes = 0
        while True:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                raise Ended(0)
            try:
                data = event.get("bytes")
                if data is None:
                    raise wire.ProtocolError("malformed", "a text message; there are binary ones only")
                self._take(*wire.decode(data, wire.FROM_CLIENT))
            except wire.ProtocolError as error:
                strikes += 1
                if strikes >= self._cfg.strikes:
                    raise Ended(wire.RULES, f"{error} ({strikes} messages against the rules)", error.code) from None
                self._studio.meters.errors.labels(error.code).inc()
                await self._send(wire.Error(code=error.code, text=str(error), fatal=False))
            self._heard_at = time.monotonic()

    def _take(self, message: wire.Message, payload: bytes) -> None:
        if isinstance(message, wire.Hello):
            if self._greeted.is_set():
                raise wire.ProtocolError("order", "Hello: it was said already")
            if message.protocol != wire.VERSION:
                raise wire.ProtocolError(
                    "version", f"Hello.protocol: {message.protocol}; this server speaks {wire.VERSION}"
                )
            if not (same(message.token, self._cfg.token) or knows_token(self._socket.headers, self._cfg.token)):
                raise Ended(wire.RULES, "Hello.token: not the one this server was started with (demo.token)", "token")
            self._greeted.set()
        elif not self._greeted.is_set():
            raise wire.ProtocolError("order", f"{type(message).__name__}: hello comes first")
        elif self._session is None:
            raise wire.ProtocolError("order", f"{type(message).__name__}: others are before you; wait for welcome")
        else:
            self._session.take(message, payload)

    async def _do(self) -> None:
        try:
            async with asyncio.timeout(self._cfg.hello_seconds):
                await self._greeted.wait()
        except TimeoutError:
            raise Ended(wire.RULES, f"no hello within {self._cfg.hello_seconds:g} seconds", "order") from None
        try:
            ticket = self._studio.lobby.join()
        except Full:
            raise Ended(wire.FULL, "too many wait already; try again later", "full") from None
        try:
            while ticket.position:
                await self._send(wire.Queued(position=ticket.position))
                await ticket.moved()
            await self._studio.warmed()
            session = self._session = Session(self._studio, self._send, self._opened)
            try:
                self._heard_at = time.monotonic()
                await self._send(self._studio.welcome(secrets.token_hex(4)))
                await session.run()
            finally:
                session.close()
        finally:
            self._studio.lobby.leave(ticket)

    async def _watch(self) -> None:
        """Ends it from outside, or when a user whose turn it is has been silent or has not acknowledged for too long."""
        idle = self._cfg.idle_seconds
        while True:
            done, _ = await asyncio.wait({self._ending}, timeout=min(1.0, idle / 4))
            if done:
                raise self._ending.result()
            if self._session is None:
                continue
            if time.monotonic() - self._heard_at > idle:
                raise Ended(wire.IDLE, f"nothing was heard for {idle:g} seconds", "idle")
            if self._session.overdue > idle:
                raise Ended(wire.IDLE, f"a chunk was not acknowledged for {idle:g} seconds", "idle")


def _first(several: BaseExceptionGroup[E]) -> E:
    """One of the exceptions in a group, however deep."""
    inner = several.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
