"""The nano VAE: a linear space-time patch encoder and a small causal decoder, for machines without a GPU.

The encoder projects each patch (stride_t frames x stride_s x stride_s pixels) onto its principal components; the
decoder is the transposed projection plus a residual network at latent resolution. Latents are smooth by construction,
the encoder has no memory, and the decoder starts at the quality of the projection (figures against Wan's layout:
docs/adr/0003-nano-vae.md).

Legend: b batch, z latent channels, t latent frames, T pixel frames (T = 1 + stride_t (t - 1)), h w latent, H W pixels,
p patch values. Pixels are RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from msmodel.config import VAEConfig
from msmodel.nano.frame_groups import FrameGroups, check_sides, check_video, with_tail

KIND = "patch"


def fold(video: Tensor, cfg: VAEConfig, starts_clip: bool = True) -> Tensor:
    """Folds b 3 T H W into patches b p t h w. The first frame of a clip fills its patch alone, repeated stride_t times."""
    if starts_clip:
        first = repeat(video[:, :, :1], "b c 1 H W -> b c s H W", s=cfg.stride_t)
        video = torch.cat((first, video[:, :, 1:]), dim=2)
    return rearrange(
        video, "b c (t s) (h i) (w j) -> b (s c i j) t h w", s=cfg.stride_t, i=cfg.stride_s, j=cfg.stride_s
    )


def unfold(patches: Tensor, cfg: VAEConfig, starts_clip: bool) -> Tensor:
    """Inverts `fold`: b p t h w -> b 3 T H W. The first patch of a clip becomes one frame, the mean of its copies."""
    video = rearrange(
        patches, "b (s c i j) t h w -> b c (t s) (h i) (w j)", s=cfg.stride_t, i=cfg.stride_s, j=cfg.stride_s, c=3
    )
    if not starts_clip:
        return video
    first = video[:, :, : cfg.stride_t].mean(dim=2, keepdim=True)
    return torch.cat((first, video[:, :, cfg.stride_t :]), dim=2)


def principal_components(patches: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the principal components of patches (n p).

    They are the centre (p), the basis (p z) with orthonormal columns, and the standard deviation of each component (z).
    """
    centre = patches.mean(dim=0)
    variance, basis = torch.linalg.eigh(torch.cov((patches - centre).T).double())
    order = variance.argsort(descending=True)[:channels]
    return centre, basis[:, order].float(), variance[order].clamp_min(1e-12).sqrt().float()


class CausalBlock(nn.Module):
    """Residual block over space, which also reads the previous latent frame's features."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Conv2d(2 * width, width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Returns features of the same shape as x (b c t h w). before: b c 1 h w, the frame that precedes x."""
        past = torch.cat((before, x[:, :, :-1]), dim=2)
        both = rearrange(torch.cat((x, past), dim=1), "b c t h w -> (b t) c h w")
        y = self.out(F.gelu(self.mix(both)))
        return x + rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])


class PatchVAE(nn.Module):
    """A VAE with normalised latents P (x - centre) / std, P the principal components. It has the interface of VideoVAE."""

    def __init__(self, cfg: VAEConfig, width: int = 96, layers: int = 3):
        super().__init__()
        self.cfg, self.width, self.layers = cfg, width, layers
        patch = 3 * cfg.stride_t * cfg.stride_s**2
        self.register_buffer("centre", torch.zeros(patch))
        self.register_buffer("basis", torch.zeros(patch, cfg.z_channels))
        self.register_buffer("std", torch.ones(cfg.z_channels))
        self.entry = nn.Conv2d(cfg.z_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(CausalBlock(width) for _ in range(layers))
        self.exit = nn.Conv2d(width, patch, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    centre: Tensor
    basis: Tensor
    std: Tensor

    @torch.no_grad()
    def set_components(self, centre: Tensor, basis: Tensor, deviation: Tensor) -> None:
        """Sets the result of `principal_components`.

        Component i is scaled by sqrt(deviation_i deviation_0): halfway, on a log scale, between keeping the components'
        proportions and scaling all of them to unit deviation.
        """
        self.centre.copy_(centre)
        self.basis.copy_(basis)
        self.std.copy_((deviation * deviation[0]).sqrt())

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Encodes video b 3 T H W in [-1, 1] as latents b z t h w, normalised."""
        check_video(video, self.cfg)
        return self.encoder().push(video)

    @torch.no_grad()
    def encode_image(self, first: Tensor, frames: int) -> Tensor:
        """Encodes `with_tail`'s clip of `frames` frames, from first b 3 H W in [-1, 1], as latents b z t h w."""
        return self.encode(with_tail(first, frames, self.cfg))

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Decodes latents b z t h w, normalised, as b 3 T H W, not clamped. It is differentiable, for training."""
        return PatchSession(self)._decode(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents b z t h w, normalised, as video b 3 T H W in [-1, 1]."""
        return self.decoder().push(latents)

    def decode_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """Yields the video that `decode` returns, in one part: a clip of this VAE is small."""
        yield self.decode(latents)

    def encoder(self) -> PatchEncoderSession:
        """Returns a new stream of frames."""
        return PatchEncoderSession(self)

    def decoder(self) -> PatchSession:
        """Returns a new stream of latents with its own memory, which shares only the weights with other sessions."""
        return PatchSession(self)


class PatchEncoderSession:
    """A stream of pixel frames. The first frame gives one latent frame, then every stride_t frames one."""

    def __init__(self, vae: PatchVAE):
        self._vae = vae
        self._groups = FrameGroups(vae.cfg.stride_t)

    @torch.no_grad()
    def push(self, video: Tensor) -> Tensor:
        """Returns the latents b z t h w, normalised, of the groups that the next frames complete.

        video: b 3 T H W in [-1, 1], any T.
        """
        vae = self._vae
        check_sides(video, vae.cfg)
        starts, frames = self._groups.take(video)
        patches = fold(frames, vae.cfg, starts) - vae.centre[:, None, None, None]
        return torch.einsum("pz,bpthw->bzthw", vae.basis / vae.std, patches)


class PatchSession:
    """A stream of latents. The first latent frame gives one pixel frame, each further one stride_t."""

    def __init__(self, vae: PatchVAE):
        self._vae = vae
        self._memory: list[Tensor] | None = None

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Returns the frames b 3 T' H W in [-1, 1] of the next latents b z t h w, normalised, any t >= 1."""
        return self._decode(latents).clamp(-1.0, 1.0)

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self._vae
        b, starts = latents.shape[0], self._memory is None
        flat = rearrange(latents, "b z t h w -> (b t) z h w").to(vae.entry.weight.dtype)  # an engine's may be bfloat16
        x = rearrange(vae.entry(flat), "(b t) c h w -> b c t h w", b=b)
        memory = [torch.zeros_like(x[:, :, :1])] * vae.layers if self._memory is None else self._memory
        kept = []
        for block, before in zip(vae.blocks, memory, strict=True):
            kept.append(x[:, :, -1:])
            x = block(x, before)
        self._memory = kept
        detail = rearrange(vae.exit(F.gelu(rearrange(x, "b c t h w -> (b t) c h w"))), "(b t) p h w -> b p t h w", b=b)
        linear = torch.einsum("pz,bzthw->bpthw", vae.basis * vae.std, latents) + vae.centre[:, None, None, None]
        return unfold(linear + detail.to(linear.dtype), vae.cfg, starts)
