"""An independent account of the rollout, without a cache: every chunk's frozen keys and values are kept for ever, and
masks and positions follow the method's definition word for word. Plain einsum attention, real-valued RoPE.

Legend: b batch, z latent channels, t latent frames, n tokens a frame, l tokens, a heads, d channels of one head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from msmodel.batch import Conditioning
from msmodel.causal import CausalDiT

PREFIX = -1
LayerTensors = list[tuple[Tensor, Tensor]]  # unrotated keys and values of each layer, (b l a d)


def place(j: int, i: int, sink: int, window: int) -> int | None:
    """Where chunk j sits, in chunks, when chunk i is made; None if i does not attend to it."""
    if j == i:
        return min(i, sink + window)
    if j not in {*range(sink), *range(i - window, i)}:
        return None
    if i <= sink + window or j < sink:
        return j
    return sink + (j - (i - window))


@lru_cache(maxsize=64)
def angles(frames: range, rows: int, columns: int, d: int) -> Tensor:
    """(l d/2) in radians, one number at a time."""
    space = 2 * (d // 6)
    table = [
        [p * 10_000.0 ** (-2 * j / n) for p, n in ((f, d - 2 * space), (r, space), (c, space)) for j in range(n // 2)]
        for f in frames
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.tensor(table, dtype=torch.float64)


def turned(x: Tensor, frames: range, rows: int, columns: int) -> Tensor:
    """RoPE of x (b l a d), pair by pair, with cosines and sines."""
    angle = angles(frames, rows, columns, x.shape[-1])[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * angle.cos() - odd * angle.sin()
    out[..., 1::2] = even * angle.sin() + odd * angle.cos()
    return out


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention over the tokens that mask (m) admits."""
    scores = torch.einsum("blad,bmad->balm", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return rearrange(torch.einsum("balm,bmad->blad", weights, value), "b l a d -> b l (a d)")


@dataclass
class Reference:
    """model: in float64. chunk, sink, window: cXsYwZ."""

    model: CausalDiT
    chunk: int
    sink: int
    window: int
    history: dict[int, LayerTensors] = field(default_factory=dict)

    def positions(self, j: int, i: int) -> range | None:
        """Latent-frame positions of chunk j (or the prefix) as chunk i is made."""
        alone = int(self.model.cfg.image_alone)
        if j == PREFIX:
            return range(alone)
        where = place(j, i, self.sink, self.window)
        return None if where is None else range(alone + where * self.chunk, alone + (where + 1) * self.chunk)

    def velocity(self, noisy: Tensor, t: float, cond: Conditioning, i: int) -> tuple[Tensor, LayerTensors]:
        """One pass over chunk i (or the prefix): its velocity and its own unrotated keys and values."""
        model, grid = self.model, self.model.token_grid(noisy)
        x = rearrange(model.embed_patches(noisy, cond), "b t n c -> b (t n) c")
        embedding, time = model.embed_time(torch.full(noisy.shape[:1], t, dtype=torch.float64))
        text, kept = model.embed_text(cond.text), []
        for index, layer in enumerate(model.blocks):
            mods = (layer.scale_shift_table + time[:, 0]).unbind(1)
            shift, scale, gate, shift2, scale2, gate2 = (m[:, None] for m in mods)
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
            own = tuple(layer.attn1.keys_values(y))
            kept.append(own)
            keys, values, mask = [], [], []
            for j, layers in {**self.history, i: [own] * len(model.blocks)}.items():
                frames = self.positions(j, i)
                k, v = layers[index]
                keys.append(k if frames is None else turned(k, frames, *grid))
                values.append(v)
                mask.append(torch.full((k.shape[1],), frames is not None))
            query = turned(layer.attn1.query(y), self.positions(i, i), *grid)
            seen = attention(query, torch.cat(keys, 1), torch.cat(values, 1), torch.cat(mask))
            x = x + layer.attn1.to_out[0](seen) * gate
            y = layer.norm2(x)
            k, v = layer.attn2.keys_values(text)
            y = attention(layer.attn2.query(y), k, v, torch.ones(k.shape[1], dtype=torch.bool))
            x = x + layer.attn2.to_out[0](y)
            x = x + layer.ffn(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2) * gate2
        x = rearrange(x, "b (t n) c -> b t n c", t=noisy.shape[2])
        return model.unpatch(x, embedding, noisy), kept

    def remember(self, i: int, clean: Tensor, cond: Conditioning) -> None:
        """The clean pass at t = 0; its keys and values are frozen from here on."""
        with torch.no_grad():
            self.history[i] = self.velocity(clean, 0.0, cond, i)[1]

    def rollout(self, cond, noise, timesteps, generator, exit_step=None, grad=False, clean_context=None) -> Tensor:
        """What `msmodel.rollout.rollout` must return."""
        exit_step = len(timesteps) - 1 if exit_step is None else exit_step
        done, alone = [], int(self.model.cfg.image_alone)
        if alone:
            first = cond.frames(0, 1)
            self.remember(PREFIX, first.image, first)
            done.append(first.image)
        for i in range((noise.shape[2] - alone) // self.chunk):
            span = slice(alone + i * self.chunk, alone + (i + 1) * self.chunk)
            own, x = cond.frames(span.start, span.stop), noise[:, :, span]
            for k, t in enumerate(timesteps[: exit_step + 1]):
                with torch.set_grad_enabled(grad and k == exit_step):
                    x0 = x - t * self.velocity(x, t, own, i)[0]
                if k < exit_step:
                    s = timesteps[k + 1]
                    x = (1 - s) * x0 + s * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            done.append(x0)
            self.remember(i, (x0 if clean_context is None else clean_context[:, :, span]).detach(), own)
        return torch.cat(done, dim=2)
