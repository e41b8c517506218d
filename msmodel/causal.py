"""The causal student: the teacher's transformer, run on one chunk at a time against cached keys and values.

It has exactly the parameters of WanDiT. Cached context is read as detached tensors and returned as new ones.

Legend: b batch, z latent channels, t latent frames of one chunk, h w latent size, n tokens a frame, l text tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msmodel.attention import LayerKV
from msmodel.batch import Conditioning
from msmodel.cache import KV, ChunkCache, Context
from msmodel.config import StudentConfig
from msmodel.dit import WanDiT

TextKV = tuple[tuple[LayerKV, ...], ...]  # cross-attention keys and values of every layer: text, and CLIP's if any


def times(latents: Tensor, t: float) -> Tensor:
    """Returns the time t for every clip of a batch of latents (b z t h w): (b), at least float32."""
    dtype = torch.promote_types(latents.dtype, torch.float32)
    return torch.full(latents.shape[:1], t, dtype=dtype, device=latents.device)


class CausalDiT(WanDiT):
    """WanDiT with a chunk-wise forward pass. cache_type: the class of the cache that its rollouts use."""

    cache_type: type[ChunkCache] = ChunkCache

    def new_cache(self, latents: Tensor, student: StudentConfig) -> ChunkCache:
        """Returns an empty cache with the sink and window of `student`, for latents (b c t h w) of this size."""
        return self.cache_type(student, self.token_grid(latents), prefix=int(self.cfg.image_alone))

    def text_keys_values(self, text: Tensor, image_tokens: Tensor | None = None) -> TextKV:
        """Returns cross-attention keys and values of text (b l c) and CLIP tokens, for reuse in all passes without
        gradient.
        """
        prompt = self.embed_prompt(text, image_tokens)
        return tuple(layer.attn2.read(prompt) for layer in self.layers)

    def forward(  # type: ignore[override]
        self, noisy: Tensor, t: Tensor, cond: Conditioning, context: Context | None = None, text: TextKV | None = None
    ) -> Any:
        """Runs `forward_chunk` where a context is given, else WanDiT's pass.

        Training calls chunks through this method, as the hooks that gather a sharded module's weights run on calls of
        the module, not of its methods.
        """
        return super().forward(noisy, t, cond) if context is None else self.forward_chunk(noisy, t, cond, context, text)

    def forward_chunk(
        self, noisy: Tensor, t: Tensor, cond: Conditioning, context: Context, text: TextKV | None = None
    ) -> tuple[Tensor, KV]:
        """Returns the velocity (b z t h w) of one chunk at time t (b), and the chunk's own unrotated keys and values.

        noisy: b z t h w. cond: the conditioning of the chunk's frames. context: `ChunkCache.context(i)`, which also
        holds the chunk's position. text: `text_keys_values(cond.text, cond.image_tokens)` if computed before.
        """
        x, embedding, time, rope_freqs, text_kv = self._prepare(noisy, t, cond, context, text)
        kept = []
        for index, layer in enumerate(self.layers):
            x, own = self._run(layer, x, text_kv[index], time, rope_freqs, context.layer(index))
            kept.append(own)
        return self.unpatch(x, embedding, noisy), KV(tuple(kept))

    @torch.no_grad()
    def clean_pass(self, clean: Tensor, cond: Conditioning, context: Context, text: TextKV | None = None) -> KV:
        """Returns the keys and values that `forward_chunk` gives for clean latents (b z t h w) at t = 0, without a velocity.

        The last layer stops after its keys and values, as nothing later is needed.
        """
        t = times(clean, 0.0)
        x, _, time, rope_freqs, text_kv = self._prepare(clean, t, cond, context, text)
        kept = []
        layers = self.layers
        for index, layer in enumerate(layers):
            last = layer is layers[-1]
            x, own = layer(x, text_kv[index], time, rope_freqs, context.layer(index), keys_only=last)
            kept.append(own)
        return KV(tuple(kept))

    def _prepare(
        self, latents: Tensor, t: Tensor, cond: Conditioning, context: Context, text: TextKV | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, TextKV | list[tuple[Tensor, ...]]]:
        x = self.embed_patches(latents, cond)
        embedding, time = self.embed_time(t)
        rope_freqs = self.rotation(range(context.position, context.position + latents.shape[2]), latents)
        text_kv = text if text is not None else [self.embed_prompt(cond.text, cond.image_tokens)] * len(self.blocks)
        return x, embedding, time, rope_freqs, text_kv
