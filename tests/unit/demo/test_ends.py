"""Ends of sessions, of every kind, after which nothing is left; and clients that are too many or too silent."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Awaitable, Callable

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from demo.client import Client
from demo.server import protocol as wire
from tests.unit.demo.fakes import WAIT_SECONDS
from tests.unit.demo.scenes import STATES, close_code, is_free, meet, quick, refusal, to_run, vanish
from tests.unit.demo.serving import Served, serving


@pytest.mark.slow
def test_only_one_chunk_is_ever_unacknowledged_and_silence_ends_it():
    async def scene(served: Served) -> int | None:
        async with Client(served.url, acknowledges=False) as client:
            await client.enter()
            await client.start("moss")
            await client.chunk()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.next(), 0.3)
            served.set_idle_seconds(0.2)
            while True:  # it sends, but never acknowledges
                try:
                    await client.control()
                except ConnectionClosed:
                    return await close_code(client)
                await asyncio.sleep(0.02)

    with serving(player := quick()) as served:
        assert meet(scene(served)) == wire.IDLE
        is_free(served, player)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["welcomed", "paused"])
def test_a_silent_session_ends(state):
    async def scene(served: Served) -> int | None:
        async with Client(served.url) as client:
            await client.enter()
            if state == "paused":
                await client.start("moss")
                await client.send(wire.Pause())
                await client.expect(wire.Paused)
            served.set_idle_seconds(0.2)
            return await close_code(client)

    with serving(player := quick()) as served:
        assert meet(scene(served)) == wire.IDLE
        is_free(served, player)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_who_vanishes_frees_everything(state: Callable[[Client], Awaitable[None]]):
    async def scene(url: str) -> None:
        async with Client(url) as client:
            await state(client)
            vanish(client)

    with serving(player := quick(seconds=0.1)) as served:
        meet(scene(served.url))
        is_free(served, player)


@pytest.mark.slow
def test_who_vanishes_from_the_queue_or_in_the_middle_of_a_chunk_does_too():
    async def scene(url: str) -> None:
        async with Client(url) as first, Client(url) as second:
            await to_run(first)
            await second.expect(wire.Queued)
            vanish(second)
            await asyncio.sleep(0.1)
            await first.chunk()
            vanish(first)

    with serving(player := quick(seconds=0.2)) as served:
        meet(scene(served.url))
        is_free(served, player)
        assert player.opened[0].closed


@pytest.mark.slow
def test_after_a_hundred_disconnects_nothing_is_left():
    async def once(url: str, i: int) -> None:
        async with Client(url) as client:
            await STATES[i % len(STATES)](client)
            if i % 3 == 0:
                async with Client(url) as other:
                    await other.expect(wire.Queued)
                    vanish(other)
            vanish(client)

    async def scene(url: str, count: int) -> None:
        for i in range(count):
            await once(url, i)

    with serving(player := quick(seconds=0.003)) as served:
        meet(scene(served.url, 10))
        is_free(served, player)
        player.opened.clear()
        gc.collect()
        before, threads = psutil.Process().memory_info().rss, threading.active_count()
        meet(scene(served.url, 100))
        is_free(served, player)
        player.opened.clear()
        gc.collect()
        assert psutil.Process().memory_info().rss < 1.05 * before
        assert threading.active_count() <= threads


def test_fifty_sockets():
    async def scene(served: Served) -> None:
        sockets = [Client(served.url) for _ in range(50)]
        for client in sockets:
            await client.__aenter__()
        codes = []
        for client in sockets[8:]:
            assert (await refusal(client)).partition(":")[0] in ("too_many_sockets", "full")
            codes.append(await close_code(client))
        assert codes == [wire.FULL] * 42
        await to_run(sockets[0])  # who is in plays on
        await sockets[1].expect(wire.Queued)
        for client in sockets:
            vanish(client)

    with serving(player := quick(), max_sockets=10, queue_length=7) as served:
        meet(scene(served))
        is_free(served, player)


def test_a_message_that_is_too_large_is_not_read():
    async def scene(url: str) -> int | None:
        async with Client(url) as client:
            await client.enter()
            await client.socket.send(bytes(300_000))
            return await close_code(client)

    with serving(player := quick(), max_message_bytes=200_000) as served:
        assert meet(scene(served.url)) == 1009
        is_free(served, player)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [0, 2])
def test_a_fault_of_the_model_is_reported_and_survived(fault, caplog):
    async def scene(url: str) -> int | None:
        async with Client(url) as client:
            await client.enter()
            await client.start("moss")
            assert f"fault: RuntimeError: planted fault at chunk {fault}" in await refusal(client)
            return await close_code(client)

    async def well(url: str) -> None:
        async with Client(url) as client:
            await to_run(client)

    with serving(player := quick(fault=fault)) as served, caplog.at_level(logging.ERROR):
        assert meet(scene(served.url)) == wire.FAULT
        assert "planted fault" in caplog.text and "next_chunk" in caplog.text, "no traceback in the log"
        is_free(served, player)
        player.fault = -1
        meet(well(served.url))
        is_free(served, player)


def test_when_the_server_ends_sessions_are_notified():
    codes: list[int | None] = []

    async def scene(url: str) -> None:
        async with Client(url) as client, Client(url) as waiting:
            await to_run(client)
            await waiting.expect(wire.Queued)
            ready.set()
            codes.append(await close_code(client))
            codes.append(await close_code(waiting))

    ready = threading.Event()
    player = quick()
    with serving(player) as served:
        thread = threading.Thread(target=lambda: meet(scene(served.url)))
        thread.start()
        assert ready.wait(WAIT_SECONDS)
    thread.join(WAIT_SECONDS)
    assert codes == [wire.GOING, wire.GOING]
    assert player.alive == 0
