"""Attention behind one function, and Wan's self- and cross-attention layers around it.

Parameter names are those of diffusers' WanAttention. Query and key norms are RMSNorm over the full width, before the
split into heads.

Legend: b batch, l tokens, m tokens attended to, a attention heads, d channels of one head.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class LayerKV(NamedTuple):
    """Keys and values of one layer, both (b l a d)."""

    key: Tensor
    value: Tensor

    def detach(self) -> LayerKV:
        return LayerKV(self.key.detach(), self.value.detach())

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self)


@dataclass(frozen=True)
class Kernel:
    """A kernel that computes attention.

    name: shown in logs and reports. flash: flash_attn_func of flash-attn 2 or 3; None means torch's SDPA.
    """

    name: str
    flash: Callable[..., Any] | None = None


HEAD_LIMIT, HEAD_STEP = 256, 8  # flash-attn: the most channels of a head, and what they must be a multiple of


@lru_cache(maxsize=64)
def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Returns the kernel that `attend` uses for such tensors. For torch's SDPA its name contains the reason.

    flash-attn 3 (the module flash_attn_interface) runs on Hopper (compute capability 9), flash-attn 2 (flash_attn) from
    Ampere (8) on; both take fp16 and bf16 only.
    """
    capability = _capability(device)
    if capability is None:
        return Kernel("torch SDPA (no CUDA device)")
    if dtype not in (torch.float16, torch.bfloat16):
        return Kernel(f"torch SDPA (flash-attn computes in fp16 and bf16, not {str(dtype).removeprefix('torch.')})")
    if head_dim > HEAD_LIMIT or head_dim % HEAD_STEP:
        return Kernel(f"torch SDPA (heads of {head_dim}: flash-attn takes multiples of {HEAD_STEP} up to {HEAD_LIMIT})")
    if capability[0] == 9 and (flash := _installed("flash_attn_interface")):
        return Kernel("flash-attn 3", flash)
    if capability[0] >= 8 and (flash := _installed("flash_attn")):
        return Kernel("flash-attn 2", flash)
    return Kernel(f"torch SDPA (no flash-attn is installed for compute capability {capability[0]}.{capability[1]})")


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _installed(module: str) -> Callable[..., Any] | None:
    """Returns flash_attn_func of an optional package, or None where the package is absent or cannot be loaded."""
    try:
        return import_module(module).flash_attn_func
    except ImportError:
        return None


SDPA = "aten::_scaled_dot_product_"  # how the names of torch's attention kernels begin
FLASH = re.compile(r"flash_attn(_3)?::\w*(fwd|forward)")  # the operations that flash-attn 2 and 3 register


@lru_cache(maxsize=512)
def is_attention(operation: Any) -> bool:
    """Returns whether an operation (torch._ops.OpOverload) is the forward pass of one of the kernels of `attend`."""
    name = operation.name()
    if name.startswith(SDPA):
        return "backward" not in name
    return FLASH.match(name) is not None


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes softmax(q k^T / sqrt(d)) v: query (b l a d), key and value (b m a d) -> (b l a d).

    flash-attn is used where it is installed and supports the tensors, torch's SDPA otherwise. There is no mask: the
    cache holds only keys that may be attended to.
    """
    return attend_with(kernel(query.device, query.dtype, query.shape[-1]).flash, query, key, value)


def attend_with(flash: Callable[..., Any] | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes `attend` with a given kernel: flash_attn_func of flash-attn 2 or 3, or None for torch's SDPA."""
    if flash is not None:
        return _flash_attend(flash, query, key, value)
    q, k, v = (rearrange(x, "b l a d -> b a l d") for x in (query, key, value))
    if query.is_meta:  # SDPA would allocate all attention weights on the meta device
        out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return rearrange(out, "b a l d -> b l a d")


def _flash_attend(flash: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Calls flash-attn 2 or 3 with query, key and value (b l a d), whose channels are made contiguous.

    The fourth argument of the two differs (dropout, scale), so only keyword arguments follow. Early releases of
    flash-attn 3 also return the log-sum-exp.
    """
    more = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
    out = flash(*(x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)), **more)
    return out[0] if isinstance(out, tuple) else out


class Attention(nn.Module):
    """The projections and norms of one attention layer. The caller chooses the keys and values."""

    def __init__(self, dim: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)

    def query(self, x: Tensor) -> Tensor:
        """Returns unrotated queries (b l a d) of x (b l c)."""
        return rearrange(self.norm_q(self.to_q(x)), "b l (a d) -> b l a d", a=self.heads)

    def keys_values(self, x: Tensor) -> LayerKV:
        """Returns unrotated keys and values (b m a d) of x (b m c)."""
        key = rearrange(self.norm_k(self.to_k(x)), "b m (a d) -> b m a d", a=self.heads)
        return LayerKV(key, rearrange(self.to_v(x), "b m (a d) -> b m a d", a=self.heads))

    def forward(self, query: Tensor, *seen: LayerKV) -> Tensor:
        """Attends and projects the result: query (b l a d), each of `seen` (b m a d) -> (b l c).

        Each of several keys and values is attended to separately, and the results are added.
        """
        first, *others = (attend(query, *kv) for kv in seen)
        return self.to_out[0](rearrange(sum(others, first), "b l a d -> b l (a d)"))


class CrossAttention(Attention):
    """Cross-attention to the prompt: text, and with `image_branch` also CLIP's image tokens.

    The image tokens have their own keys and values (Wan 2.1 image-to-video; diffusers' add_k_proj, add_v_proj,
    norm_added_k).
    """

    def __init__(self, dim: int, heads: int, eps: float, image_branch: bool):
        super().__init__(dim, heads, eps)
        if image_branch:
            self.add_k_proj = nn.Linear(dim, dim)
            self.add_v_proj = nn.Linear(dim, dim)
            self.norm_added_k = nn.RMSNorm(dim, eps=eps)

    def read(self, prompt: tuple[Tensor, ...]) -> tuple[LayerKV, ...]:
        """Returns keys and values of embedded text (b m c), and of embedded CLIP tokens (b m c) where these are given."""
        return tuple(
            self.keys_values(x) if place == 0 else self._image_keys_values(x) for place, x in enumerate(prompt)
        )

    def _image_keys_values(self, x: Tensor) -> LayerKV:
        key = rearrange(self.norm_added_k(self.add_k_proj(x)), "b m (a d) -> b m a d", a=self.heads)
        return LayerKV(key, rearrange(self.add_v_proj(x), "b m (a d) -> b m a d", a=self.heads))
