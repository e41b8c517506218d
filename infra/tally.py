"""Progress of several operators, counted in a Ray actor. A file of its own, so that the actor need not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Counts:
    """What one operator has met: items that came in, were done, and came to nothing; and the seconds of work on them."""

    met: int = 0
    done: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass
class Tally:
    """Counts of all operators, kept in an actor of its own. Lost with it they begin anew: they are for people only."""

    operators: int
    counts: list[Counts] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [Counts() for _ in range(self.operators)]

    def add(self, operator: int, failed: bool, next_items: int, seconds: float) -> None:
        self.counts[operator].seconds += seconds
        self.counts[operator].done += not failed
        self.counts[operator].failed += failed
        if operator + 1 < self.operators:
            self.counts[operator + 1].met += next_items

    def read(self) -> list[Counts]:
        return self.counts
