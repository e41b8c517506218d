"""One training on two sets of clips, one after the other, with an exact position in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from stages.train.method import Loader


class LoaderThenLoader:
    """method.Loader: the batches of `first` for `steps` steps of micro_steps batches each, then those of `then`, for ever."""

    def __init__(self, first: Loader, then: Loader, steps: int, micro_steps: int) -> None:
        self.first, self.then, self.steps, self.micro_steps = first, then, steps, micro_steps
        self._taken = 0  # batches yielded on this rank

    def __iter__(self) -> Iterator[Any]:
        for batches in (islice(self.first, max(0, self.steps * self.micro_steps - self._taken)), self.then):
            for batch in batches:
                self._taken += 1
                yield batch

    def metrics(self) -> dict[str, float]:
        """Their sums."""
        then = self.then.metrics()
        return {name: value + then[name] for name, value in self.first.metrics().items()}

    def state_dict(self) -> dict[str, Any]:
        """At the end of a step; the same for any number of ranks."""
        return {
            "steps": self._taken // self.micro_steps,
            "first": self.first.state_dict(),
            "then": self.then.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._taken = int(state["steps"]) * self.micro_steps
        self.first.load_state_dict(state["first"])
        self.then.load_state_dict(state["then"])
