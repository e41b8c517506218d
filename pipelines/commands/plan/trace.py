"""Counts FLOPs and memory without computing: operations run on torch's meta device, which tracks shapes without values.

The training code itself is counted, so that no second description of it can become outdated. FLOPs are those of
torch.utils.flop_counter (2 per multiply-add, matrix products and convolutions only). Memory is that of tensors on the
device; what a library allocates inside a kernel is not counted. Code that reads a value gets an arbitrary one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
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
    """The cost of one computation.

    flops: its FLOPs. peak: the most bytes of live tensors on the device, without those that existed before. passes: how
    often the first layer of a trained model ran forwards and backwards, which is how often ZeRO 3 gathers the weights;
    a recomputation gathers nothing. frozen_passes, frozen_peak: calls of a frozen model, and the most bytes until the last.
    """

    flops: float = 0.0
    peak: float = 0.0
    passes: float = 0.0
    frozen_passes: float = 0.0
    frozen_peak: float = 0.0

    def at(self, deeper: Cost, layers: float) -> Cost:
        """Returns the cost with `layers` more layers, extrapolated linearly. deeper: the cost with one more layer."""
        return Cost(*(a + layers * (b - a) for a, b in zip(astuple(self), astuple(deeper), strict=True)))


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
        self.alive, self.peak = 0, 0.0
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
    """A Counter for code that runs on the meta device.

    It caches the layouts of results, because torch computes many shapes in Python and equal layers repeat them. Tensors
    on the CPU (random numbers, indices) are not counted. A value that is read is 1, or False; a copy to the CPU is not
    initialised. quantiles: quantiles in [0, 1) of the scalar random numbers in their order, the last one for all others.
    """

    def __init__(self, quantiles: Sequence[float] = (0.5,)) -> None:
        super().__init__()
        self._quantiles = list(quantiles)

    def spend(self, cost: Cost) -> None:
        """Adds a computation that was counted before."""
        self.flops += cost.flops
        self.peak = max(self.peak, self.alive + cost.peak)

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type == "meta":
            super()._add(storage)

    def _run(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, float]:
        special = _SPECIAL.get(func._overloadpacket)
        made = None if special is None else special(self, args, kwargs)
        if made is not None:
            return made, 0.0
        if func._schema.is_mutable or not all(_makes(func)) or func._overloadpacket is aten.index:
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

    def draw(self) -> float:
        """Returns the quantile of the next scalar random number."""
        return self._quantiles.pop(0) if len(self._quantiles) > 1 else self._quantiles[0]


def _read_value(counter: MetaCounter, args: Any, kwargs: Any) -> Any:
    return (args[0].dtype != torch.bool) * 1 if args[0].is_meta else None


def _copy_to_cpu(counter: MetaCounter, args: Any, kwargs: Any) -> Tensor | None:
    device = kwargs.get("device")
    if not args[0].is_meta or device is None or device.type != "cpu":
        return None
    return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)


def _uniform(counter: MetaCounter, args: Any, kwargs: Any) -> Tensor | None:
    return None if len(args[0]) else torch.tensor(counter.draw())


def _integer(counter: MetaCounter, args: Any, kwargs: Any) -> Tensor | None:
    low, high, size = args[:3] if isinstance(args[1], int) else (0, *args[:2])
    return None if len(size) else torch.tensor(low + int(counter.draw() * (high - low)))


def _normal(counter: MetaCounter, args: Any, kwargs: Any) -> Tensor:
    return torch.empty(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))


_SPECIAL: dict[Any, Callable[[MetaCounter, Any, Any], Any]] = {
    aten._local_scalar_dense: _read_value,
    aten._to_copy: _copy_to_cpu,
    aten.rand: _uniform,
    aten.randint: _integer,
    aten.randn: _normal,  # the values are not used, and drawing them takes seconds
}


def _looks(value: Any) -> Any:
    """Returns a hashable key with everything on which the layout of a result may depend."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(map(_looks, value))
    return type(value), value


def count(work: Callable[[], object], quantiles: Sequence[float] = (0.5,)) -> Cost:
    """Returns the cost of `work`, which must run on the meta device. Its return value counts as live until the end."""
    counter = MetaCounter(quantiles)
    with counter:
        kept = work()
    del kept
    return Cost(counter.flops, counter.peak)
