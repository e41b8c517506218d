"""The key-value cache of the causal student: what it stores, and why its size is bounded.

**Owner.** A `ChunkCache` belongs to one rollout or stream (`ChunkStream` makes one in `msmodel.rollout.start`; a fork
has its own). For every retained chunk it holds the self-attention keys and values of every layer. They are computed by
the clean pass at t = 0 over the finished chunk, and written by `write`. Keys and values of the prompt are not in this
cache: they are constant (`CausalDiT.text_keys_values`).

**What is kept.** The student's settings are chunk (c latent frames), sink S and window W (`StudentConfig`; the paper's
c3s1w1 is c = 3, S = 1, W = 1). Chunk i, counted from 0, attends to the set {0..S-1} + {i-W..i-1} + {i}. So there are S
sink slots, which are written once, and W window slots: chunk i >= S is written to slot (i - S) mod W and replaces its
content. With a prefix (the clean image latent that precedes the chunks, Wan 2.2) there is one more slot, of one frame,
which is kept like a sink.

**Memory is constant.** From chunk S + W on, for one video,

    bytes = 2 x layers x (S + W) x c x n x dim x bytes of the type

with 2 for keys and values, n tokens a latent frame and dim the model's width; a prefix adds 2 x layers x n x dim x
bytes of the type. `ChunkCache.bytes` is this figure. While a chunk is generated, `context` adds the rotated keys of the
window, and each layer joins its own keys and values when it attends. The attention of a chunk has (S + W + 1) c n keys
for each of its c n queries, whatever i is. So neither memory nor time grows with the length of the video.

**Positions.** Rotary positions are positions in the cache, not times since the start, so they never exceed those of
training. In chunks: sink j is at position j; the chunk being generated is at min(i, S + W); a window chunk j is at
min(i, S + W) - (i - j), which keeps its distance to the current chunk. A prefix has position 0 and moves all other
positions up by its frames. Window keys are stored unrotated, because their position changes with every chunk, and are
rotated when they are read. Sink and prefix keys are rotated once.

**References, not copies.** Writing a chunk replaces a reference in a dictionary. No tensor is shifted or written in
place, so autograd never sees a stale write, the order of slots carries no meaning, and a fork costs two small
dictionaries.

**Detached.** `write` and `write_prefix` detach their arguments. A training rollout's gradient therefore flows only
through the chunk being generated, never through context into earlier chunks.

Source: MotionStream, section 3.3 (attention sink, rolling cache, RoPE by cache position).

Legend: b batch, l tokens, a attention heads, d channels of one head.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from msmodel.attention import LayerKV
from msmodel.config import StudentConfig
from msmodel.rope import rotate, rotation


@dataclass(frozen=True)
class KV:
    """Keys and values of every layer for some latent frames, each (b l a d); unrotated unless stated otherwise."""

    layers: tuple[LayerKV, ...]

    def detach(self) -> KV:
        return KV(tuple(layer.detach() for layer in self.layers))

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)


@dataclass(frozen=True)
class Context:
    """The cached keys (*rotated*) and values that one chunk attends to.

    parts: of each slot; empty where there are none. A layer joins them when it attends, so that a context holds no copy:
    in training the backward pass keeps the context of every chunk. position: the cache position, in latent frames, of the
    chunk's first frame.
    """

    parts: tuple[KV, ...]
    position: int

    def layer(self, index: int) -> tuple[LayerKV, ...]:
        """Returns the keys and values of one layer, slot by slot."""
        return tuple(kv.layers[index] for kv in self.parts)

    @property
    def tokens(self) -> int:
        return sum(kv.layers[0].key.shape[1] for kv in self.parts)


class ChunkCache:
    """The keys and values of the sink and window chunks of one rollout, for any batch size.

    grid: (rows, columns) of tokens in a latent frame. prefix: latent frames that precede the chunks (0 or 1). Chunks
    are written in order, each once: `write(i, kv)`.
    """

    def __init__(self, student: StudentConfig, grid: tuple[int, int], prefix: int = 0):
        self.student = student
        self.grid = grid
        self.prefix = prefix
        self.reset()

    def reset(self) -> None:
        """Empties the cache, so that chunk 0 is written next."""
        self.written = 0
        self._pinned: dict[int, KV] = {}  # sinks (and the prefix, as -1), keys *rotated*: their position is fixed
        self._window: dict[int, tuple[int, KV]] = {}  # slot -> (chunk, unrotated keys and values)

    def fork(self) -> ChunkCache:
        """Returns an independent cache with the same content. Tensors are shared, as they are never written in place."""
        other = copy.copy(self)
        other._pinned, other._window = dict(self._pinned), dict(self._window)
        return other

    @property
    def bytes(self) -> int:
        """Returns the bytes of all stored keys and values."""
        return sum(kv.bytes for kv in self._pinned.values()) + sum(kv.bytes for _, kv in self._window.values())

    def attended(self, i: int) -> tuple[int, ...]:
        """Returns the earlier chunks that chunk i attends to, ascending."""
        s, w = self.student.sink, self.student.window
        return tuple(sorted(set(range(min(s, i))) | set(range(max(0, i - w), i))))

    def position(self, i: int, chunk: int | None = None) -> int:
        """Returns the cache position of `chunk` (of i itself if None) when chunk i reads it.

        It is the position, in latent frames, of the chunk's first frame.
        """
        s, w = self.student.sink, self.student.window
        j = i if chunk is None else chunk
        place = j if j < s else min(i, s + w) - (i - j)
        return self.prefix + place * self.student.chunk

    def write_prefix(self, kv: KV) -> None:
        """Stores the frames before the chunks, at position 0."""
        assert self.prefix and not self.written, "the prefix is written once, before the first chunk"
        self._pinned[-1] = self._rotated(kv.detach(), 0, self.prefix)

    def write(self, i: int, kv: KV) -> None:
        """Stores chunk i's clean, unrotated keys and values, detached. The chunk that leaves the window is replaced."""
        assert i == self.written, f"chunk {i} was written where {self.written} is next"
        s, w, frames = self.student.sink, self.student.window, self.student.chunk
        if i < s:
            self._pinned[i] = self._rotated(kv.detach(), self.position(i), frames)
        elif w:
            self._window[(i - s) % w] = (i, kv.detach())
        self.written += 1

    def refresh_sink(self) -> None:
        """Moves the newest chunks of the window into the sink slots, so that later chunks are anchored to them.

        Use it after the scene has changed (an open problem in the paper, section 7). Where the window holds fewer
        chunks than there are sinks, the last sink slots are replaced. Until such a chunk leaves the window it is
        attended to at both positions. Raises ValueError where there is no sink, or no chunk after the sinks yet.
        """
        s = self.student.sink
        newest = sorted(self._window.values(), key=lambda held: held[0])[-s:] if s else []
        if not newest:
            raise ValueError(
                "no chunk after the sinks to refresh them with" if s else "no sink to refresh: student.sink=0"
            )
        for place, (_, kv) in zip(range(s - len(newest), s), newest, strict=True):
            self._pinned[place] = self._rotated(kv, self.position(place), self.student.chunk)

    def context(self, i: int) -> Context:
        """Returns what chunk i attends to. Build it once a chunk: all denoising steps and the clean pass share it."""
        assert i == self.written, f"chunk {i}'s context was asked for when {self.written} chunks were written"
        parts = list(self._pinned.values())
        for chunk, kv in self._window.values():
            parts.append(self._rotated(kv, self.position(i, chunk), self.student.chunk))
        assert len(parts) == len(self.attended(i)) + bool(self.prefix), "the cache does not hold what is attended to"
        return Context(tuple(parts), self.position(i))

    def _rotated(self, kv: KV, position: int, frames: int) -> KV:
        first = kv.layers[0].key
        rope_freqs = rotation(range(position, position + frames), *self.grid, first.shape[-1], first)
        return KV(tuple(LayerKV(rotate(layer.key, rope_freqs), layer.value) for layer in kv.layers))


class AbsoluteCache(ChunkCache):
    """A cache whose rotary positions count from the start of the video and grow without bound.

    Source: Self Forcing, Huang et al. 2025.

    It serves for comparison: distances to a sink exceed those of training; without a sink nothing differs.
    """

    def position(self, i: int, chunk: int | None = None) -> int:
        return self.prefix + (i if chunk is None else chunk) * self.student.chunk
