"""Causal adaptation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from msmodel.causal import CausalDiT
from stages.train import adapt
from stages.train.adapt import AdaptConfig, AdaptMethod
from stages.train.ode_pairs import heldout_pairs
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import decode
from tests.unit.stages.train.methods import alive, pairs_in, seeing, small, train_adapt


def method(tmp_path, image="channels", model=None, **changes):
    model = model or small(image)
    pairs = pairs_in(tmp_path, model)
    cfg = AdaptConfig(**({"picture_clips": 0} | changes))
    student = alive(CausalDiT, model)
    assert isinstance(student, CausalDiT)
    return AdaptMethod(student, model, cfg, heldout_pairs(pairs, 2, model), decode, 0)


def test_sink_and_window_are_drawn_and_the_own_ones_keep_their_share():
    own = replace(small().student, sink=1, window=1)
    cfg = AdaptConfig(sinks=(0, 2), windows=(1, 2), own_share=0.5)
    g = torch.Generator().manual_seed(0)
    drawn = [cfg.draw_context(own, g) for _ in range(600)]
    seen = {(s.sink, s.window) for s in drawn}
    assert seen == {(s, w) for s in range(3) for w in (1, 2)}
    share = sum((s.sink, s.window) == (1, 1) for s in drawn) / len(drawn)
    assert share == pytest.approx(0.5 + 0.5 / 6, abs=0.06)
    assert {(s.chunk, s.steps) for s in drawn} == {(own.chunk, own.steps)}


@pytest.mark.slow
def test_the_track_head_stays_that_of_the_teacher(tmp_path):
    model = small()
    before, trained = alive(CausalDiT, model), train_adapt(FakeContext(tmp_path), model)
    assert torch.equal(trained.track_head.weight, before.track_head.weight)
    assert not torch.equal(trained.patch_embedding.weight, before.patch_embedding.weight)


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_each_chunk_takes_its_own_state_and_time(image, tmp_path):
    m = method(tmp_path, image)
    b, k = m.heldout.states.shape[:2]
    index = torch.arange(b * m.model.chunks).view(b, -1) % k
    states, t = m.mixed_states(m.heldout.states, index)
    prefix = int(m.model.image_alone)
    for item in range(b):
        for chunk in range(m.model.chunks):
            frame, i = prefix + chunk, int(index[item, chunk])
            assert torch.equal(states[item, :, frame], m.heldout.states[item, i, :, frame])
            assert float(t[item, chunk]) == pytest.approx(float(m.times[i]))


def test_a_perfect_prediction_has_no_loss_and_the_given_image_does_not_count(tmp_path):
    m = method(tmp_path, "first_latent")
    spoilt = m.heldout.endpoint.clone()
    spoilt[:, :, 0] += 100.0
    with torch.no_grad():
        m.student.proj_out.weight.zero_()
        m.student.proj_out.bias.zero_()  # v = 0: x_0 = x_t
    still = replace(m.heldout, states=m.heldout.endpoint[:, None].expand(-1, 3, -1, -1, -1, -1), endpoint=spoilt)
    loss = m.regression(still, m.model.student, torch.Generator().manual_seed(0))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.slow
def test_gate_warns_and_passes(tmp_path):
    for gate, warns in ((1e-6, True), (1e6, False)):
        ctx = FakeContext(tmp_path / str(gate))
        train_adapt(ctx, small(), steps=1, gate=gate)
        assert any("above the gate" in line for line in ctx.logged) == warns
        assert len(ctx.series("heldout/ode")) == 2  # at the start and at the end


@pytest.mark.slow
def test_it_learns_the_trajectories_it_is_shown(tmp_path):
    ctx = FakeContext(tmp_path)
    train_adapt(ctx, small(), steps=24, lr=5e-3, picture_clips=0, validate_steps=100)
    losses = ctx.series("loss/student")
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_the_context_is_shared_by_all_ranks_and_times_are_not(tmp_path, monkeypatch):
    m = method(tmp_path)
    contexts, indices = [], []

    def watched(batch, context, generator):
        contexts.append((context.sink, context.window))
        indices.append(float(torch.rand((), generator=generator)))
        return torch.zeros(())

    monkeypatch.setattr(m, "regression", watched)
    for step in range(10):
        for rank in range(2):
            m.loss("student", m.heldout, adapt.RngStreams(0, step, micro=rank))
    assert contexts[::2] == contexts[1::2]
    assert all(a != b for a, b in zip(indices[::2], indices[1::2], strict=True))


@torch.no_grad()
def test_the_regression_reads_image_tokens(tmp_path):
    m = method(tmp_path, model=seeing())
    cond = m.heldout.cond
    assert cond.image_tokens is not None
    blind = replace(m.heldout, cond=replace(cond, image_tokens=torch.zeros_like(cond.image_tokens)))
    values = {float(m.regression(b, m.model.student, torch.Generator().manual_seed(0))) for b in (m.heldout, blind)}
    assert len(values) == 2
