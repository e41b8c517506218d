"""When the next chunk must begin, so that it arrives shortly before the last one has been shown.

All times are seconds of one monotonic clock. An acknowledgement says that a chunk's first frame is on the screen now, so the
chunk ends its play time later. What lies between a chunk's beginning and its acknowledgement, other than waiting at the client,
is its cost: generation, encoding and the network, both ways. The next begins its likely cost and a margin before it is needed.
"""

from __future__ import annotations

from collections import deque

REMEMBERED = 16  # chunks whose costs tell the next one's
FASTEST = 1.005  # of the clip's fps that a client may ask for, which covers clocks that differ


class Pacer:
    """One chunk at a time: begun, sent, acknowledged. margin: seconds that a chunk should be early."""

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self._costs: deque[float] = deque(maxlen=REMEMBERED)
        self.restart()

    def restart(self) -> None:
        """What is shown no longer matters: the next chunk may begin at once."""
        self._begun = self._sent = self._seconds = 0.0
        self._ends = self._earliest = float("-inf")

    @property
    def cost(self) -> float:
        """The likely cost of the next chunk: the largest of the last ones, but for one that was an accident."""
        ranked = sorted(self._costs, reverse=True)
        if not ranked:
            return 0.0
        return ranked[1] if len(ranked) >= REMEMBERED // 2 else ranked[0]

    @property
    def due(self) -> float:
        """When the next chunk should begin; meant for when the last one is acknowledged."""
        return self._ends - self.cost - self.margin

    def sent(self, begun: float, sent: float, seconds: float) -> None:
        """A chunk that plays for so many seconds has left."""
        self._begun, self._sent, self._seconds = begun, sent, seconds

    def acknowledged(self, now: float, waited: float, measured: bool = True) -> None:
        """It is shown, after it had waited so long at the client. measured: False where a pause makes that no cost. A client
        that acknowledges sooner than the clip's fps allows, because it shows nothing, is held to the fps."""
        if measured:
            self._costs.append(now - self._begun - min(waited, now - self._sent))
        shown = max(now, self._earliest)
        self._ends = shown + self._seconds
        self._earliest = max(self._earliest, now - self.margin) + self._seconds / FASTEST
