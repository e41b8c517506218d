"""The tiny VAE: a small causal decoder for streaming, trained on the frozen encoder's latents (paper: "Tiny VAE").

It has 2D convolutions only; temporal context comes from blocks that also read the previous frame's features. A linear
projection of each latent pixel to its patch gives the picture, and the network adds a correction. Input: normalised
latents. Output: pixels in [-1, 1]. The first latent frame gives one pixel frame, each further one stride_t. Streaming
in any grouping is exact, because the memory (one frame of features a block) belongs to the session.

Legend: b batch, z latent channels, t latent frames, T pixel frames, h w latent, H W pixels, c channels, s time factor,
p q space factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from msmodel.config import VAEConfig
from msmodel.io.tensor_files import EMBEDDED
from msmodel.io.weights import fit_state, read_state, save_weights

BLOCKS = 2  # in each level


class MemoryBlock(nn.Module):
    """Residual block of two 3x3 convolutions; the first one also reads the previous frame."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Conv2d(2 * width, width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, before: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """Returns features of the shape of x ((b t) c h w), and x's last frame for the next call.

        before: the previous frame (b c h w); None stands for zeros. Tensors stay 4-dimensional, which preserves
        channels-last memory.
        """
        frames = x.unflatten(0, (batch, -1))
        ahead = torch.zeros_like(frames[:, 0]) if before is None else before
        past = torch.cat([ahead[:, None], frames[:, :-1]], dim=1).flatten(0, 1)
        y = self.out(F.relu(self.mix(torch.cat([x, past], dim=1)), inplace=True))
        return F.relu(x + y), frames[:, -1]


class TinyDecoder(nn.Module):
    """A decoder with `levels` spatial doublings, of which the first log2(stride_t) double time as well.

    width: channels of the last level, doubled at each coarser one. 16 suits nano (0.11 M parameters); 64 gives 7.7 M
    for the layout of Wan 2.1 (the paper's tiny VAE has 9.84 M). Raises ValueError for strides that are not powers of
    two, or a temporal one that is not below the spatial one.
    """

    sizes: Tensor

    def __init__(self, cfg: VAEConfig, width: int = 16):
        super().__init__()
        levels, doublings = _log2("stride_s", cfg.stride_s), _log2("stride_t", cfg.stride_t)
        if doublings >= levels:
            raise ValueError(f"tiny VAE: vae.stride_t {cfg.stride_t} must be below vae.stride_s {cfg.stride_s}")
        self.cfg, self.width = cfg, width
        self.register_buffer("sizes", torch.tensor([cfg.z_channels, cfg.stride_t, cfg.stride_s, width]))
        widths = [width * 2**i for i in reversed(range(levels))]
        self.factors = [2 if i < doublings else 1 for i in range(levels - 1)] + [1]  # in time, after each level
        self.preview = nn.Conv2d(cfg.z_channels, 3 * cfg.stride_t * cfg.stride_s**2, 1)
        self.entry = nn.Conv2d(cfg.z_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(nn.ModuleList(MemoryBlock(w) for _ in range(BLOCKS)) for w in widths)
        outs = [*widths[1:], 3]
        self.grow = nn.ModuleList(
            nn.Conv2d(w, 4 * s * o, 3, padding=1) for w, s, o in zip(widths, self.factors, outs, strict=True)
        )
        last = self.grow[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, latents: Tensor) -> Tensor:
        """Decodes latents b z t h w, normalised, as b 3 T H W, float32, not clamped. It is differentiable, for training.

        It computes in the type of the weights, which a training engine may have made bfloat16.
        """
        return TinyDecoderSession(self)._decode(latents.to(self.entry.weight.dtype)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents b z t h w, normalised, as video b 3 T H W in [-1, 1]."""
        return self.decoder().push(latents)

    def decoder(self) -> TinyDecoderSession:
        """Returns a new stream with its own memory, which shares only the weights with other sessions."""
        return TinyDecoderSession(self)

    @torch.no_grad()
    def fit_preview(self, latents: Tensor, video: Tensor) -> None:
        """Fits the linear projection by least squares to latents b z t h w, normalised, t >= 2, of video b 3 T H W.

        Raises ValueError where their shapes do not match.
        """
        s, p = self.cfg.stride_t, self.cfg.stride_s
        b, _, t, h, w = latents.shape
        if t < 2 or video.shape != (b, 3, 1 + s * (t - 1), h * p, w * p):
            raise ValueError(f"tiny VAE: latents {tuple(latents.shape)} do not fit video {tuple(video.shape)}")
        x = rearrange(latents[:, :, 1:], "b z t h w -> (b t h w) z").double()
        y = rearrange(video[:, :, 1:], "b c (t s) (h p) (w q) -> (b t h w) (s c p q)", s=s, p=p, q=p).double()
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        ridge = 1e-4 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        solution = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
        assert self.preview.bias is not None
        self.preview.weight.copy_(solution[:-1].T[:, :, None, None])
        self.preview.bias.copy_(solution[-1])


class TinyDecoderSession:
    """A stream of latents through a TinyDecoder, with the memory that this needs."""

    def __init__(self, net: TinyDecoder):
        self._net = net
        self._memory: list[Tensor | None] = [None] * (BLOCKS * len(net.levels))
        self._started = False

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Returns the frames b 3 T' H W in [-1, 1], float32, of the next latents b z t h w, normalised, any t >= 1."""
        return self._decode(latents.to(self._net.entry.weight.dtype)).clamp(-1.0, 1.0).float()

    def _decode(self, latents: Tensor) -> Tensor:
        net, batch = self._net, latents.shape[0]
        flat = rearrange(latents, "b z t h w -> (b t) z h w").contiguous(memory_format=torch.channels_last)
        x = F.relu(net.entry(flat))
        memory = iter(self._memory)
        kept: list[Tensor | None] = []
        for blocks, grow, factor in zip(net.levels, net.grow, net.factors, strict=True):
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x, last = block(x, next(memory), batch)
                kept.append(last)
            x = _unpack(grow(x), factor, 2)
        picture = _unpack(net.preview(flat), net.cfg.stride_t, net.cfg.stride_s)
        video = rearrange(x + picture, "(b t) c h w -> b c t h w", b=batch)
        skip = 0 if self._started else net.cfg.stride_t - 1  # the first latent frame gives only the last of its frames
        self._memory, self._started = kept, True
        return video[:, :, skip:]


def save_tiny_vae(tiny: TinyDecoder, folder: Path | str, meta: Mapping[str, Any]) -> None:
    """Writes model.safetensors and config.json. The weights alone are enough to load the model again."""
    save_weights(tiny, folder, meta)


def load_tiny_vae(folder_or_file: Path | str) -> TinyDecoder:
    """Loads a tiny VAE, frozen, in eval mode.

    folder_or_file: a folder, a safetensors file or "embedded:NAME" (msmodel/assets/NAME/tiny_vae).

    Raises ValueError when weights are missing, damaged, or not those of a tiny VAE.
    """
    source = str(folder_or_file)
    if source.startswith(EMBEDDED):
        source = str(resources.files("msmodel") / "assets" / source.removeprefix(EMBEDDED) / "tiny_vae")
    state = read_state(source)
    if "sizes" not in state:
        raise ValueError(f"{source}: holds no tensor 'sizes', so these are no tiny VAE's weights")
    z, stride_t, stride_s, width = state["sizes"].tolist()
    tiny = TinyDecoder(VAEConfig(source, z, stride_t, stride_s), width)
    fit_state(tiny, state, source)
    return tiny.eval().requires_grad_(False)


def _unpack(x: Tensor, frames: int, side: int) -> Tensor:
    """Unpacks channels to time and space: (b t) (s c p q) h w -> (b t s) c (h p) (w q)."""
    return rearrange(x, "n (s c p q) h w -> (n s) c (h p) (w q)", s=frames, p=side, q=side)


def _log2(name: str, value: int) -> int:
    power = value.bit_length() - 1
    if value < 1 or 2**power != value:
        raise ValueError(f"tiny VAE: vae.{name} {value} is not a power of two")
    return power
