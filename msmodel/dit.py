"""The Wan diffusion transformer with a track head: the bidirectional teacher, and the base class of the causal student.

Parameter names are those of diffusers' WanTransformer3DModel, plus `track_head.*`. Time embedding, modulation and the
residual stream are float32 even when the weights are not, as in Wan.

Legend: b batch, z latent channels, c channels, t latent frames, h w latent size, n tokens a frame, l text tokens.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from msmodel.attention import Attention, CrossAttention, LayerKV
from msmodel.batch import Conditioning
from msmodel.checkpointing import attention_kept
from msmodel.config import ModelConfig
from msmodel.rope import rotate, rotation, upcast

TIME_SCALE = 1000.0  # Wan's time embedding takes t in 0..1000


def _without_autocast(device: str) -> AbstractContextManager[None]:
    """Returns a context with autocast disabled. The meta device, on which memory is planned, has no autocast."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class UpcastLinear(nn.Linear):
    """A linear layer computed in float32 whatever the type of its weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with _without_autocast(x.device.type):
            weight = upcast(self.weight)
            return F.linear(x.to(weight.dtype), weight, None if self.bias is None else self.bias.to(weight.dtype))


class UpcastLayerNorm(nn.LayerNorm):
    """LayerNorm computed in the type of its input (the float32 residual stream), whatever the type of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def sinusoid(t: Tensor, channels: int) -> Tensor:
    """Returns time features of t (...) in 0..1000: (..., channels), cosines first, then sines, in the type of t."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angles = t[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Embedder(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, inputs: int, outputs: int, activation: nn.Module, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        self.linear_1 = linear(inputs, outputs)
        self.activation = activation
        self.linear_2 = linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class ConditionEmbedder(nn.Module):
    """Embeds text, time and (with dit.clip_dim) CLIP's image tokens at the width of the model."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        dim = cfg.dit.dim
        self.freq_dim = cfg.dit.freq_dim
        self.time_embedder = Embedder(self.freq_dim, dim, nn.SiLU(), UpcastLinear)
        self.time_proj = UpcastLinear(dim, 6 * dim)
        self.text_embedder = Embedder(cfg.text.dim, dim, nn.GELU(approximate="tanh"))
        if cfg.dit.clip_dim:
            self.image_embedder = ImageEmbedder(cfg.dit.clip_dim, dim)

    def time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns for t (b f) in [0, 1] the embedding (b f 1 c) for the head and the modulation (b f 6 c) for the layers."""
        weight = upcast(self.time_embedder.linear_1.weight)  # does nothing unless the weights are half precision
        embedding = self.time_embedder(sinusoid(TIME_SCALE * upcast(t), self.freq_dim).to(weight.dtype))
        modulation = self.time_proj(F.silu(embedding))
        return rearrange(embedding, "b f c -> b f 1 c"), rearrange(modulation, "b f (six c) -> b f six c", six=6)


class FeedForward(nn.Module):
    """Linear, GELU (tanh, or exact), linear; numbered as in diffusers (net.0.proj, net.2)."""

    def __init__(self, dim: int, hidden: int, outputs: int, approximate: str = "tanh"):
        super().__init__()
        self.approximate = approximate
        entry = nn.Module()
        entry.proj = nn.Linear(dim, hidden)
        self.net = nn.ModuleList([entry, nn.Identity(), nn.Linear(hidden, outputs)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x), approximate=self.approximate))  # type: ignore[union-attr, operator]


class ImageEmbedder(nn.Module):
    """Embeds CLIP's image tokens as Wan 2.1 image-to-video does: (b m clip_dim) -> (b m dim)."""

    def __init__(self, clip_dim: int, dim: int):
        super().__init__()
        self.norm1 = UpcastLayerNorm(clip_dim)
        self.ff = FeedForward(clip_dim, clip_dim, dim, approximate="none")
        self.norm2 = UpcastLayerNorm(dim)

    def forward(self, image_tokens: Tensor) -> Tensor:
        dtype = self.norm1.weight.dtype
        return self.norm2(upcast(self.ff(self.norm1(upcast(image_tokens)).to(dtype)))).to(dtype)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Applies LayerNorm without weights, then scale and shift: x (b t n c), shift and scale (b f 1 c), f = t or 1."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


