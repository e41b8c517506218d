"""First come, first served; a place is free at once."""

from __future__ import annotations

import asyncio

import pytest

from demo.server.lobby import Lobby, LobbyFull


def test_the_order_is_kept_and_the_rest_refused():
    lobby = Lobby(places=2)
    first, second, third = (lobby.join() for _ in range(3))
    assert [t.position for t in (first, second, third)] == [0, 1, 2]
    with pytest.raises(LobbyFull):
        lobby.join()
    lobby.leave(second)
    assert third.position == 1
    lobby.leave(first)
    assert third.position == 0
    assert (lobby.sessions, lobby.queued) == (1, 0)
    lobby.leave(third)
    assert (lobby.sessions, lobby.queued) == (0, 0)


def test_those_who_wait_are_notified():
    async def scene() -> list[int]:
        lobby = Lobby(places=2)
        first, second, third = (lobby.join() for _ in range(3))
        seen = []

        async def wait() -> None:
            while third.position:
                await third.moved()
                seen.append(third.position)

        waiting = asyncio.create_task(wait())
        for ticket in (first, second):
            await asyncio.sleep(0)
            lobby.leave(ticket)
            await asyncio.sleep(0)
        await asyncio.wait_for(waiting, 300)
        return seen

    assert asyncio.run(scene()) == [1, 0]


def test_without_places_nobody_waits():
    lobby = Lobby(places=0)
    lobby.join()
    with pytest.raises(LobbyFull):
        lobby.join()
