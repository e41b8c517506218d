"""Counting without computing: operations are sent through torch's meta device, which knows shapes and no values.

What is counted is the code that trains, so there is no second description of the model that could go stale. FLOPs are those of
torch.utils.flop_counter (2 a multiplication, matrix products and convolutions only). Memory is that of tensors: what a
library allocates inside a kernel is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}


@dataclass(frozen=True)
class Cost:
    """peak: most bytes of tensors alive at once, other than those that were there before."""

    flops: float
    peak: float

    def at(self, deeper: Cost, layers: float) -> Cost:
        """The cost so many layers further, `deeper` being the cost one layer further: layers are alike."""
        return Cost(self.flops + layers * (deeper.flops - self.flops), self.peak + layers * (deeper.peak - self.peak))


class _Held(weakref.ref[torch.UntypedStorage]):
    """A storage that is counted; cheaper than weakref.finalize, of which there would be one a tensor."""

    __slots__ = ("address", "size")
    address: int
    size: int


class Counter(TorchDispatchMode):
    """Counts the operations run under it. A tensor counts from the operation that makes its storage until that is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0
        self.alive = self.peak = 0
        self._alive: dict[int, _Held] = {}  # by address of the storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for result, new in zip(out if isinstance(out, tuple) else (out,), _makes(func), strict=False):
            for tensor in (result if isinstance(result, list) else (result,)) if new else ():
                if isinstance(tensor, Tensor):
                    self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._alive:
            return
        held = self._alive[address] = _Held(storage, self._drop)
        held.address, held.size = address, storage.nbytes()
        self.alive += held.size
        self.peak = max(self.peak, self.alive)

    def _drop(self, held: _Held) -> None:
        del self._alive[held.address]
        self.alive -= held.size


@lru_cache(maxsize=4096)
def _makes(func: Any) -> tuple[bool, ...]:
    """For every result of an operation whether it is a tensor of its own, and no view of an argument or an argument itself."""
    view = func._overloadpacket is aten._unsafe_view  # whose signature does not say so
    return tuple(r.alias_info is None and not view for r in func._schema.returns)


def count(work: Callable[[], object]) -> Cost:
    """Runs `work` and counts it; on the meta device nothing is computed. What it returns is alive to the end."""
    counter = Counter()
    with counter:
        kept = work()
    del kept
    return Cost(counter.flops, counter.peak)
