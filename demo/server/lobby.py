"""One session at a time; the others wait their turn, first come, first served."""

from __future__ import annotations

import asyncio


class Full(Exception):
    """Nobody else may wait."""


class Ticket:
    """A place in the lobby. position: 0 is in, 1 is next."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._moved = asyncio.Event()

    async def moved(self) -> None:
        """Returns when the position has changed since the last call."""
        await self._moved.wait()
        self._moved.clear()

    def move(self, position: int) -> None:
        if position != self.position:
            self.position = position
            self._moved.set()


class Lobby:
    """places: how many may wait besides the one who is in."""

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
        """Raises Full."""
        if len(self._tickets) > self._places:
            raise Full
        self._tickets.append(Ticket(len(self._tickets)))
        return self._tickets[-1]

    def leave(self, ticket: Ticket) -> None:
        """At once: those behind move up."""
        self._tickets.remove(ticket)
        for position, other in enumerate(self._tickets):
            other.move(position)
