"""Decides when the next chunk begins, so that it arrives shortly before the last one has been shown.

All times are seconds of one monotonic clock. An acknowledgement means that a chunk's first frame is on the screen now, so the
chunk has been shown one play time later. The cost of a chunk is the time from its beginning to its acknowledgement, without
the time it waited at the client: generation, encoding and the network, both ways. The next chunk begins before it is needed
by its expected cost and a margin.
"""

from __future__ import annotations

from collections import deque

REMEMBERED = 16  # chunks whose costs predict the next one's
MAX_RATE = 1.005  # times the clip's fps that a client may ask for; the excess covers clocks that differ


class Pacer:
    """Times one chunk after another: begun, sent, acknowledged. margin: seconds by which a chunk should be early."""

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self._costs: deque[float] = deque(maxlen=REMEMBERED)
        self.restart()

    def restart(self) -> None:
        """Forgets what is being shown, so that the next chunk may begin at once."""
        self._begun = self._sent = self._seconds = 0.0
        self._ends = self._earliest = float("-inf")

    @property
    def cost(self) -> float:
        """Seconds that the next chunk is expected to cost: the second largest of the last costs, so that one outlier does not
        count; the largest while there are few."""
        ranked = sorted(self._costs, reverse=True)
        if not ranked:
            return 0.0
        return ranked[1] if len(ranked) >= REMEMBERED // 2 else ranked[0]

    @property
    def due(self) -> float:
        """The time at which the next chunk should begin, once the last one is acknowledged."""
        return self._ends - self.cost - self.margin

    def sent(self, begun: float, sent: float, seconds: float) -> None:
        """Notes that a chunk, begun at `begun` and playing for `seconds`, was sent."""
        self._begun, self._sent, self._seconds = begun, sent, seconds

    def acknowledged(self, now: float, waited: float, measured: bool = True) -> None:
        """Notes that the client shows the chunk, `waited` seconds after it arrived there. measured: False where a pause makes
        the time meaningless. A client that acknowledges faster than the clip's fps, because it shows nothing, is slowed down to
        the fps."""
        if measured:
            self._costs.append(now - self._begun - min(waited, now - self._sent))
        shown = max(now, self._earliest)
        self._ends = shown + self._seconds
        self._earliest = max(self._earliest, now - self.margin) + self._seconds / MAX_RATE
