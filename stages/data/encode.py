"""Encode: everything the models are given that never changes: clean latents, image latents, text embedding.

Legend: b batch, c channels, t latent frames, T pixel frames, h w latent or pixel rows and columns, l text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from msmodel.config import ClipConfig, TextConfig, VAEConfig
from msmodel.patch_vae import PatchVAE
from msmodel.text import TextEncoder, load_text_encoder
from msmodel.text_cache import TextCache
from msmodel.vae import VideoVAE, load_vae
from stages.data.files import inherit, read_clip_frames, save_npz
from stages.records import Clip, Rejected
from stages.spec import Context, Resources, Stage


@dataclass(frozen=True)
class EncodeRun:
    clip: ClipConfig
    vae: VAEConfig
    text: TextConfig
    digest: str = ""  # of the VAE's weights where they are a step of the run: new weights, new latents


def run(cfg: EncodeRun, item: Sequence[Clip], ctx: Context) -> tuple[Clip | Rejected, ...]:
    """Clips of one scene or video -> the same, in folders of this stage, with latents.npz {latents, image, text} float16.

    Image latents are computed once for all clips of the item that share a first frame, captions once for all clips there ever
    are (msmodel/text_cache.py, in ctx.shared("text")). A clip whose latents are not finite comes back as Rejected.
    """
    vae = _vae(cfg.vae, str(ctx.device))
    captions = sorted({c.caption for c in item})
    text = dict(zip(captions, _text(cfg.text, captions, ctx), strict=True))
    images: dict[bytes, np.ndarray] = {}
    out: list[Clip | Rejected] = []
    for clip in item:
        frames = read_clip_frames(clip)
        video = to_video(frames).to(ctx.device)
        first = frames[0].tobytes()
        if first not in images:
            images[first] = _half(vae.encode_image(video[:, :, 0], len(frames))[0])
        latents = _half(vae.encode(video)[0])
        if not (np.isfinite(latents).all() and np.isfinite(images[first]).all()):
            out.append(Rejected(clip.clip_id, "encode", "its latents are not finite in float16"))
            continue
        done = inherit(clip, ctx.workdir)
        arrays = {"latents": latents, "image": images[first], "text": text[clip.caption]}
        save_npz(Path(done.folder) / "latents.npz", arrays)
        out.append(done)
    return tuple(out)


def to_video(frames: np.ndarray) -> torch.Tensor:
    """T h w 3 uint8 -> 1 3 T h w float32 in [-1, 1]."""
    return rearrange(torch.from_numpy(frames), "T h w c -> 1 c T h w").float() / 127.5 - 1


def _half(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.float16).cpu().numpy()


def _text(cfg: TextConfig, captions: list[str], ctx: Context) -> np.ndarray:
    """b l c float16."""
    cache = TextCache(ctx.shared("text"), cfg, partial(_encoder, cfg, str(ctx.device)))
    return cache.encode(captions).to(torch.float16).numpy()


@lru_cache(maxsize=1)
def _vae(cfg: VAEConfig, device: str) -> VideoVAE | PatchVAE:
    return load_vae(cfg).to(device)


@lru_cache(maxsize=1)
def _encoder(cfg: TextConfig, device: str) -> TextEncoder:
    return load_text_encoder(cfg).to(device)


ENCODE = Stage("encode", 1, "per_item", run, Resources(cpus=1.0, gpus=1.0))
