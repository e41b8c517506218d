"""Counting without computing: operations are sent through torch's meta device, which knows shapes and no values.

What is counted is the code that trains, so there is no second description of the model that could go stale. FLOPs are those of
torch.utils.flop_counter (2 a multiplication, matrix products and convolutions only). Memory is that of tensors: what a
library allocates inside a kernel is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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


class Counter(TorchDispatchMode):
    """Counts the operations run under it. A tensor counts from the operation that makes its storage until that is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0
        self.alive = self.peak = 0
        self._sizes: dict[int, int] = {}  # by address of the storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        made = {s._cdata: s for s in _storages((out,))}
        if made.keys() - self._sizes.keys():
            given = {s._cdata for s in _storages((args, kwargs))}
            for address in made.keys() - self._sizes.keys() - given:
                self._add(address, made[address])
        return out

    def _add(self, address: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._sizes[address] = size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, address)

    def _drop(self, address: int) -> None:
        self.alive -= self._sizes.pop(address, 0)


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor))


def count(work: Callable[[], object]) -> Cost:
    """Runs `work` and counts it; on the meta device nothing is computed. What it returns is alive to the end."""
    counter = Counter()
    with counter:
        kept = work()
    del kept
    return Cost(counter.flops, counter.peak)
