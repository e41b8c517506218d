"""Stage GENERATE (per_item): the videos of one EvalItem. Noise and track ids depend on seed and clip only.

The teacher samples with joint guidance; "no_tracks" drops the tracks and keeps text guidance; a counterfactual gives
other tracks with the same first frame. The student rolls out chunk by chunk. "real" copies the clip, "vae" decodes its
latents. At full size memory is bounded by one transformer and the frames of one latent: clips are decoded one by one.

Legend: b clips, z latent channels, t latent frames, h w latent size, T frames, n tracks, d id dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from msmodel import flow, track_encoding
from msmodel.batch import Conditioning, image_conditioning
from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig, StudentConfig, VAEConfig
from msmodel.dit import WanDiT
from msmodel.io.weights import load_student, load_teacher
from msmodel.nano.patch_vae import PatchVAE
from msmodel.rollout import rollout
from msmodel.vae import VideoVAE, load_vae
from stages.contracts import Context, Resources, Stage
from stages.eval.config import GenerateRun
from stages.eval.items import EvalClip, EvalItem, Generated, folder_file, read_clip, read_tracks, seeded
from stages.records import Checkpoint
from stages.train.conditioning import image_tokens, null_text
from stages.train.sampling import sample_teacher

Net = TypeVar("Net", bound=WanDiT)


def run(cfg: GenerateRun, item: EvalItem, ctx: Context) -> Generated:
    """Generates the item's videos, k T h w 3 uint8, and writes them to ctx.workdir."""
    if item.model == "real":
        videos = np.stack([read_clip(c)["frames"] for c in item.clips])
    else:
        vae, latents = vae_on(cfg.model.vae, ctx.device), latents_of(cfg, item, ctx)
        videos = np.stack([decoded(vae, one) for one in latents.split(1)])
    file = folder_file(ctx.workdir, "videos.npz")
    np.savez_compressed(file, videos=videos)
    return Generated(item.name, item, file)


def latents_of(cfg: GenerateRun, item: EvalItem, ctx: Context) -> Tensor:
    """Returns the normalised latents of an item, b z t h w."""
    if item.model == "vae":
        return stacked([read_clip(c)["latents"] for c in item.clips], ctx.device)
    assert item.checkpoint is not None, "only real clips and the VAE's round trip need no weights"
    load = teacher_on if item.model == "teacher" else student_on
    net = load(item.checkpoint, ctx.device, ctx.dtype)
    cond = conditioning(item.clips, item.variant, cfg.model, ctx.seed, ctx.device)
    noise = clip_noise(item.clips, cfg.model, ctx.seed, ctx.device)
    if not isinstance(net, CausalDiT):
        return sample_teacher(net, cond, noise, cfg.generate.steps, cfg.generate.guidance, cfg.model)
    alone = [  # one by one: the noise between steps must not depend on the other clips of the batch
        student_rollout(net, one_of(cond, i), noise[i, None], seeded(ctx.seed, "steps", clip.clip_id))
        for i, clip in enumerate(item.clips)
    ]
    return torch.cat(alone)


def decoded(vae: VideoVAE | PatchVAE, latents: Tensor) -> np.ndarray:
    """Returns the video T H W 3 uint8 of one clip's latents, 1 z t h w. Parts leave the device as they are decoded."""
    return np.concatenate([to_uint8(part)[0] for part in vae.decode_parts(latents)])


def one_of(cond: Conditioning, i: int) -> Conditioning:
    """Returns the i-th item of a batch of conditionings as a batch of one."""
    return cond.each(lambda x: x[i, None])


def student_rollout(
    student: CausalDiT, cond: Conditioning, noise: Tensor, generator: torch.Generator, cfg: StudentConfig | None = None
) -> Tensor:
    """Returns the student's latents, b z t h w. cfg: replaces the student's own sink and window."""
    cfg = cfg or student.cfg.student
    times = flow.student_timesteps(cfg.steps, student.cfg.dit.shift)
    with torch.inference_mode():
        return rollout(student, cond, noise, times, cfg, generator).float()


def clip_noise(clips: Sequence[EvalClip], model: ModelConfig, seed: int, device: torch.device) -> Tensor:
    """Returns noise, b z t h w, sampled clip by clip."""
    shape = (model.vae.z_channels, model.latent_frames, model.latent_height, model.latent_width)
    return torch.stack([torch.randn(shape, generator=seeded(seed, "noise", c.clip_id)) for c in clips]).to(device)


