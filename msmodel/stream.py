"""Streaming: frames for ever, steered by controls that are read at the start of every chunk.

The sampler, the cache and the track encoding are those of training (`msmodel.rollout`, `msmodel.track_encoding`), so a stream
equals a rollout given the same noise and controls. Frames leave right after the last denoising step and the decoding; the
clean pass that fills the cache runs afterwards, before the next chunk (or in `settle`, while the frames are shown), or beside
the decoding: both need the finished latents and nothing of each other.

Legend: b batch (1), z latent channels, t latent frames, h w latent size, T pixel frames, H W pixels, n tracks,
d id dimension, l text tokens, c channels.
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
    """One stream of latents to frames, with the state that this takes."""

    def push(self, latents: Tensor) -> Tensor:
        """The next latents (b z t h w) -> their frames (b 3 T H W) in [-1, 1]."""
        ...


class DecoderMaker(Protocol):
    """A VAE or tiny VAE: makes decoders that share its weights."""

    def decoder(self) -> Decoder: ...


@dataclass(frozen=True)
class StreamChunk:
    """latents: b z t h w. frames: T H W 3 uint8, on the CPU. Seconds are wall clock, device-synchronised.

    seconds_dit: from the controls being read to x_0, plus the clean pass that the previous chunk left behind.
    """

    index: int
    latents: Tensor
    frames: Tensor
    seconds_dit: float
    seconds_decode: float


@dataclass(frozen=True)
class Denoised:
    """A chunk that has no pixels yet. latents: b z t h w, the lone image latent included. seconds_dit: as in StreamChunk."""

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
    """One endless clip. Memory, and work per chunk, do not grow.

    vae: makes the decoder. text (1 l c), image (1 c t h w): as in Conditioning, the image for the horizon; beyond it
    the last frame is repeated (the causal VAE's latents of an unchanging clip converge). track_id_embedding (1 n d): the ids of
    `track_encoding.clip_ids`, kept for the whole session; controls may return fewer than n tracks. generator draws all noise.
    noise (1 z t h w): optional starting noise of the first t latent frames. student_cfg: sink and window, if not the model's.
    track_vae: encodes the tracks' canvas where dit.track_encoding is "rgb_vae"; the model's own VAE if None. image_tokens
    (1 m c): as
    in Conditioning, kept for the whole session.
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
        self._beside: torch.cuda.Stream | None = None
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
        """Back to chunk 0 with an empty cache, a fresh decoder and the generator's first state; text is kept."""
        self.generator.set_state(self._first_state)
        self.decoder = self.vae.decoder()
        self._tracks = TrackEncoder(self.student.cfg, self.image.device, self._track_vae)
        self.index = 0
        self._cache: ChunkCache | None = None
        self._unsettled: _Unsettled | None = None
        self.set_text(self._text)

    @torch.no_grad()
    def set_text(self, text: Tensor) -> None:
        """Another prompt (1 l c), from the next chunk on. What is cached was made under the old one and stays."""
        self._text = text
        self._text_kv = self.student.text_keys_values(text, self._image_tokens)

    @torch.no_grad()
    def refresh_sink(self) -> None:
        """Anchor what follows to the newest chunks in place of the first ones (ChunkCache.refresh_sink, and its errors)."""
        if self._cache is None:
            raise ValueError("no chunk yet to refresh the sink with")
        self.settle()
        self._cache.refresh_sink()

    def fork(self) -> ChunkStream:
        """An independent session that goes on from here with the same content; weights are shared."""
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
        """Bytes of keys and values held between chunks."""
        return 0 if self._cache is None else self._cache.bytes

    def stream(self) -> Iterator[StreamChunk]:
        """Chunks for ever; stop by no longer asking."""
        while True:
            yield self.next_chunk()

    @torch.no_grad()
    def settle(self) -> None:
        """Run the clean pass that the last chunk left behind; `next_chunk` does it if nobody did before."""
        if self._unsettled is None:
            return
        assert self._cache is not None
        last, self._unsettled = self._unsettled, None
        self._cache.write(self.index - 1, self.student.clean_pass(last.latents, last.cond, last.context, last.text))

    def next_chunk(self, beside: bool = False) -> StreamChunk:
        """Read the controls, generate one chunk and decode it. beside: settle it as well, as in `decode_and_settle`."""
        chunk = self.denoise()
        return self.decode_and_settle(chunk) if beside else self.decode(chunk)

    @torch.no_grad()
    def denoise(self) -> Denoised:
        """Read the controls and generate one chunk's latents. `decode` must see every chunk, in order."""
        begun = self._now()
        self.settle()
        prefix = int(self.student.cfg.image_alone)
        first = prefix + self.index * self.cfg.chunk
        stop = first + self.cfg.chunk
        cond = self._conditioning(0 if self.index == 0 else first, stop)
        lead = []  # the image's own latent frame, which leaves with chunk 0 where it stands alone
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
        """The frames of the chunk that `denoise` gave."""
        begun = self._now()
        frames = _to_uint8(self.decoder.push(chunk.latents)).cpu()
        return StreamChunk(chunk.index, chunk.latents, frames, chunk.seconds_dit, time.perf_counter() - begun)

    @torch.no_grad()
    def decode_and_settle(self, chunk: Denoised) -> StreamChunk:
        """`decode`, with the clean pass beside it on a GPU, on a stream of its own: frames do not wait for it.

        On a CPU the clean pass is left for `settle`: two threads that share the cores bring the frames later and end no earlier
        (docs/LOG.md).
        """
        if not chunk.latents.is_cuda:
            return self.decode(chunk)
        begun, main = self._now(), torch.cuda.current_stream(self.image.device)
        denoised, held = main.record_event(), self._unsettled
        frames = _to_uint8(self.decoder.push(chunk.latents))  # queued, not awaited
        if self._beside is None:
            self._beside = torch.cuda.Stream(self.image.device)
        self._beside.wait_event(denoised)
        with torch.cuda.stream(self._beside):
            self.settle()
        out = StreamChunk(chunk.index, chunk.latents, frames.cpu(), chunk.seconds_dit, time.perf_counter() - begun)
        main.wait_stream(self._beside)
        del held  # what the clean pass reads was allocated on the main stream: not given back before that waits for it
        return out

    def _conditioning(self, first: int, stop: int) -> Conditioning:
        """Text, image and tracks of latent frames first..stop-1; asks the controls for their pixel frames."""
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
    """Frames (1 3 T H W) in [-1, 1] -> (T H W 3) uint8 on their device."""
    return rearrange(((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), "1 c T h w -> T h w c")
