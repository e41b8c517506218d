"""One WebSocket, from its handshake to its close: it waits in the lobby, then feeds one session."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from typing import TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from demo.server import protocol as wire
from demo.server.lobby import LobbyFull
from demo.server.request_guard import has_token, tokens_match
from demo.server.session import Session
from demo.server.state import ServerState

log = logging.getLogger(__name__)
CLOSING_SECONDS = 2.0  # time limit for the last message and the close frame
WATCH_SECONDS = 1.0  # between two checks for an idle client, at most
E = TypeVar("E", bound=BaseException)


class ConnectionEnded(Exception):
    """Ends the connection with a close code, or 0 where the client has left already. error: the code of the error message
    that is sent before, or "" for none."""

    def __init__(self, code: int, text: str = "", error: str = "") -> None:
        self.code, self.text, self.error = code, text, error
        super().__init__(text)


class Connection:
    """Serves one WebSocket. Three tasks run until one of them ends: one receives, one waits for its turn and plays, one
    watches for an idle client."""

    def __init__(self, state: ServerState, socket: WebSocket) -> None:
        self._state, self._socket = state, socket
        self._opened = self._received_at = time.monotonic()
        self._greeted = asyncio.Event()
        self._session: Session | None = None
        self._ending: asyncio.Future[ConnectionEnded] = asyncio.get_running_loop().create_future()

    def end(self, code: int, text: str) -> None:
        """Asks the connection to close its socket with this close code and text. Returns at once."""
        if not self._ending.done():
            self._ending.set_result(ConnectionEnded(code, text))

    async def serve(self) -> None:
        """Accepts the socket, serves it, and closes it. Afterwards only a job that the model thread has begun may still run."""
        await self._socket.accept()
        state, limit = self._state, self._state.cfg.max_sockets
        if len(state.connections) >= limit:
            text = f"{limit} sockets are open already (demo.max_sockets); try again later"
            return await self._close(ConnectionEnded(wire.FULL, text, "too_many_sockets"))
        state.connections.add(self)
        try:
            await self._close(await self._run())
        finally:
            state.connections.discard(self)

    async def _run(self) -> ConnectionEnded:
        """Runs the three tasks. Returns why they ended."""
        ended = ConnectionEnded(wire.LEFT)
        try:
            async with asyncio.TaskGroup() as group:
                for part in (self._receive(), self._take_turn(), self._watch()):
                    group.create_task(part)
        except* ConnectionEnded as several:
            ended = _first(several)
        except* Exception as faults:
            log.exception("a session failed", exc_info=faults)
            cause = _first(faults)
            ended = ConnectionEnded(
                wire.FAULT, f"{type(cause).__name__}: {cause}; the server's log has the rest", "fault"
            )
        return ended

    async def _close(self, ended: ConnectionEnded) -> None:
        self._state.meters.closed.labels(str(ended.code)).inc()
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
            raise ConnectionEnded(0) from None

    async def _error(self, code: str, text: str, fatal: bool) -> None:
        self._state.meters.errors.labels(code).inc()
        await self._socket.send_bytes(wire.encode(wire.Error(code=code, text=text, fatal=fatal)))

    async def _receive(self) -> None:
        """Reads messages until the client leaves, or until too many of them were invalid."""
        invalid = 0
        while True:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                raise ConnectionEnded(0)
            try:
                data = event.get("bytes")
                if data is None:
                    raise wire.ProtocolError("malformed", "a text message; only binary messages are accepted")
                self._handle(*wire.decode(data, wire.FROM_CLIENT))
            except wire.ProtocolError as error:
                invalid += 1
                if invalid >= self._state.cfg.max_invalid_messages:
                    raise ConnectionEnded(wire.RULES, f"{error} ({invalid} invalid messages)", error.code) from None
                self._state.meters.errors.labels(error.code).inc()
                await self._send(wire.Error(code=error.code, text=str(error), fatal=False))
            self._received_at = time.monotonic()

    def _handle(self, message: wire.Message, payload: bytes) -> None:
        if isinstance(message, wire.Hello):
            self._greet(message)
        elif not self._greeted.is_set():
            raise wire.ProtocolError("order", f"{type(message).__name__}: hello must be the first message")
        elif self._session is None:
            raise wire.ProtocolError("order", f"{type(message).__name__}: other users are first; wait for welcome")
        else:
            self._session.handle(message, payload)

    def _greet(self, message: wire.Hello) -> None:
        if self._greeted.is_set():
            raise wire.ProtocolError("order", "Hello: it was sent already; send it once")
        if message.protocol != wire.VERSION:
            text = f"Hello.protocol: {message.protocol}; this server speaks version {wire.VERSION}: reload the page"
            raise wire.ProtocolError("version", text)
        token = self._state.cfg.token
        if not (tokens_match(message.token, token) or has_token(self._socket.headers, token)):
            raise ConnectionEnded(
                wire.RULES, "Hello.token: not the one this server was started with (demo.token)", "token"
            )
        self._greeted.set()

    async def _take_turn(self) -> None:
        """Waits for hello and for the turn, then runs the session."""
        await self._wait_for_hello()
        try:
            ticket = self._state.lobby.join()
        except LobbyFull:
            text = "too many users are waiting already (demo.queue_length); try again later"
            raise ConnectionEnded(wire.FULL, text, "full") from None
        try:
            while ticket.position:
                await self._send(wire.Queued(position=ticket.position))
                await ticket.moved()
            await self._state.wait_until_warm()
            session = self._session = Session(self._state, self._send, self._opened)
            try:
                self._received_at = time.monotonic()
                await self._send(self._state.welcome(secrets.token_hex(4)))
                await session.run()
            finally:
                session.close()
        finally:
            self._state.lobby.leave(ticket)

    async def _wait_for_hello(self) -> None:
        seconds = self._state.cfg.hello_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._greeted.wait()
        except TimeoutError:
            raise ConnectionEnded(wire.RULES, f"no hello within {seconds:g} seconds", "order") from None

    async def _watch(self) -> None:
        """Ends the connection when the server asks for it, or when the user of the session sends nothing, or acknowledges
        nothing, for too long."""
        while True:
            idle = self._state.cfg.idle_seconds
            done, _ = await asyncio.wait({self._ending}, timeout=min(WATCH_SECONDS, idle / 4))
            if done:
                raise self._ending.result()
            if self._session is None:
                continue
            if time.monotonic() - self._received_at > idle:
                raise ConnectionEnded(wire.IDLE, f"nothing was received for {idle:g} seconds", "idle")
            if self._session.overdue > idle:
                raise ConnectionEnded(wire.IDLE, f"a chunk was not acknowledged for {idle:g} seconds", "idle")


def _first(several: BaseExceptionGroup[E]) -> E:
    """Returns one of the exceptions in a group of groups."""
    inner = several.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
