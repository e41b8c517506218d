"""Counts FLOPs and memory without computing: operations run on torch's meta device, which tracks shapes without values.

The training code itself is counted, so that no second description of the model can become outdated. FLOPs are those of
torch.utils.flop_counter (2 per multiply-add, matrix products and convolutions only). Memory is that of tensors; what a
library allocates inside a kernel is not counted.
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
    """The cost of one computation. flops: its FLOPs. peak: the most bytes of live tensors, without those that existed
    before."""

    flops: float
    peak: float

    def at(self, deeper: Cost, layers: float) -> Cost:
        """Returns the cost with `layers` more layers, extrapolated linearly. deeper: the cost with one more layer."""
        return Cost(self.flops + layers * (deeper.flops - self.flops), self.peak + layers * (deeper.peak - self.peak))


class _Held(weakref.ref[torch.UntypedStorage]):
    """A weak reference to a counted storage with its address and size; cheaper than one weakref.finalize per tensor."""

    __slots__ = ("address", "size")
    address: int
    size: int


class Counter(TorchDispatchMode):
    """Counts the FLOPs and live bytes of the operations in its `with` block. A tensor counts from the operation that
    makes its storage until the storage is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0
        self.alive = self.peak = 0
        self._alive: dict[int, _Held] = {}  # by address of the storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, flops = self._run(func, args, kwargs or {})
        self.flops += flops
        for result, new in zip(out if isinstance(out, tuple) else (out,), _makes(func), strict=False):
            for tensor in (result if isinstance(result, list) else (result,)) if new else ():
                if isinstance(tensor, Tensor):
                    self._add(tensor.untyped_storage())
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, float]:
        """Runs one operation and returns (result, FLOPs)."""
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        return out, formula(*args, **kwargs, out_val=out) if formula is not None else 0.0

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
    """Returns, for every result of an operation, whether it is a new tensor: neither an argument nor a view of one."""
    view = func._overloadpacket is aten._unsafe_view  # its schema does not declare the alias
    return tuple(r.alias_info is None and not view for r in func._schema.returns)


_Known = tuple[bool, list[tuple[Any, ...] | None], float]  # whether there are several results, their layouts, FLOPs
_KNOWN: dict[Any, _Known] = {}


class MetaCounter(Counter):
    """A Counter for the meta device that caches the layouts of results. torch computes many shapes in Python, and equal
    layers repeat them."""

    def _run(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, float]:
        if func._schema.is_mutable or not all(_makes(func)):
            return super()._run(func, args, kwargs)
        key = (func, _looks(args), _looks(tuple(kwargs.items())))
        known = _KNOWN.get(key)
        if known is not None:
            several, layouts, flops = known
            made = [None if x is None else torch.empty_strided(x[0], x[1], dtype=x[2], device="meta") for x in layouts]
            return (tuple(made) if several else made[0]), flops
        out, flops = super()._run(func, args, kwargs)
        results = out if isinstance(out, tuple) else (out,)
        if results and all(x is None or (isinstance(x, Tensor) and x.is_meta) for x in results):
            layouts = [None if x is None else (x.shape, x.stride(), x.dtype) for x in results]
            _KNOWN[key] = (isinstance(out, tuple), layouts, flops)
        return out, flops


def _looks(value: Any) -> Any:
    """Returns a hashable key with everything on which the layout of a result may depend."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(map(_looks, value))
    return type(value), value


def count(work: Callable[[], object]) -> Cost:
    """Returns the cost of `work`, which must run on the meta device. Its return value counts as live until the end."""
    counter = MetaCounter()
    with counter:
        kept = work()
    del kept
    return Cost(counter.flops, counter.peak)