class TransformerLayer(nn.Module):
    """One Wan transformer layer: self-attention, cross-attention to the text, feed-forward."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        d = cfg.dit
        self.eps = d.eps
        self.attn1 = Attention(d.dim, d.heads, d.eps)
        self.attn2 = CrossAttention(d.dim, d.heads, d.eps, image_branch=d.clip_dim > 0)
        self.norm2 = UpcastLayerNorm(d.dim, eps=d.eps)  # before cross-attention; the other two norms have no weights
        self.ffn = FeedForward(d.dim, d.ffn_dim, d.dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, d.dim) / d.dim**0.5)

    def _tokens(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t n c -> b (t n) c").to(self.attn1.to_q.weight.dtype)

    def forward(
        self,
        x: Tensor,
        prompt: tuple[Tensor, ...] | tuple[LayerKV, ...],
        time: Tensor,
        rope_freqs: Tensor,
        context: tuple[LayerKV, ...] = (),
        keys_only: bool = False,
    ) -> tuple[Tensor, LayerKV]:
        """Returns x after the layer, and the layer's own *unrotated* keys and values.

        x: b t n c. prompt: `embed_prompt` or its keys and values. time: b f 6 c. rope_freqs: rotation of x's tokens.
        context: cached keys (rotated) and values that are attended to in addition to x's own, slot by slot.
        keys_only: return after the keys and values, with x unchanged (the last layer of a pass that only fills the
        cache).
        """
        modulation = (time + upcast(self.scale_shift_table)).split(1, dim=2)  # each (b f 1 c)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        shape = {"t": x.shape[1], "n": x.shape[2]}
        y = self._tokens(_modulate(x, shift, scale, self.eps))
        own = self.attn1.keys_values(y)
        if keys_only:
            return x, own
        seen = LayerKV(rotate(own.key, rope_freqs), own.value)
        if context:
            keys, values = zip(*context, seen, strict=True)
            seen = LayerKV(torch.cat(keys, 1), torch.cat(values, 1))
        y = self.attn1(rotate(self.attn1.query(y), rope_freqs), seen)
        x = torch.addcmul(x, rearrange(y, "b (t n) c -> b t n c", **shape).to(x.dtype), gate)

        y = self._tokens(self.norm2(x))
        text_kv = prompt if isinstance(prompt[0], LayerKV) else self.attn2.read(prompt)  # type: ignore[arg-type]
        y = self.attn2(self.attn2.query(y), *text_kv)
        x = x + rearrange(y, "b (t n) c -> b t n c", **shape)

        y = self.ffn(self._tokens(_modulate(x, ffn_shift, ffn_scale, self.eps)))
        return torch.addcmul(x, rearrange(y, "b (t n) c -> b t n c", **shape).to(x.dtype), ffn_gate), own


class WanDiT(nn.Module):
    """The velocity of the rectified flow v = noise - data, given text, image and tracks.

    Fresh weights follow Wan's initialisation; the head starts at zero. The patch embedding's track slice is zero and
    the track head is not, so that tracks change nothing at step 0 and both learn from then on (if both were zero
    neither would ever get a gradient).
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        d = cfg.dit
        if d.patch[0] != 1:
            raise ValueError(f"dit.patch: {d.patch} folds latent frames together; the first entry must be 1")
        self.cfg = cfg
        head = d.track_encoding == "head"  # a canvas's latents ("rgb_vae") go to the patch embedding as they are
        self.track_head = nn.Conv3d(cfg.track_feature_channels, d.track_channels, 1) if head else nn.Identity()
        self.patch_embedding = nn.Conv3d(cfg.in_channels, d.dim, d.patch, d.patch)
        self.condition_embedder = ConditionEmbedder(cfg)
        self.blocks = nn.ModuleList(TransformerLayer(cfg) for _ in range(d.layers))
        self.proj_out = nn.Linear(d.dim, cfg.vae.z_channels * math.prod(d.patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, d.dim) / d.dim**0.5)
        self.checkpoint_layers = False  # recompute each layer in the backward pass, to save memory
        self.keep_attention = False  # then keep the results of attention, which take long to recompute
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the weights from torch's global generator. Seed it for reproducible weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in self.layers:  # queries start equal to keys: matching is learned sooner
            layer.attn1.to_k.weight.data.copy_(layer.attn1.to_q.weight.data)
            if self.cfg.dit.clip_dim:  # a new branch has no effect until it is trained
                nn.init.zeros_(layer.attn2.add_v_proj.weight)
        embedders = (self.condition_embedder.text_embedder, self.condition_embedder.time_embedder)
        for linear in (e for embedder in embedders for e in (embedder.linear_1, embedder.linear_2)):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.xavier_uniform_(self.patch_embedding.weight.data.flatten(1))
        nn.init.zeros_(self.proj_out.weight)
        if isinstance(self.track_head, nn.Conv3d):
            nn.init.normal_(self.track_head.weight, std=self.track_head.in_channels**-0.5)
            nn.init.zeros_(self.track_head.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.track_slice)

    @property
    def layers(self) -> list[TransformerLayer]:
        """Returns the transformer layers, first to last."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def track_slice(self) -> Tensor:
        """Returns the part of the patch embedding's weights that reads the track channels (the last ones), as a view."""
        return self.patch_embedding.weight.data[:, self.cfg.in_channels - self.cfg.track_channels :]

    def forward(self, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Returns the velocity (b z t h w), in the type of `noisy`.

        noisy: b z t h w. t: (b) one time a clip, or (b t) one a latent frame, in [0, 1]. With dit.image ==
        "first_latent" frame 0 is replaced by the clean latent of cond.image, at t = 0 (its output has no meaning).
        """
        if self.cfg.image_alone:
            noisy = torch.cat((cond.image[:, :, :1].to(noisy.dtype), noisy[:, :, 1:]), dim=2)
            per_frame = t[:, None].expand(-1, noisy.shape[2]) if t.ndim == 1 else t
            t = torch.cat((torch.zeros_like(per_frame[:, :1]), per_frame[:, 1:]), dim=1)
        x = self.embed_patches(noisy, cond)
        embedding, time = self.embed_time(t)
        rope_freqs = self.rotation(range(noisy.shape[2]), noisy)
        prompt = self.embed_prompt(cond.text, cond.image_tokens)
        for layer in self.layers:
            x, _ = self._run(layer, x, prompt, time, rope_freqs)
        return self.unpatch(x, embedding, noisy)

    def _run(self, layer: nn.Module, *inputs: Tensor | tuple[Any, ...] | None) -> tuple[Tensor, LayerKV]:
        if self.checkpoint_layers and torch.is_grad_enabled():
            contexts = attention_kept if self.keep_attention else noop_context_fn
            return checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)
        return layer(*inputs)

    def embed_patches(self, noisy: Tensor, cond: Conditioning) -> Tensor:
        """Embeds noise, mask, image and track channels (in this order) as tokens (b t n c), at least float32."""
        dtype = self.patch_embedding.weight.dtype
        parts = [noisy.to(dtype)]
        if not self.cfg.image_alone:
            parts.append(cond.image.to(dtype))
        parts.append(self.track_head(cond.tracks.to(dtype)))
        return rearrange(upcast(self.patch_embedding(torch.cat(parts, dim=1))), "b c t h w -> b t (h w) c").contiguous()

    def embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the embedding (b f 1 c) and modulation (b f 6 c) of t (b) or (b t), where f is 1 or t."""
        return self.condition_embedder.time(t[:, None] if t.ndim == 1 else t)

    def embed_text(self, text: Tensor) -> Tensor:
        """Embeds text (b l c) as (b l dim)."""
        embedder = self.condition_embedder.text_embedder
        return embedder(text.to(embedder.linear_1.weight.dtype))

    def embed_prompt(self, text: Tensor, image_tokens: Tensor | None = None) -> tuple[Tensor, ...]:
        """Embeds text (b l c) as (b l dim), and with dit.clip_dim also image_tokens (b m clip_dim) as (b m dim).

        image_tokens None stands for zeros, which Wan 2.1's Fun models get where there is no image (and in a tenth of
        their training). Attention to equal tokens gives the same result as attention to one of them, so one token
        replaces all 257.
        """
        if not self.cfg.dit.clip_dim:
            return (self.embed_text(text),)
        tokens = text.new_zeros(text.shape[0], 1, self.cfg.dit.clip_dim) if image_tokens is None else image_tokens
        return self.embed_text(text), self.condition_embedder.image_embedder(tokens)

    def token_grid(self, latents: Tensor) -> tuple[int, int]:
        """Returns (rows, columns) of tokens in a frame of latents (b c t h w)."""
        _, p, q = self.cfg.dit.patch
        return latents.shape[3] // p, latents.shape[4] // q

    def rotation(self, frames: range, latents: Tensor) -> Tensor:
        """Returns the rotations for the tokens of latents (b c t h w), whose frames have positions `frames`."""
        head_dim = self.cfg.dit.dim // self.cfg.dit.heads
        return rotation(frames, *self.token_grid(latents), head_dim, self.patch_embedding.weight)

    def unpatch(self, x: Tensor, embedding: Tensor, like: Tensor) -> Tensor:
        """Applies the output head to tokens x (b t n c). The result (b z t h w) has the shape and type of `like`."""
        _, p, q = self.cfg.dit.patch
        rows, _ = self.token_grid(like)
        shift, scale = (embedding + upcast(self.scale_shift_table)).split(1, dim=2)
        y = self.proj_out(_modulate(x, shift, scale, self.cfg.dit.eps).to(self.proj_out.weight.dtype))
        return rearrange(y, "b t (h w) (p q z) -> b z t (h p) (w q)", h=rows, p=p, q=q).to(like.dtype)
