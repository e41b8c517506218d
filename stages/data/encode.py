"""Stage ENCODE (per item): computes the model inputs that never change: clean and image latents, text, CLIP's image tokens.

Legend: b batch, c channels, t latent frames, T pixel frames, h w latent or pixel rows and columns, l text tokens,
m image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from msmodel.config import OPTION, ClipConfig, ImageEncoderConfig, TextConfig, VAEConfig
from msmodel.image_encoder import ImageEncoder, load_image_encoder
from msmodel.io.text_cache import TextCache, without_padding
from msmodel.nano.patch_vae import PatchVAE
from msmodel.text import TextEncoder, load_text_encoder
from msmodel.vae import VideoVAE, load_vae
from stages.contracts import Context, Resources, Stage
from stages.data.files import inherit, read_clip_frames, save_npz
from stages.records import Clip, Rejected


@dataclass(frozen=True)
class EncodeRun:
    """Settings of ENCODE: the sizes and encoders of the model."""

    clip: ClipConfig
    vae: VAEConfig
    text: TextConfig
    digest: str = ""  # of the VAE's weights if a step of the run made them: other weights give other latents
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig, metadata=OPTION)
    clip_dim: int = field(default=0, metadata=OPTION)
    image_digest: str = field(default="", metadata=OPTION)  # of the image encoder's weights
    first_latent: bool = field(default=False, metadata=OPTION)  # the model reads the first image latent alone


def run(cfg: EncodeRun, item: Sequence[Clip], ctx: Context) -> tuple[Clip | Rejected, ...]:
    """Adds latents.npz {latents, image, text} float16 to clips of one scene or video, in folders of this stage.

    image is VAE([first frame, grey...]), or with cfg.first_latent its first latent frame alone, which depends on the first
    frame only. By text.null there are also {empty_text} and {negative_text}, the tokens of these prompts without the zeros past
    them; with cfg.clip_dim {clip}, CLIP's tokens of the first frame. Arrays of a first frame are computed once for all clips of
    the item that share it, those of a prompt once for all runs (msmodel/io/text_cache.py, in ctx.shared("text")). A clip whose
    arrays are not finite is returned as Rejected.
    """
    vae = _vae(cfg.vae, str(ctx.device))
    nulls = cfg.text.null_prompts
    captions = sorted({c.caption for c in item} | set(nulls.values()))
    text = dict(zip(captions, _text(cfg.text, captions, ctx), strict=True))
    null_texts = {name: without_padding(text[prompt]).numpy() for name, prompt in nulls.items()}
    images: dict[bytes, dict[str, np.ndarray]] = {}
    out: list[Clip | Rejected] = []
    for clip in item:
        frames = read_clip_frames(clip)
        video = to_video(frames).to(ctx.device)
        first = frames[0].tobytes()
        if first not in images:
            images[first] = _of_image(cfg, vae, video[:, :, 0], len(frames), ctx)
        arrays = {"latents": _half(vae.encode(video)[0]), **images[first]}
        if infinite := [name for name, values in arrays.items() if not np.isfinite(values).all()]:
            what = "image tokens" if infinite == ["clip"] else "latents"
            out.append(Rejected(clip.clip_id, "encode", f"its {what} are not finite in float16"))
            continue
        done = inherit(clip, ctx.workdir)
        arrays["text"] = text[clip.caption].numpy()
        save_npz(Path(done.folder) / "latents.npz", arrays | null_texts)
        out.append(done)
    return tuple(out)


def _of_image(
    cfg: EncodeRun, vae: VideoVAE | PatchVAE, first: torch.Tensor, frames: int, ctx: Context
) -> dict[str, np.ndarray]:
    """Encodes a first frame, 1 3 h w: image c t h w and, if the model reads it, clip m c; float16. frames: of the clip."""
    made = {"image": _half(vae.encode_image(first, 1 if cfg.first_latent else frames)[0])}
    if cfg.clip_dim:
        made["clip"] = _half(_image_encoder(cfg.image_encoder, cfg.clip_dim, str(ctx.device)).encode(first)[0])
    return made


def to_video(frames: np.ndarray) -> torch.Tensor:
    """Converts frames T h w 3 uint8 to 1 3 T h w float32 in [-1, 1]."""
    return rearrange(torch.from_numpy(frames), "T h w c -> 1 c T h w").float() / 127.5 - 1


def _half(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.float16).cpu().numpy()


def _text(cfg: TextConfig, captions: list[str], ctx: Context) -> torch.Tensor:
    """Encodes captions: b l c float16."""
    cache = TextCache(ctx.shared("text"), cfg, partial(_encoder, cfg, str(ctx.device), ctx.dtype))
    return cache.encode(captions).to(torch.float16)


@lru_cache(maxsize=1)
def _vae(cfg: VAEConfig, device: str) -> VideoVAE | PatchVAE:
    return load_vae(cfg).to(device)


@lru_cache(maxsize=1)
def _encoder(cfg: TextConfig, device: str, dtype: torch.dtype) -> TextEncoder:
    return load_text_encoder(cfg, dtype).to(device)


@lru_cache(maxsize=1)
def _image_encoder(cfg: ImageEncoderConfig, width: int, device: str) -> ImageEncoder:
    return load_image_encoder(cfg, width).to(device)


ENCODE = Stage("encode", 1, "per_item", run, Resources(cpus=1.0, gpus=1.0))
