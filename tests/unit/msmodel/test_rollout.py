"""Rollout through the cache against the cache-free reference, in float64; gradients, truncation, teacher forcing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from msmodel.cache import ChunkCache, Context
from msmodel.causal import CausalDiT, times
from msmodel.dit import WanDiT
from msmodel.rollout import chunk_spans, denoise_chunks, generate_chunk, predict_x0, rollout, start
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config
from tests.unit.msmodel.reference import Reference

TIMES = (1.0, 0.8571, 0.6)
EXACT = {"atol": 1e-10, "rtol": 0}


def student_of(image: str = "channels", **student: int) -> CausalDiT:
    return randomise(CausalDiT(tiny_config(image, **student)).double())


def inputs(student: CausalDiT, chunks: int, batch: int = 1):
    frames = chunks * student.cfg.student.chunk + int(student.cfg.image_alone)
    cond = conditioning(student.cfg, batch, frames, dtype=torch.float64)
    return cond, gaussian(student.cfg, batch, frames, dtype=torch.float64)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference_for(student: CausalDiT) -> Reference:
    cfg = student.cfg.student
    return Reference(student, cfg.chunk, cfg.sink, cfg.window)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["channels", "first_latent"])
@pytest.mark.parametrize(("sink", "window"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)])
@torch.no_grad()
def test_equals_recomputation_with_explicit_mask_at_cache_positions(image, sink, window):
    student = student_of(image, chunk=1, sink=sink, window=window)
    chunks = sink + 4 * max(window, 1) + 1  # the window's slots wrap at least three times
    cond, noise = inputs(student, chunks, batch=2)
    got = rollout(student, cond, noise, TIMES[:2], student.cfg.student, seeded())
    expected = reference_for(student).rollout(cond, noise, TIMES[:2], seeded())
    torch.testing.assert_close(got, expected, **EXACT)


@torch.no_grad()
def test_equals_recomputation_at_three_frames_a_chunk():
    student = student_of(chunk=3, sink=1, window=1)
    cond, noise = inputs(student, 6)
    got = rollout(student, cond, noise, TIMES, student.cfg.student, seeded())
    torch.testing.assert_close(got, reference_for(student).rollout(cond, noise, TIMES, seeded()), **EXACT)


def _absolute(cache: ChunkCache, i: int, chunk: int | None = None) -> int:
    return cache.prefix + (i if chunk is None else chunk) * cache.student.chunk


def _off_by_one(cache: ChunkCache, i: int, chunk: int | None = None) -> int:
    return ORIGINAL_POSITION(cache, i, chunk) + (chunk is not None)


ORIGINAL_POSITION = ChunkCache.position


@pytest.mark.parametrize("planted", [_absolute, _off_by_one])
@torch.no_grad()
def test_a_planted_position_error_is_seen(planted, monkeypatch):
    student = student_of(sink=1, window=1)
    cond, noise = inputs(student, 6)
    expected = reference_for(student).rollout(cond, noise, TIMES, seeded())
    monkeypatch.setattr(ChunkCache, "position", planted)
    got = rollout(student, cond, noise, TIMES, student.cfg.student, seeded())
    wrong = (got - expected).abs().amax(dim=(0, 1, 3, 4))
    first_wrong = 6 if planted is _absolute else 4  # absolute positions are right until i > S + W, i.e. chunk 3
    assert wrong[:first_wrong].max() < 1e-10
    assert wrong[first_wrong:].min() > 1e-3


@torch.no_grad()
def test_a_planted_stale_window_is_seen(monkeypatch):
    student = student_of(sink=1, window=1)
    cond, noise = inputs(student, 5)
    expected = reference_for(student).rollout(cond, noise, TIMES, seeded())
    write = ChunkCache.write

    def stale(cache, i, kv):
        held = dict(cache._window)
        write(cache, i, kv)
        if held:
            cache._window = {slot: (i, old) for slot, (_, old) in held.items()}

    monkeypatch.setattr(ChunkCache, "write", stale)
    got = rollout(student, cond, noise, TIMES, student.cfg.student, seeded())
    assert (got - expected).abs().max() > 1e-3


@torch.no_grad()
def test_denoising_leaves_the_cache_alone_and_only_the_clean_pass_enters():
    student = student_of(sink=1, window=2)
    cond, noise = inputs(student, 6)
    cache = start(student, cond, student.cfg.student)
    for i in range(6):
        own, context = cond.frames(2 * i, 2 * i + 2), cache.context(i)
        before = [t.clone() for kv in context.parts for layer in kv.layers for t in layer]
        held = cache.bytes
        x0 = generate_chunk(student, noise[:, :, 2 * i : 2 * i + 2], own, context, TIMES, seeded())
        assert cache.bytes == held
        assert all(
            torch.equal(a, b)
            for a, b in zip(before, (t for kv in context.parts for la in kv.layers for t in la), strict=True)
        )
        clean = student.clean_pass(x0, own, context)
        _, noisy_kv = student.forward_chunk(x0, torch.full((1,), TIMES[-1]).double(), own, context)
        cache.write(i, clean)
        if i >= 1:
            chunk, kept = cache._window[(i - 1) % 2]
            assert chunk == i
            expected = student.forward_chunk(x0, torch.zeros(1).double(), own, context)[1]
            for layer in range(2):
                torch.testing.assert_close(kept.layers[layer].key, expected.layers[layer].key, atol=0, rtol=0)
                torch.testing.assert_close(kept.layers[layer].value, expected.layers[layer].value, atol=0, rtol=0)
                assert not torch.allclose(kept.layers[layer].key, noisy_kv.layers[layer].key)


@torch.no_grad()
def test_the_order_of_slots_means_nothing():
    student = student_of(sink=1, window=3)
    cond, noise = inputs(student, 7)
    cache = start(student, cond, student.cfg.student)
    for i in range(6):
        cache.write(
            i, student.clean_pass(noise[:, :, 2 * i : 2 * i + 2], cond.frames(2 * i, 2 * i + 2), cache.context(i))
        )
    shuffled = cache.fork()
    shuffled._window = dict(reversed(shuffled._window.items()))
    a, b = cache.context(6), shuffled.context(6)
    assert not torch.equal(a.parts[1].layers[0].key, b.parts[1].layers[0].key)
    x, own, t = noise[:, :, 12:14], cond.frames(12, 14), torch.ones(1).double()
    torch.testing.assert_close(predict_x0(student, x, t, own, a), predict_x0(student, x, t, own, b), atol=1e-12, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_work_and_memory_of_a_steady_chunk_are_constant_past_1100_frames():
    student = student_of(chunk=16, sink=1, window=1).float()
    cond = conditioning(student.cfg, 1, 16)
    cache, generator = start(student, cond, student.cfg.student), seeded()
    flops, held, positions = [], [], []

    def advance(i: int) -> None:
        context = cache.context(i)
        x0 = generate_chunk(student, gaussian(student.cfg, 1, 16, seed=i), cond, context, (1.0,), generator)
        cache.write(i, student.clean_pass(x0, cond, context))
        held.append(cache.bytes)
        positions.append(context.position)
        assert x0.isfinite().all()

    for i in range(70):
        if i in (1, 2, 3, 30, 69):
            with (
                FlopCounterMode(display=False) as counter,
                sdpa_kernel(SDPBackend.MATH),
            ):  # the fused one is not counted
                advance(i)
            flops.append(counter.get_total_flops())
        else:
            advance(i)
    assert len(set(flops[1:])) == len(set(held[2:])) == len(set(positions[2:])) == 1
    assert flops[0] < flops[1]


@pytest.mark.slow
@pytest.mark.parametrize("image", ["channels", "first_latent"])
@pytest.mark.parametrize("exit_step", [0, 2])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradient_equals_that_of_the_functional_reference(image, exit_step, checkpointed):
    student = student_of(image, sink=1, window=1)
    cond, noise = inputs(student, 5)
    target = gaussian(student.cfg, 1, noise.shape[2], seed=9, dtype=torch.float64)

    def gradients(latents):
        student.zero_grad()
        (latents - target).square().sum().backward()
        return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}

    expected = gradients(reference_for(student).rollout(cond, noise, TIMES, seeded(), exit_step, grad=True))
    student.checkpoint_layers = checkpointed
    got = gradients(rollout(student, cond, noise, TIMES, student.cfg.student, seeded(), exit_step=exit_step, grad=True))
    assert got.keys() == expected.keys() == dict(student.named_parameters()).keys()
    for name in expected:
        assert expected[name].norm() > 0, name
        torch.testing.assert_close(got[name], expected[name], atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_checkpointed_chunks_give_the_same_velocity_keys_and_gradients(image):
    """forward_chunk against a filled cache; the loss reads the keys and values it returns, too."""
    student = randomise(CausalDiT(tiny_config(image)).double())
    cfg, prefix = student.cfg, int(student.cfg.image_alone)
    cond, noise = conditioning(cfg, dtype=torch.float64), gaussian(cfg, dtype=torch.float64)
    cache = start(student, cond, cfg.student)
    spans = chunk_spans(noise.shape[2], cfg.student, prefix)
    for i, (a, b) in enumerate(spans[:-1]):
        cache.write(i, student.clean_pass(noise[:, :, a:b], cond.frames(a, b), cache.context(i)))
    a, b = spans[-1]
    found = []
    for student.checkpoint_layers, student.keep_attention in ((False, False), (True, False), (True, True)):
        student.zero_grad()
        v, kv = student.forward_chunk(
            noise[:, :, a:b], torch.tensor([0.6]), cond.frames(a, b), cache.context(len(spans) - 1)
        )
        (v.square().mean() + sum(x.square().mean() for layer in kv.layers for x in layer)).backward()
        grads = [p.grad.clone() for p in student.parameters()]
        found.append([v.detach(), *(x.detach() for layer in kv.layers for x in layer), *grads])
    for plain, *checkpointed in zip(*found, strict=True):
        for tensor in checkpointed:
            torch.testing.assert_close(tensor, plain, atol=1e-12, rtol=0)


def test_no_gradient_reaches_earlier_chunks_or_earlier_steps():
    student = student_of(sink=1, window=1)
    cond, noise = inputs(student, 4)
    noise.requires_grad_()
    out = rollout(student, cond, noise, TIMES, student.cfg.student, seeded(), exit_step=0, grad=True)
    for chunk in range(4):
        (grad,) = torch.autograd.grad(out[:, :, 2 * chunk : 2 * chunk + 2].sum(), noise, retain_graph=True)
        reached = grad.abs().amax(dim=(0, 1, 3, 4)) > 0
        assert reached.tolist() == [f // 2 == chunk for f in range(8)]
    later = rollout(student, cond, noise, TIMES, student.cfg.student, seeded(), exit_step=1, grad=True)
    (grad,) = torch.autograd.grad(later.sum(), noise, allow_unused=True)
    assert grad is None  # the noise enters at step 0, which runs without gradient


def test_without_grad_nothing_is_recorded():
    student = student_of()
    cond, noise = inputs(student, 3)
    assert not rollout(student, cond, noise, TIMES, student.cfg.student, seeded()).requires_grad


@torch.no_grad()
def test_reproducible_by_the_generators_seed():
    student = student_of()
    cond, noise = inputs(student, 4)
    torch.manual_seed(1)
    first = rollout(student, cond, noise, TIMES, student.cfg.student, seeded(3))
    torch.manual_seed(2)  # torch's global generator plays no part
    assert torch.equal(first, rollout(student, cond, noise, TIMES, student.cfg.student, seeded(3)))
    other = rollout(student, cond, noise, TIMES, student.cfg.student, seeded(4))
    assert not torch.allclose(first, other)


@torch.no_grad()
def test_batch_items_do_not_mix():
    student = student_of(sink=1, window=2)
    cond, noise = inputs(student, 6, batch=2)
    both = rollout(student, cond, noise, (1.0,), student.cfg.student, seeded())
    for b in range(2):
        one = replace(cond, text=cond.text[b, None], image=cond.image[b, None], tracks=cond.tracks[b, None])
        alone = rollout(student, one, noise[b, None], (1.0,), student.cfg.student, seeded())
        torch.testing.assert_close(both[b, None], alone, **EXACT)


@torch.no_grad()
def test_one_chunk_without_context_is_the_bidirectional_model():
    student = student_of(chunk=6)
    teacher = WanDiT(student.cfg).double()
    teacher.load_state_dict(student.state_dict())
    cond, noise = inputs(student, 1, batch=2)
    t = torch.tensor([0.3, 0.9]).double()
    v, _ = student.forward_chunk(noise, t, cond, Context((), 0))
    torch.testing.assert_close(v, teacher(noise, t, cond), **EXACT)
    cached_text = student.text_keys_values(cond.text)
    torch.testing.assert_close(student.forward_chunk(noise, t, cond, Context((), 0), cached_text)[0], v, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["channels", "first_latent"])
@pytest.mark.parametrize(("sink", "window"), [(0, 1), (1, 1), (2, 0), (1, 3)])
@torch.no_grad()
def test_teacher_forcing_equals_the_reference_at_any_sink_and_window(image, sink, window):
    student = student_of(image)
    cfg = replace(student.cfg.student, sink=sink, window=window)
    cond, states = inputs(student, 6, batch=2)
    clean = gaussian(student.cfg, 2, states.shape[2], seed=5, dtype=torch.float64)
    got = denoise_chunks(student, states, torch.ones(2, 6).double(), cond, clean, cfg)
    reference = Reference(student, cfg.chunk, sink, window)
    expected = reference.rollout(cond, states, (1.0,), seeded(), clean_context=clean)
    torch.testing.assert_close(got, expected, **EXACT)
    same = rollout(student, cond, states, (1.0,), cfg, seeded(), clean_context=clean)
    torch.testing.assert_close(same, expected, **EXACT)


def test_teacher_forced_chunks_have_their_own_times_and_gradient():
    student = student_of()
    cond, states = inputs(student, 3, batch=2)
    clean = gaussian(student.cfg, 2, 6, seed=5, dtype=torch.float64).requires_grad_()
    t = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.0, 0.7]], dtype=torch.float64)
    x0 = denoise_chunks(student, states, t, cond, clean, student.cfg.student)
    torch.testing.assert_close(x0[0, :, 4:], states[0, :, 4:], atol=0, rtol=0)  # at t = 0 the state is the answer
    torch.testing.assert_close(x0[1, :, 2:4], states[1, :, 2:4], atol=0, rtol=0)
    assert (x0[0, :, :4] - states[0, :, :4]).abs().max() > 1e-2
    x0.square().sum().backward()
    assert clean.grad is None
    assert all(p.grad is not None and p.grad.norm() > 0 for p in student.parameters())
    moved = clean.detach().clone()
    moved[:, :, 4:] += 1  # the last chunk is nobody's context
    again = denoise_chunks(student, states, t, cond, moved, student.cfg.student)
    assert torch.equal(again, x0)
    moved[:, :, :2] += 1
    again = denoise_chunks(student, states, t, cond, moved, student.cfg.student)
    assert torch.equal(again[:, :, :2], x0[:, :, :2])
    assert not torch.allclose(again[0, :, 2:4], x0[0, :, 2:4])


@torch.no_grad()
def test_half_precision_weights_keep_latents_and_times_in_float32():
    student = student_of(sink=1, window=1).float()
    cond, noise = conditioning(student.cfg, 1, 8), gaussian(student.cfg, 1, 8)
    full = rollout(student, cond, noise, (1.0,), student.cfg.student, seeded())
    half = rollout(student.to(torch.bfloat16), cond, noise, (1.0,), student.cfg.student, seeded())
    assert half.dtype == torch.float32
    assert (half - full).norm() / full.norm() < 0.05
    assert times(noise.bfloat16(), 0.9375).dtype == torch.float32


def test_bad_requests_are_refused():
    student = student_of()
    cond, noise = inputs(student, 3)
    with pytest.raises(ValueError, match="exit step 3"):
        rollout(student, cond, noise, TIMES, student.cfg.student, seeded(), exit_step=3)
    with pytest.raises(ValueError, match=r"student\.chunk"):
        rollout(student, cond, noise[:, :, :5], TIMES, student.cfg.student, seeded())
