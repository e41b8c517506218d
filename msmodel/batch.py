"""The tensors of one batch and of its conditioning. Only the data loader makes a Batch from files.

Legend: b batch, n tracks, t latent frames, T pixel frames, c channels, l text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from msmodel.config import ModelConfig


class _Movable:
    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Returns a copy on `device`.

        Floating-point tensors are converted to `dtype` too; integer and bool ones keep their type.
        """
        return self.each(lambda v: v.to(device=device, dtype=dtype if v.is_floating_point() else None))

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Returns a copy with every tensor changed, for example to some items of the batch."""
        tensors = {f.name: vars(self)[f.name] for f in fields(self)}  # type: ignore[arg-type]
        changed = {name: change(v) for name, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var, no-any-return]


@dataclass(frozen=True)
class Conditioning(_Movable):
    """The inputs of a model apart from the noise. Track dropout zeroes `tracks`, text dropout replaces `text`.

    text: b l c, zero past the prompt.
    image: b c t h w, mask channels then image latents (or, for "first_latent", the clean first latent padded with
    zeros).
    tracks: b c t h w, the packed track map c_m *before* the track head (stride_t * track_id_dim channels, and stride_t
    * 2 more with dit.track_offsets), or the latents of a canvas ("rgb_vae").
    image_tokens: b 257 dit.clip_dim, CLIP's tokens of the image, for models with the image branch; None stands for zero
    (dropped) tokens.
    null_text: b l c, what guidance reads for no text (text.null); None for zeros.
    """

    text: Tensor
    image: Tensor
    tracks: Tensor
    image_tokens: Tensor | None = None
    null_text: Tensor | None = None

    def without_text(self) -> Conditioning:
        return replace(self, text=torch.zeros_like(self.text) if self.null_text is None else self.null_text)

    def without_tracks(self) -> Conditioning:
        return replace(self, tracks=torch.zeros_like(self.tracks))

    def frames(self, start: int, stop: int) -> Conditioning:
        """Returns the conditioning of latent frames start..stop-1 (a chunk). All frames share the text."""
        return replace(self, image=self.image[:, :, start:stop], tracks=self.tracks[:, :, start:stop])


@dataclass(frozen=True)
class Batch(_Movable):
    """A training batch as the loader yields it, before tracks are sampled, dropped, masked and rasterised.

    latents: b c t h w, normalised, clean.
    image: b c t h w, normalised VAE([first frame, grey, grey...]) over all frames of the clip, or its first latent frame
    alone (t = 1), which is all that dit.image "first_latent" reads.
    text: b l c. xy_px: b T n 2 float32. visible: b T n bool. clip_ids: one per item.
    real: b bool, False for rendered clips.
    image_tokens: b m c, CLIP's tokens of the first frame; None where the data has none.
    empty_text, negative_text: b l c, embeddings of the empty and of the negative prompt; None where the data has none.
    """

    latents: Tensor
    image: Tensor
    text: Tensor
    xy_px: Tensor
    visible: Tensor
    real: Tensor
    clip_ids: tuple[str, ...] = ()
    image_tokens: Tensor | None = None
    empty_text: Tensor | None = None
    negative_text: Tensor | None = None


def image_conditioning(image: Tensor, model: ModelConfig) -> Tensor:
    """Returns `Conditioning.image` (b c t h w, all latent frames of a clip) for the VAE's latents of [first frame, grey...].

    image: b z t h w; t may be 1 for "first_latent". Raises ValueError where the layout needs more frames than there are.

    dit.image "channels": stride_t mask channels, which are one where the frame is known (latent frame 0), then the
    image latents.
    dit.image "first_latent": the clean first latent, zero elsewhere.
    """
    if model.image_alone:
        b, z, _, h, w = image.shape
        alone = image.new_zeros(b, z, model.latent_frames, h, w)
        alone[:, :, 0] = image[:, :, 0]
        return alone
    if image.shape[2] < model.latent_frames:
        raise ValueError(
            f"dit.image=channels reads {model.latent_frames} latent frames of the image, but this data holds "
            f"{image.shape[2]}: it was made for dit.image=first_latent; make it again with these settings (`make data`)"
        )
    known = torch.zeros_like(image[:, :1])
    known[:, :, 0] = 1.0
    return torch.cat([known.expand(-1, model.mask_channels, -1, -1, -1), image], dim=1)
