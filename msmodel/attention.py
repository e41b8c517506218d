"""Attention behind one function, and Wan's self- and cross-attention layers around it.

Parameter names are those of diffusers' WanAttention. Query and key norms are RMSNorm over the full width, before the
split into heads.

Legend: b batch, l tokens, m tokens attended to, a attention heads, d channels of one head.
"""

from __future__ import annotations

from functools import lru_cache
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


@lru_cache(maxsize=1)
def _flash_attention() -> Any:
    """flash_attn_func where the optional package is installed, else None."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: query (b l a d), key and value (b m a d) -> (b l a d).

    flash-attn when it is installed and fits, torch's SDPA otherwise. No mask: the cache hands over what is seen.
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and (flash := _flash_attention()) is not None:
        return flash(query, key, value)
    q, k, v = (rearrange(x, "b l a d -> b a l d") for x in (query, key, value))
    if query.is_meta:  # there SDPA would lay out all weights, which no real device's kernel does
        out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return rearrange(out, "b a l d -> b l a d")


class Attention(nn.Module):
    """Projections and norms of one attention layer; what is attended to is the caller's business."""

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
        """x (b l c) -> unrotated queries (b l a d)."""
        return rearrange(self.norm_q(self.to_q(x)), "b l (a d) -> b l a d", a=self.heads)

    def keys_values(self, x: Tensor) -> LayerKV:
        """x (b m c) -> unrotated keys and values (b m a d)."""
        key = rearrange(self.norm_k(self.to_k(x)), "b m (a d) -> b m a d", a=self.heads)
        return LayerKV(key, rearrange(self.to_v(x), "b m (a d) -> b m a d", a=self.heads))

    def forward(self, query: Tensor, kv: LayerKV) -> Tensor:
        """Attend and project out: query (b l a d), kv (b m a d) -> (b l c)."""
        return self.to_out[0](rearrange(attend(query, *kv), "b l a d -> b l (a d)"))
