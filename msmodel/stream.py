"""Streaming: endless frames, steered by controls that are read at the start of every chunk.

The sampler, the cache and the track encoding are those of training (`msmodel.rollout`, `msmodel.track_encoding`), so a
stream equals a rollout given the same noise and controls. Frames are returned right after the last denoising step and
the decoding. The clean pass that fills the cache runs afterwards, before the next chunk (or in `settle`, while the
frames are shown), or concurrently with the decoding: both need the finished latents, and neither needs the other.

Legend: b batch (1), z latent channels, t latent frames, h w latent size, T pixel frames, H W pixels, n tracks, d id
dimension, l text tokens, c channels.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from msmodel.batch import Conditioning
from msmodel.cache import ChunkCache, Context
from msmodel.causal import CausalDiT, TextKV
from msmodel.config import StudentConfig
from msmodel.rollout import fresh_noise, generate_chunk, start
from msmodel.track_encoding import EncoderMaker, TrackEncoder

# controls(chunk index, first pixel frame, pixel frames T) -> xy_px (T n 2) float32, visible (T n) bool
Controls = Callable[[int, int, int], tuple[Tensor, Tensor]]


class Decoder(Protocol):
    """A decoder of one stream of latents, with the state that this needs."""

    def push(self, latents: Tensor) -> Tensor:
        """Returns the frames (b 3 T H W) in [-1, 1] of the next latents (b z t h w)."""
        ...


class DecoderMaker(Protocol):
    """A VAE or tiny VAE that makes decoders, which share its weights."""

    def decoder(self) -> Decoder: ...


@dataclass(frozen=True)
class StreamChunk:
    """One generated chunk.

    latents: b z t h w. frames: T H W 3 uint8, on the CPU. Seconds are wall clock, device-synchronised.

    seconds_dit: from the reading of the controls to x_0, and the clean pass of the previous chunk where that was still
    to do.
    """

    index: int
    latents: Tensor
    frames: Tensor
    seconds_dit: float
    seconds_decode: float


@dataclass(frozen=True)
class Denoised:
    """A chunk before decoding. latents: b z t h w, including the separate image latent. seconds_dit: as in StreamChunk."""

    index: int
    latents: Tensor
    seconds_dit: float


@dataclass(frozen=True)
class _Unsettled:
    """A finished chunk whose keys and values are not in the cache yet."""

    latents: Tensor
    cond: Conditioning
    context: Context
    text: TextKV


class ChunkStream:
    """A stream of one endless clip. Memory, and work per chunk, do not grow.

    vae: makes the decoder.
    text (1 l c), image (1 c t h w): as in Conditioning, the image for the horizon; beyond it the last frame is repeated
    (the causal VAE's latents of an unchanging clip converge).
    track_id_embedding (1 n d): the ids of `track_encoding.clip_ids`, kept for the entire session; controls may return
    fewer than n tracks.
    generator: samples all noise.
    noise (1 z t h w): optional starting noise of the first t latent frames.
    student_cfg: sink and window, if not the model's.
    track_vae: encodes the tracks' canvas where dit.track_encoding is "rgb_vae"; the model's own VAE if None.
    image_tokens (1 m c): as in Conditioning, kept for the entire session.
    """

    def __init__(
        self,
        student: CausalDiT,
        vae: DecoderMaker,
        controls: Controls,
        *,
        text: Tensor,
        image: Tensor,
        track_id_embedding: Tensor,
        timesteps: Sequence[float],
        generator: torch.Generator,
        noise: Tensor | None = None,
        student_cfg: StudentConfig | None = None,
        track_vae: EncoderMaker | None = None,
        image_tokens: Tensor | None = None,
    ):
        self.student, self.vae, self.controls = student, vae, controls
        self.image, self.track_id_embedding, self.timesteps, self.generator, self.noise = (
            image,
            track_id_embedding,
            tuple(timesteps),
            generator,
            noise,
        )
        self.cfg = student_cfg or student.cfg.student
        self._check()
        self._first_state, self._track_vae = generator.get_state(), track_vae
        self._text, self._image_tokens = text, image_tokens
        self._settle_stream: torch.cuda.Stream | None = None
        self.reset()

    def _check(self) -> None:
        if self.image.shape[0] != 1 or self.track_id_embedding.shape[0] != 1:
            raise ValueError(
                f"a session streams one clip; got image {tuple(self.image.shape)} and track_id_embedding "
                f"{tuple(self.track_id_embedding.shape)}"
            )
        if not self.timesteps or self.timesteps[0] != 1:
            raise ValueError(f"timesteps {self.timesteps} must start at 1 (pure noise)")

    @torch.no_grad()
    def reset(self) -> None:
        """Returns to chunk 0 with an empty cache, a fresh decoder and the generator's first state; the text is kept."""
        self.generator.set_state(self._first_state)
        self.decoder = self.vae.decoder()
        self._tracks = TrackEncoder(self.student.cfg, self.image.device, self._track_vae)
        self.index = 0
        self._cache: ChunkCache | None = None
        self._unsettled: _Unsettled | None = None
        self.set_text(self._text)

    @torch.no_grad()
    def set_text(self, text: Tensor) -> None:
        """Sets another prompt (1 l c), from the next chunk on.

        Cached chunks were generated with the old one and stay cached.
        """
        self._text = text
        self._text_kv = self.student.text_keys_values(text, self._image_tokens)

    @torch.no_grad()
    def refresh_sink(self) -> None:
        """Anchors later chunks to the newest chunks in place of the first ones.

        Raises ValueError as ChunkCache.refresh_sink does, and before the first chunk.
        """
        if self._cache is None:
            raise ValueError("no chunk yet to refresh the sink with")
        self.settle()
        self._cache.refresh_sink()

    def fork(self) -> ChunkStream:
        """Returns an independent session that continues from the current state; weights are shared."""
        other = copy.copy(self)
        other.generator = torch.Generator(self.generator.device)
        other.generator.set_state(self.generator.get_state())
        other._cache = None if self._cache is None else self._cache.fork()
        shared = self.vae.modules() if isinstance(self.vae, nn.Module) else [self.vae]
        other.decoder = copy.deepcopy(self.decoder, {id(part): part for part in shared})
        other._tracks = self._tracks.fork()
        return other

    @property
    def cache_bytes(self) -> int:
        """Returns the bytes of keys and values held between chunks."""
        return 0 if self._cache is None else self._cache.bytes

    def stream(self) -> Iterator[StreamChunk]:
        """Yields chunks without end."""
        while True:
            yield self.next_chunk()

    @torch.no_grad()
    def settle(self) -> None:
        """Runs the pending clean pass of the last chunk. `next_chunk` calls it where it has not run before."""
        if self._unsettled is None:
            return
        assert self._cache is not None
        last, self._unsettled = self._unsettled, None
        self._cache.write(self.index - 1, self.student.clean_pass(last.latents, last.cond, last.context, last.text))

    def next_chunk(self, concurrently: bool = False) -> StreamChunk:
        """Reads the controls, generates one chunk and decodes it.

        concurrently: run the clean pass of the chunk as well, as `decode_and_settle` does.
        """
        chunk = self.denoise()
        return self.decode_and_settle(chunk) if concurrently else self.decode(chunk)

    @torch.no_grad()
    def denoise(self) -> Denoised:
        """Reads the controls and generates one chunk's latents. `decode` must be called with every chunk, in order."""
        begun = self._now()
        self.settle()
        prefix = int(self.student.cfg.image_alone)
        first = prefix + self.index * self.cfg.chunk
        stop = first + self.cfg.chunk
        cond = self._conditioning(0 if self.index == 0 else first, stop)
        lead = []  # the image's own latent frame, which is returned with chunk 0 where it precedes the chunks
        if self._cache is None:
            self._cache = start(self.student, cond, self.cfg, self._text_kv)
            lead = [cond.image[:, :, :prefix]] if prefix else []
        own = cond.frames(cond.tracks.shape[2] - self.cfg.chunk, cond.tracks.shape[2])
        context = self._cache.context(self.index)
        x0 = generate_chunk(
            self.student, self._noise(first, stop), own, context, self.timesteps, self.generator, text=self._text_kv
        )
        self._unsettled = _Unsettled(x0, own, context, self._text_kv)
        self.index += 1
        return Denoised(self.index - 1, torch.cat([*lead, x0], dim=2), self._now() - begun)

    @torch.no_grad()
    def decode(self, chunk: Denoised) -> StreamChunk:
        """Returns the frames of a chunk of `denoise`."""
        begun = self._now()
        frames = _to_uint8(self.decoder.push(chunk.latents)).cpu()
        return StreamChunk(chunk.index, chunk.latents, frames, chunk.seconds_dit, time.perf_counter() - begun)

    @torch.no_grad()
    def decode_and_settle(self, chunk: Denoised) -> StreamChunk:
        """Runs `decode` and, on a GPU, concurrently the clean pass.

        The clean pass runs on a separate CUDA stream, so that frames do not wait for it.

        On a CPU the clean pass is left to `settle`: two threads that share the cores return the frames later and end no
        earlier (docs/LOG.md).
        """
        if not chunk.latents.is_cuda:
            return self.decode(chunk)
        begun, main = self._now(), torch.cuda.current_stream(self.image.device)
        denoised, held = main.record_event(), self._unsettled
        frames = _to_uint8(self.decoder.push(chunk.latents))  # queued, not awaited
        if self._settle_stream is None:
            self._settle_stream = torch.cuda.Stream(self.image.device)
        self._settle_stream.wait_event(denoised)
        with torch.cuda.stream(self._settle_stream):
            self.settle()
        out = StreamChunk(chunk.index, chunk.latents, frames.cpu(), chunk.seconds_dit, time.perf_counter() - begun)
        main.wait_stream(self._settle_stream)
        del held  # the clean pass reads memory of the main stream: not freed before that stream waits for the pass
        return out

    def _conditioning(self, first: int, stop: int) -> Conditioning:
        """Returns text, image and tracks of latent frames first..stop-1, with the controls' tracks of their pixel frames."""
        stride = self.student.cfg.vae.stride_t
        first_pixel = 0 if first == 0 else 1 + (first - 1) * stride
        wanted = 1 + (stop - 1) * stride - first_pixel
        xy_px, visible = self.controls(self.index, first_pixel, wanted)
        n = visible.shape[-1]
        if xy_px.shape != (wanted, n, 2) or visible.shape != (wanted, n) or n > self.track_id_embedding.shape[1]:
            raise ValueError(
                f"controls gave xy_px {tuple(xy_px.shape)}, visible {tuple(visible.shape)} for {wanted} pixel frames; "
                f"expected (T n 2) and (T n) with at most {self.track_id_embedding.shape[1]} tracks"
            )
        xy_px, visible = xy_px.to(self.image.device), visible.to(self.image.device)
        tracks = self._tracks.push(xy_px[None], visible[None], self.track_id_embedding[:, :n])
        last = self.image.shape[2] - 1
        image = self.image[:, :, [min(f, last) for f in range(first, stop)]]
        return Conditioning(self._text, image, tracks.to(image.dtype), self._image_tokens)

    def _noise(self, first: int, stop: int) -> Tensor:
        if self.noise is not None and stop <= self.noise.shape[2]:
            return self.noise[:, :, first:stop]
        cfg = self.student.cfg
        shape = (1, cfg.vae.z_channels, stop - first, *self.image.shape[-2:])
        return fresh_noise(self.image.new_empty(shape), self.generator)

    def _now(self) -> float:
        if self.image.is_cuda:
            torch.cuda.synchronize(self.image.device)
        return time.perf_counter()


def _to_uint8(frames: Tensor) -> Tensor:
    """Converts frames (1 3 T H W) in [-1, 1] to (T H W 3) uint8 on their device."""
    return rearrange(((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), "1 c T h w -> T h w c")
