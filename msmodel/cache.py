"""The rolling key-value cache of the causal student: sinks, a window, and rotary positions that never grow.

Functional: the cache holds references to detached tensors; writing a chunk replaces a reference, nothing is copied or
shifted in place. So autograd never sees a stale write, a fork is a copy of two dicts, and the order of slots carries
no meaning: every chunk has a logical position, a Python integer.

Chunk i (from 0) attends to {0..S-1} + {i-W..i-1} + {i}, as a set. Positions, in chunks: the current chunk sits at
min(i, S+W); a sink j at j; a window chunk j as far before the current one as it was made before it, i - j. With a
prefix (the clean image latent alone before the chunks, Wan 2.2) everything moves up by its frames; the prefix keeps
position 0 and is attended to like a sink.

Source: MotionStream, section 3.3 (attention sink, rolling cache, RoPE by cache position).

Legend: b batch, l tokens, a attention heads, d channels of one head.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from msmodel.attention import LayerKV
from msmodel.config import StudentConfig
from msmodel.rope import rotate, rotation


@dataclass(frozen=True)
class KV:
    """Unrotated keys and values of every layer for some latent frames, each (b l a d)."""

    layers: tuple[LayerKV, ...]

    def detach(self) -> KV:
        return KV(tuple(layer.detach() for layer in self.layers))

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)


@dataclass(frozen=True)
class Context:
    """What one chunk attends to besides itself: *rotated* keys, and values, for every layer; no layers if nothing.

    position: the cache position, in latent frames, of the chunk's first frame.
    """

    layers: tuple[LayerKV, ...]
    position: int

    def layer(self, index: int) -> LayerKV | None:
        return self.layers[index] if self.layers else None

    @property
    def tokens(self) -> int:
        return self.layers[0].key.shape[1] if self.layers else 0


class ChunkCache:
    """Keys and values of the retained chunks of one rollout, for any batch size.

    grid: (rows, columns) of tokens in a latent frame. prefix: latent frames that stand alone before the chunks (0 or 1).
    Chunks are written in order, each once: `write(i, kv)`.
    """

    def __init__(self, student: StudentConfig, grid: tuple[int, int], prefix: int = 0):
        self.student = student
        self.grid = grid
        self.prefix = prefix
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.written = 0
        self._pinned: dict[int, KV] = {}  # sinks (and the prefix, as -1) with *rotated* keys: they never move again
        self._window: dict[int, tuple[int, KV]] = {}  # slot -> (chunk, unrotated keys and values)

    def fork(self) -> ChunkCache:
        """An independent cache with the same content; tensors are shared, as nobody writes into them."""
        other = copy.copy(self)
        other._pinned, other._window = dict(self._pinned), dict(self._window)
        return other

    @property
    def bytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(kv.bytes for kv in self._pinned.values()) + sum(kv.bytes for _, kv in self._window.values())

    def attended(self, i: int) -> tuple[int, ...]:
        """The earlier chunks that chunk i attends to, ascending."""
        s, w = self.student.sink, self.student.window
        return tuple(sorted(set(range(min(s, i))) | set(range(max(0, i - w), i))))

    def position(self, i: int, chunk: int | None = None) -> int:
        """Cache position, in latent frames, of the first frame of `chunk` (of i itself if None) as seen by chunk i."""
        s, w = self.student.sink, self.student.window
        j = i if chunk is None else chunk
        place = j if j < s else min(i, s + w) - (i - j)
        return self.prefix + place * self.student.chunk

    def write_prefix(self, kv: KV) -> None:
        """Keep the frames before the chunks, at position 0 for good."""
        assert self.prefix and not self.written, "the prefix is written once, before the first chunk"
        self._pinned[-1] = self._rotated(kv.detach(), 0, self.prefix)

    def write(self, i: int, kv: KV) -> None:
        """Keep chunk i's clean, unrotated keys and values (detached). A slot that falls out of the window is replaced."""
        assert i == self.written, f"chunk {i} written where {self.written} is next"
        s, w, frames = self.student.sink, self.student.window, self.student.chunk
        if i < s:
            self._pinned[i] = self._rotated(kv.detach(), self.position(i), frames)
        elif w:
            self._window[(i - s) % w] = (i, kv.detach())
        self.written += 1

    def refresh_sink(self) -> None:
        """The newest chunks of the window take the sinks' places: what the video is anchored to from now on, as when the scene
        has changed (an open problem in the paper, section 7). With fewer of them than sinks, the last places change.

        Until it leaves the window such a chunk is attended to at both positions. Raises ValueError where there is no sink,
        or no chunk after the sinks yet.
        """
        s = self.student.sink
        newest = sorted(self._window.values(), key=lambda held: held[0])[-s:] if s else []
        if not newest:
            raise ValueError("no sink to refresh" if not s else "no chunk after the sinks to refresh them with")
        for place, (_, kv) in zip(range(s - len(newest), s), newest, strict=True):
            self._pinned[place] = self._rotated(kv, self.position(place), self.student.chunk)

    def context(self, i: int) -> Context:
        """What chunk i attends to. Build it once a chunk; all denoising steps and the clean pass share it."""
        assert i == self.written, f"context of chunk {i} asked for with {self.written} chunks written"
        parts = list(self._pinned.values())
        for chunk, kv in self._window.values():
            parts.append(self._rotated(kv, self.position(i, chunk), self.student.chunk))
        assert len(parts) == len(self.attended(i)) + bool(self.prefix), "the cache does not hold what is attended to"
        return Context(_joined(parts), self.position(i))

    def _rotated(self, kv: KV, position: int, frames: int) -> KV:
        first = kv.layers[0].key
        rope_freqs = rotation(range(position, position + frames), *self.grid, first.shape[-1], first)
        return KV(tuple(LayerKV(rotate(layer.key, rope_freqs), layer.value) for layer in kv.layers))


class AbsoluteCache(ChunkCache):
    """The same cache with rotary positions that count from the start of the video and grow for ever (Self Forcing, Huang et
    al. 2025): for comparison. Distances to a sink then grow beyond all that training showed; without one nothing differs."""

    def position(self, i: int, chunk: int | None = None) -> int:
        return self.prefix + (i if chunk is None else chunk) * self.student.chunk


def _joined(parts: list[KV]) -> tuple[LayerKV, ...]:
    """Layer by layer, the tokens of all parts one after the other."""
    if len(parts) < 2:
        return parts[0].layers if parts else ()

    def join(tensors: tuple[Tensor, ...]) -> Tensor:
        return torch.cat(tensors, dim=1)

    by_layer = zip(*(kv.layers for kv in parts), strict=True)
    return tuple(LayerKV(*(join(tensors) for tensors in zip(*layer, strict=True))) for layer in by_layer)
