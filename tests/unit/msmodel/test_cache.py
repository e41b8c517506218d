"""The rolling cache's bookkeeping: who is attended to, where it sits, what is held."""

from __future__ import annotations

import pytest
import torch

from msmodel.attention import LayerKV
from msmodel.cache import KV, ChunkCache, Context
from msmodel.config import StudentConfig
from tests.unit.msmodel.reference import place

LAYOUTS = [(s, w) for s in (0, 1, 2, 3) for w in (0, 1, 2, 3)]


def cache_of(sink: int, window: int, prefix: int = 0, chunk: int = 2) -> ChunkCache:
    return ChunkCache(StudentConfig(chunk=chunk, sink=sink, window=window), (1, 2), prefix)


def kv(seed: int, frames: int = 2, batch: int = 1) -> KV:
    g = torch.Generator().manual_seed(seed)
    tensors = (torch.randn(batch, frames * 2, 2, 8, generator=g, dtype=torch.float64) for _ in range(4))
    key, value, key_2, value_2 = tensors
    return KV((LayerKV(key, value), LayerKV(key_2, value_2)))


@pytest.mark.parametrize(("sink", "window"), LAYOUTS)
def test_attended_set_and_positions_follow_the_definition(sink, window):
    cache = cache_of(sink, window, prefix=1)
    for i in range(15):
        expected = {j: p for j in range(i) if (p := place(j, i, sink, window)) is not None}
        assert cache.attended(i) == tuple(expected)
        assert {j: (cache.position(i, j) - 1) // 2 for j in expected} == expected
        assert cache.position(i) == 1 + 2 * min(i, sink + window)


def keys(context: Context) -> torch.Tensor:
    """The keys of the first layer, of all slots."""
    return torch.cat([part.key for part in context.layer(0)], dim=1)


@pytest.mark.parametrize(("sink", "window"), LAYOUTS)
@pytest.mark.parametrize("prefix", [0, 1])
def test_context_holds_exactly_the_attended_values(sink, window, prefix):
    cache = cache_of(sink, window, prefix)
    if prefix:
        cache.write_prefix(kv(100, frames=1))
    for i in range(12):
        context = cache.context(i)
        chunks = [kv(j) for j in cache.attended(i)] + [kv(100, frames=1)] * prefix
        assert context.tokens == sum(c.layers[0].value.shape[1] for c in chunks)
        assert len(context.parts) == len(chunks)
        for layer in range(2 if chunks else 0):
            held = {tuple(row) for part in context.layer(layer) for row in part.value.flatten(2)[0].tolist()}
            assert held == {tuple(row) for c in chunks for row in c.layers[layer].value.flatten(2)[0].tolist()}
        cache.write(i, kv(i))


def test_sink_keys_never_change_and_steady_state_is_constant():
    cache = cache_of(sink=2, window=2)
    bytes_held, tokens, sinks = [], [], []
    for i in range(14):
        context = cache.context(i)
        if i >= 4:
            bytes_held.append(cache.bytes)
            tokens.append(context.tokens)
            sinks.append([(kv.layers[0].key.data_ptr(), kv.layers[0].key.clone()) for kv in cache._pinned.values()])
        cache.write(i, kv(i))
    assert len(set(bytes_held)) == len(set(tokens)) == 1
    for later in sinks[1:]:
        for (pointer, key), (first_pointer, first_key) in zip(later, sinks[0], strict=True):
            assert pointer == first_pointer
            assert torch.equal(key, first_key)


def test_window_slots_keep_references_not_copies():
    cache, written = cache_of(sink=1, window=2), {}
    for i in range(9):
        written[i] = kv(i)
        cache.write(i, written[i])
    for chunk, held in cache._window.values():
        assert held.layers[1].key.data_ptr() == written[chunk].layers[1].key.data_ptr()
    assert sorted(chunk for chunk, _ in cache._window.values()) == [7, 8]


def test_a_context_copies_nothing_but_the_keys_that_it_rotates():
    """In training the backward pass keeps every chunk's context; copies of sinks and values were most of its memory."""
    cache = cache_of(sink=1, window=2)
    for i in range(5):
        cache.write(i, kv(i))
    stored = [*cache._pinned.values(), *(held for _, held in cache._window.values())]
    for layer in range(2):
        for slot, part in enumerate(cache.context(5).layer(layer)):
            assert part.value.data_ptr() == stored[slot].layers[layer].value.data_ptr()
            assert (part.key.data_ptr() == stored[slot].layers[layer].key.data_ptr()) == (slot == 0)


def test_written_tensors_are_detached():
    cache, source = cache_of(sink=1, window=1), kv(0)
    for layer in source.layers:
        layer.key.requires_grad_(), layer.value.requires_grad_()
    cache.write(0, source)
    cache.write(1, source)
    context = cache.context(2)
    assert not any(t.requires_grad for kv in context.parts for layer in kv.layers for t in layer)


def test_a_fork_goes_its_own_way_and_reset_forgets():
    cache = cache_of(sink=1, window=1)
    for i in range(3):
        cache.write(i, kv(i))
    fork = cache.fork()
    before = cache.context(3)
    fork.write(3, kv(50))
    assert torch.equal(keys(cache.context(3)), keys(before))
    cache.write(3, kv(51))
    assert not torch.equal(keys(cache.context(4)), keys(fork.context(4)))
    fork.reset()
    assert (fork.bytes, fork.written, fork.context(0).parts) == (0, 0, ())
    assert cache.bytes > 0


def test_writing_out_of_order_is_an_error():
    cache = cache_of(sink=1, window=1)
    cache.write(0, kv(0))
    with pytest.raises(AssertionError, match="chunk 2"):
        cache.write(2, kv(2))
    with pytest.raises(AssertionError, match="chunk 0"):
        cache.write(0, kv(0))


@pytest.mark.parametrize(("sink", "window", "places"), [(1, 1, [5]), (2, 3, [4, 5]), (2, 1, [0, 5]), (1, 3, [5])])
def test_a_refreshed_sink_holds_the_newest_chunks_at_the_sinks_positions(sink, window, places):
    cache = cache_of(sink, window)
    for i in range(6):
        cache.write(i, kv(i))
    before = cache.bytes
    untouched = cache.fork()
    cache.refresh_sink()
    for slot, chunk in enumerate(places):
        expected = cache._rotated(kv(chunk), 2 * slot, 2)
        torch.testing.assert_close(cache._pinned[slot].layers[0].key, expected.layers[0].key)
        assert torch.equal(cache._pinned[slot].layers[0].value, kv(chunk).layers[0].value)
    assert cache.bytes == before
    assert not torch.equal(keys(cache.context(6)), keys(untouched.context(6)))
    cache.write(6, kv(6))
    assert cache.context(7).tokens == untouched.context(6).tokens


@pytest.mark.parametrize(("sink", "window", "written"), [(0, 1, 3), (1, 1, 1), (1, 0, 4), (1, 1, 0)])
def test_a_sink_that_cannot_be_refreshed_is_an_error(sink, window, written):
    cache = cache_of(sink, window)
    for i in range(written):
        cache.write(i, kv(i))
    with pytest.raises(ValueError, match="refresh"):
        cache.refresh_sink()
