"""Counts what DeepSpeed's ZeRO 3 gathers while the real methods train (test_gathers.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GATHER = "_PartitionedParameterCoordinator__all_gather_params_"


@dataclass
class Gathers:
    """What each sharded module's coordinator did, in the order in which the modules were sharded.

    elements: of the weights that were gathered. invalidated: how often the recorded order of calls, by which weights are
    prefetched, did not hold. Both grow; `mark` keeps a copy.
    """

    elements: list[int] = field(default_factory=list)
    invalidated: list[int] = field(default_factory=list)
    marks: list[dict[str, list[int]]] = field(default_factory=list)
    _known: list[Any] = field(default_factory=list)

    def place(self, coordinator: Any) -> int:
        if coordinator not in self._known:
            self._known.append(coordinator)
            self.elements.append(0)
            self.invalidated.append(0)
        return self._known.index(coordinator)

    def mark(self) -> None:
        self.marks.append({"elements": list(self.elements), "invalidated": list(self.invalidated)})

    def forget(self) -> None:
        for kept in (self.elements, self.invalidated, self.marks, self._known):
            kept.clear()

    def watch(self) -> None:
        """Counts in every coordinator of this process. DeepSpeed must be imported before."""
        from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator
        from deepspeed.runtime.zero.partitioned_param_coordinator import ZeroParamStatus

        start, gather, invalidate = Coordinator.__init__, getattr(Coordinator, GATHER), Coordinator._invalidate_trace

        def counted_start(coordinator, *args, **kwargs):
            start(coordinator, *args, **kwargs)
            self.place(coordinator)

        def counted_gather(coordinator, params, *args, **kwargs):
            absent = sum(p.ds_numel for p in params if p.ds_status == ZeroParamStatus.NOT_AVAILABLE)
            self.elements[self.place(coordinator)] += absent
            gather(coordinator, params, *args, **kwargs)

        def counted_invalidate(coordinator):
            self.invalidated[self.place(coordinator)] += 1
            invalidate(coordinator)

        Coordinator.__init__ = counted_start
        Coordinator._invalidate_trace = counted_invalidate
        setattr(Coordinator, GATHER, counted_gather)
