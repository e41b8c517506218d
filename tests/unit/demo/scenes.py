"""Scenes between clients and the served fake: how they are played, and states that a client can be brought to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from websockets.exceptions import ConnectionClosed

from demo.client import Client, DemoError
from demo.server import protocol as wire
from tests.unit.demo.fakes import WAIT_SECONDS, FakePlayer
from tests.unit.demo.serving import QUICK, Served, eventually


def quick(**settings: Any) -> FakePlayer:
    return FakePlayer(QUICK, **{"seconds": 0.01, **settings})


def meet(scene: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scene, WAIT_SECONDS))


def vanish(client: Client) -> None:
    """As when a cable is pulled: no goodbye."""
    client.socket.transport.abort()


async def close_code(client: Client) -> int | None:
    """Hears the rest, and how the server closed."""
    try:
        while True:
            await client.socket.recv()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


async def refusal(client: Client) -> str:
    """The next error."""
    try:
        while True:
            await client.next()
    except DemoError as error:
        return str(error)


def is_free(served: Served, player: FakePlayer) -> None:
    """No session, no socket, no performance, and the server's own tasks only."""
    state = served.state
    eventually(lambda: not state.connections and not state.lobby.sessions and not state.lobby.queued)
    eventually(lambda: player.alive == 0)
    eventually(lambda: len(asyncio.all_tasks(served.loop)) <= 2)  # uvicorn's, and the lifespan
    assert sum(t.name.startswith("player") for t in threading.enumerate()) <= 1
    assert served.json("/health") == {"status": "ok", "sessions": 0, "queued": 0}


async def to_hello(client: Client) -> None:
    await asyncio.sleep(0)


async def to_start(client: Client) -> None:
    await client.enter()
    await client.start("moss")


async def to_run(client: Client) -> None:
    await to_start(client)
    await client.chunk()
    await client.chunk()


async def to_pause(client: Client) -> None:
    await to_run(client)
    await client.send(wire.Pause())
    await client.expect(wire.Paused)


async def to_stop(client: Client) -> None:
    await to_run(client)
    await client.send(wire.Stop())
    await client.expect(wire.Stopped)


STATES = (to_hello, to_start, to_run, to_pause, to_stop)
