"""The queue: one session at a time, the others wait in the order in which they came."""

from __future__ import annotations

import asyncio


class LobbyFull(Exception):
    """Raised when the queue has no free place."""


class Ticket:
    """A place in the queue. position: 0 has its turn, 1 is next."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._moved = asyncio.Event()

    async def moved(self) -> None:
        """Returns once the position has changed since the last call."""
        await self._moved.wait()
        self._moved.clear()

    def move(self, position: int) -> None:
        """Sets the position, and wakes `moved` if it is another one."""
        if position != self.position:
            self.position = position
            self._moved.set()


class Lobby:
    """Holds the tickets in order. places: how many may wait behind the one whose turn it is."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._tickets: list[Ticket] = []

    @property
    def sessions(self) -> int:
        return min(1, len(self._tickets))

    @property
    def queued(self) -> int:
        return max(0, len(self._tickets) - 1)

    def join(self) -> Ticket:
        """Takes the last place. Raises LobbyFull where none is free."""
        if len(self._tickets) > self._places:
            raise LobbyFull
        self._tickets.append(Ticket(len(self._tickets)))
        return self._tickets[-1]

    def leave(self, ticket: Ticket) -> None:
        """Gives a place up. Those behind it move up at once."""
        self._tickets.remove(ticket)
        for position, other in enumerate(self._tickets):
            other.move(position)
