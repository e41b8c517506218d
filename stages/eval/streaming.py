"""Endless streams of one held-out clip, for SPEED and LONG_RUN: msmodel's ChunkStream, exactly as the demo runs it.

The clip's own tracks are played forward and backward endlessly, so that a long run has targets at every frame.

Legend: z latent channels, t latent frames, h w latent size, T frames, n tracks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from msmodel import flow
from msmodel.batch import image_conditioning
from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig, StudentConfig
from msmodel.points import ping_pong
from msmodel.stream import ChunkStream, Decoder, DecoderMaker, StreamChunk
from stages.eval.generate import clip_ids, clip_tokens, stacked
from stages.eval.items import EvalClip, read_clip, read_tracks


class NoDecoder:
    """Replaces a VAE where only the transformer is timed. It decodes to one pixel."""

    def decoder(self) -> Decoder:
        return self

    def push(self, latents: Tensor) -> Tensor:
        return torch.zeros(1, 3, 1, 1, 1)


@dataclass(frozen=True)
class ClipStream:
    """The inputs of a stream of one clip, read once.

    image: 1 c t h w. image_tokens: as in Conditioning. track_id_embedding: 1 n d. xy_px: T n 2. visible: T n.
    """

    student: CausalDiT
    text: Tensor
    image: Tensor
    track_id_embedding: Tensor
    xy_px: Tensor
    visible: Tensor
    image_tokens: Tensor | None = None

    def session(
        self, vae: DecoderMaker, generator: torch.Generator, setting: StudentConfig | None = None
    ) -> ChunkStream:
        """Returns a new stream. setting: replaces the student's own sink and window."""
        cfg = setting or self.student.cfg.student
        times = flow.student_timesteps(cfg.steps, self.student.cfg.dit.shift)
        return ChunkStream(
            self.student,
            vae,
            self.controls,
            text=self.text,
            image=self.image,
            image_tokens=self.image_tokens,
            track_id_embedding=self.track_id_embedding,
            timesteps=times,
            generator=generator,
            student_cfg=cfg,
        )

    def controls(self, index: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Returns the clip's tracks, played back and forth, for `count` pixel frames from `first` on."""
        at = torch.from_numpy(ping_pong(len(self.xy_px), first + count, first))
        return self.xy_px[at], self.visible[at]


def clip_stream(student: CausalDiT, clip: EvalClip, model: ModelConfig, seed: int, device: torch.device) -> ClipStream:
    """Reads the inputs of a stream of one clip."""
    arrays = read_clip(clip)
    xy_px, visible = read_tracks(clip.track_file("tracks"))
    return ClipStream(
        student,
        stacked([arrays["text"]], device),
        image_conditioning(stacked([arrays["image"]], device), model),
        clip_ids(clip, xy_px.shape[1], model, seed).to(device),
        torch.from_numpy(xy_px),
        torch.from_numpy(visible),
        clip_tokens([arrays], model, device),
    )


def chunks_of(session: ChunkStream, count: int) -> list[StreamChunk]:
    """Returns the next `count` chunks."""
    return [session.next_chunk() for _ in range(count)]


def first_frame_seconds(stream: ClipStream, vae: DecoderMaker, generator: torch.Generator) -> tuple[float, ChunkStream]:
    """Returns the seconds from opening a stream to its first frames on the CPU, and the stream after its first chunk."""
    began = time.perf_counter()  # frames arrive on the CPU: the device has finished by then
    session = stream.session(vae, generator)
    session.next_chunk()
    return time.perf_counter() - began, session


def frames_in(chunks: int, model: ModelConfig) -> int:
    """Returns the number of pixel frames of a stream of `chunks` chunks."""
    return 1 + (int(model.image_alone) + chunks * model.student.chunk - 1) * model.vae.stride_t


def filled_after(cfg: StudentConfig) -> int:
    """Returns the number of chunks until the cache is full; from then on every chunk does the same work."""
    return cfg.sink + cfg.window + 1
