"""Recomputes layers in the backward pass without computing their attention again.

torch's own selective checkpointing expects the same operations in the forward pass and in the recomputation. DeepSpeed's
ZeRO 3 gathers weights in between, at different places in the two, so the operations differ; here only attention counts.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from msmodel.attention import is_attention


class _Keep(TorchDispatchMode):
    """Stores what every attention in its `with` block returns, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.results: deque[Any] = deque()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if is_attention(func):
            self.results.append(tree_map_only(Tensor, Tensor.detach, out))
        return out


class _Reuse(TorchDispatchMode):
    """Returns stored results, in order and each once, in place of computing attention."""

    def __init__(self, results: deque[Any]) -> None:
        super().__init__()
        self.results = results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.results.popleft() if is_attention(func) else func(*args, **(kwargs or {}))


def attention_kept() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Returns the contexts of a forward pass and of its one recomputation, for torch.utils.checkpoint's context_fn.

    The recomputation calls attention in the same order and gets the results of the forward pass, bit for bit.
    """
    keep = _Keep()
    return keep, _Reuse(keep.results)