def conditioning(
    clips: Sequence[EvalClip], variant: str, model: ModelConfig, seed: int, device: torch.device
) -> Conditioning:
    """Returns the conditioning of clips: their first frames, their text, and the tracks of the variant."""
    arrays = [read_clip(c) for c in clips]
    image = image_conditioning(stacked([a["image"] for a in arrays], device), model)
    maps = [tracks_of(c, variant, model, seed, device) for c in clips]
    text, image_tokens = stacked([a["text"] for a in arrays], device), clip_tokens(arrays, model, device)
    empty, negative = (optional(arrays, name, device) for name in ("empty_text", "negative_text"))
    cond = Conditioning(text, image, torch.cat(maps), image_tokens, null_text(empty, negative, model))
    return cond.without_tracks() if variant == "no_tracks" else cond


def clip_tokens(arrays: Sequence[Mapping[str, np.ndarray]], model: ModelConfig, device: torch.device) -> Tensor | None:
    """Returns Conditioning.image_tokens of clips from the arrays of their files, with the errors of `image_tokens`."""
    return image_tokens(optional(arrays, "clip", device), model)


def optional(arrays: Sequence[Mapping[str, np.ndarray]], name: str, device: torch.device) -> Tensor | None:
    """Returns an array of all clips as one float32 tensor; None unless every clip has it."""
    made = [a[name] for a in arrays if name in a]
    return stacked(made, device) if len(made) == len(arrays) else None


def tracks_of(clip: EvalClip, variant: str, model: ModelConfig, seed: int, device: torch.device) -> Tensor:
    """Returns Conditioning.tracks of one clip: 1 c t h w."""
    xy_px, visible = read_tracks(clip.track_file(variant))
    track_id_embedding = clip_ids(clip, xy_px.shape[1], model, seed).to(device)
    given = (torch.from_numpy(xy_px)[None].to(device), torch.from_numpy(visible)[None].to(device))
    return track_encoding.encode_tracks(*given, track_id_embedding, model)


def clip_ids(clip: EvalClip, tracks: int, model: ModelConfig, seed: int) -> Tensor:
    """Returns the track ids of a clip, the same in every variant: 1 n d."""
    return track_encoding.clip_ids(1, tracks, model, seeded(seed, "ids", clip.clip_id))


def stacked(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Returns the arrays as one float32 tensor on `device`."""
    return torch.from_numpy(np.stack(arrays)).float().to(device)


def to_uint8(video: Tensor) -> np.ndarray:
    """Returns video b 3 T H W in [-1, 1] as b T H W 3 uint8."""
    x = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(x, "b c T h w -> b T h w c").cpu().numpy()


@lru_cache(maxsize=1)
def vae_on(cfg: VAEConfig, device: torch.device) -> VideoVAE | PatchVAE:
    """Returns the VAE, frozen. A worker keeps it from item to item."""
    return load_vae(cfg).eval().requires_grad_(False).to(device)


class TransformerSlot:
    """Keeps one transformer from item to item. The one before is dropped before another is loaded."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._net: Any = None

    def get(self, load: Callable[[str], Net], checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Net:
        """Returns the transformer that load(checkpoint.folder) gives, frozen, as `dtype`."""
        key = (load, checkpoint.folder, checkpoint.digest, device, dtype)
        if key != self._key:
            self._key, self._net = (), None
            net = load(checkpoint.folder).eval().requires_grad_(False)
            self._key, self._net = key, net.to(device, dtype)
        kept: Net = self._net
        return kept


SLOT = TransformerSlot()  # of this worker: teacher and student take turns in it


def teacher_on(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> WanDiT:
    """Returns the teacher, frozen. A worker keeps it until another transformer is asked for."""
    return SLOT.get(load_teacher, checkpoint, device, dtype)


def student_on(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> CausalDiT:
    """Returns the student, frozen. A worker keeps it until another transformer is asked for."""
    return SLOT.get(load_student, checkpoint, device, dtype)


GENERATE = Stage("eval_generate", version=1, how="per_item", run=run, resources=Resources(gpus=1.0))
