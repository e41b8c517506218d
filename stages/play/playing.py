"""A student ready to be played: weights, decoder and encoders loaded once, streams opened from a picture, a prompt
and a seed.

Demo, offline twin and replay open their streams here, so that the same picture, seed, prompts and tracks give the same frames,
bit for bit on one machine with one number of threads.

Legend: b batch, l text tokens, m image tokens, c channels, H W pixels, T pixel frames, n tracks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from msmodel import flow
from msmodel.batch import image_conditioning
from msmodel.causal import CausalDiT
from msmodel.image_encoder import load_image_encoder
from msmodel.io.weights import (
    inference_dtype,
    load_student,
)
from msmodel.nano.patch_vae import PatchVAE
from msmodel.stream import ChunkStream, Controls, DecoderMaker
from msmodel.text import load_text_encoder
from msmodel.tiny_vae import load_tiny_vae
from msmodel.track_encoding import clip_ids
from msmodel.vae import VideoVAE, load_vae
from stages.records import Checkpoint

Encode = Callable[[Sequence[str]], Tensor]  # prompts -> b l c
Look = Callable[[Tensor], Tensor]  # frames b 3 H W in [-1, 1] -> b m c


@dataclass(frozen=True)
class Playable:
    """look: CLIP's tokens of a first frame, None for a student that does not read them. decoder: "vae" or "tiny". digest: of
    the student's weights. points: most tracks a stream may be asked to follow; the ids that are drawn, and so the frames,
    depend on it."""

    student: CausalDiT
    vae: VideoVAE | PatchVAE
    maker: DecoderMaker
    encode: Encode
    look: Look | None
    decoder: str
    digest: str
    points: int
    device: torch.device

    def open(self, frame: np.ndarray, prompt: str, seed: int, controls: Controls) -> ChunkStream:
        """A new stream from frame (H W 3 uint8). ValueError for a frame of another size than the student's."""
        model = self.student.cfg
        size = (model.clip.height, model.clip.width)
        if frame.shape != (*size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"the first frame is {frame.shape} {frame.dtype}; this student needs {(*size, 3)} uint8")
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.from_numpy(frame.copy()).to(self.device).permute(2, 0, 1)[None] / 127.5 - 1
        return ChunkStream(
            self.student,
            self.maker,
            controls,
            text=self.text(prompt),
            image=image_conditioning(self.vae.encode_image(pixels, model.clip.frames), model),
            image_tokens=self.look(pixels) if self.look else None,
            track_id_embedding=clip_ids(1, self.points, model, generator).to(self.device),
            timesteps=flow.student_timesteps(model.student.steps, model.dit.shift),
            generator=generator,
        )

    def text(self, prompt: str) -> Tensor:
        """1 l c."""
        return self.encode([prompt]).to(self.device)


def load_playable(
    student: Checkpoint, tiny_vae: Checkpoint | None, decoder: str, points: int, device: torch.device
) -> Playable:
    """decoder: "vae", "tiny", or "auto" for the faster: the tiny VAE where there is one and the VAE is Wan's; the nano
    VAE is as fast as its tiny one (docs/LOG.md). ValueError where weights cannot be read, or "tiny" is asked for and
    there is none."""
    net = load_student(student.folder).eval().requires_grad_(False).to(device, inference_dtype(device))
    vae = load_vae(net.cfg.vae).eval().requires_grad_(False).to(device)
    tiny = decoder == "tiny" or (decoder == "auto" and tiny_vae is not None and not isinstance(vae, PatchVAE))
    maker: DecoderMaker = vae
    if tiny:
        if tiny_vae is None:
            raise ValueError(
                "demo.decoder=tiny: this run has no tiny VAE; `make distill` trains one, demo.decoder=vae does without"
            )
        maker = load_tiny_vae(tiny_vae.folder).eval().requires_grad_(False).to(device)
    encoder = cache(lambda: load_text_encoder(net.cfg.text).to(device))  # its library alone takes seconds to import

    def encode(prompts: Sequence[str]) -> Tensor:
        return encoder().encode(prompts)

    look = cache(lambda: load_image_encoder(net.cfg.image_encoder, net.cfg.dit.clip_dim).to(device))

    def tokens(frames: Tensor) -> Tensor:
        return look().encode(frames)

    seen = tokens if net.cfg.dit.clip_dim else None
    return Playable(net, vae, maker, encode, seen, "tiny" if tiny else "vae", student.digest, points, device)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs what is inside with so many threads: sums are taken in another order with another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
