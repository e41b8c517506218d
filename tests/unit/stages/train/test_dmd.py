"""DMD: who steps when, where gradient flows, which scores are compared, alarms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from msmodel.batch import Conditioning
from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.io.weights import load_student
from stages.train import dmd
from stages.train.conditioning import condition, draw_tracks
from stages.train.method import RngStreams
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import clips, decode
from tests.unit.stages.train.methods import alive, dmd_config, frozen, saying, seeing, small, train_dmd


def method(image: str = "channels", model: ModelConfig | None = None, **changes) -> dmd.DmdMethod:
    model = model or small(image)
    generator = alive(CausalDiT, model, 1)
    assert isinstance(generator, CausalDiT)
    run = dmd.DmdRun(model, dmd_config(picture_clips=0, **changes))
    teacher = frozen(alive(WanDiT, model, 3))
    return dmd.DmdMethod(run, generator, alive(WanDiT, model, 2), teacher, clips(model, 2, 99), decode, 0)


def conditioning(m: dmd.DmdMethod) -> Conditioning:
    batch = clips(m.model, 2)
    return condition(batch, draw_tracks(batch, m.cfg.augment, m.model, RngStreams(0, 0)), m.model)


@pytest.mark.slow
def test_the_critic_steps_every_step_and_the_generator_every_fifth(tmp_path):
    ctx = FakeContext(tmp_path)
    train_dmd(ctx, small(), steps=10, ratio=5, picture_clips=0, validate_steps=100)
    generator, critic = ctx.engines
    assert (generator.steps, critic.steps) == (2, 10)
    assert [step for step, m in ctx.emitted if "loss/generator" in m] == [5, 10]


def test_generator_and_critic_have_their_own_rates():
    m = method(lr=2e-6, critic_lr=4e-7)
    assert m.lr("generator", "body", 0) == 2e-6
    assert m.lr("critic", "body", 0) == 4e-7


@pytest.mark.slow
def test_both_track_heads_stay_those_of_the_teacher(tmp_path):
    model = small()
    trained = train_dmd(FakeContext(tmp_path), model)
    for kind, seed, now in ((CausalDiT, 1, trained["generator"]), (WanDiT, 2, trained["critic"])):
        before = alive(kind, model, seed)
        assert torch.equal(now.track_head.weight, before.track_head.weight)
        assert not torch.equal(now.patch_embedding.weight, before.patch_embedding.weight)


@pytest.mark.slow
def test_the_average_of_an_earlier_step_is_kept_as_a_student(tmp_path):
    """It is what a training of that length publishes."""
    model = small()
    train_dmd(FakeContext(tmp_path / "long"), model, keep_steps=(2, 4))
    short = train_dmd(FakeContext(tmp_path / "short"), model, steps=2)["generator"]
    kept = load_student(tmp_path / "long" / "kept" / "step-00000002")
    assert kept.cfg == model
    assert kept.state_dict().keys() == short.state_dict().keys()
    assert all(torch.equal(value, kept.state_dict()[n]) for n, value in short.state_dict().items())
    assert not (tmp_path / "short" / "kept").exists()


def test_the_generators_loss_reaches_nobody_else():
    m = method()
    m.generator_loss(conditioning(m), RngStreams(0, 0)).value.backward()
    assert any(p.grad is not None and p.grad.any() for p in m.generator.parameters())
    assert all(p.grad is None for p in m.critic.parameters())
    assert all(p.grad is None for p in m.teacher.parameters())


def test_the_critics_loss_reaches_only_the_critic():
    m = method()
    m.critic_loss(conditioning(m), RngStreams(0, 0)).value.backward()
    assert all(p.grad is None for p in m.generator.parameters())
    assert any(p.grad is not None and p.grad.any() for p in m.critic.parameters())


def test_gradient_flows_through_the_exit_step_only(monkeypatch):
    """One pass with gradient for each chunk, at the exit step's time; all others run without."""
    m = method()
    passes: list[tuple[bool, float]] = []
    whole = m.generator.forward_chunk

    def watched(noisy, t, *rest, **kwargs):
        passes.append((torch.is_grad_enabled(), float(t[0])))
        assert not noisy.requires_grad
        return whole(noisy, t, *rest, **kwargs)

    monkeypatch.setattr(m.generator, "forward_chunk", watched)
    exits = set()
    for step in range(8):
        passes.clear()
        m.rollout_of(conditioning(m), RngStreams(0, step), dmd.GENERATOR, grad=True)
        with_grad = [t for grad, t in passes if grad]
        assert len(with_grad) == m.model.chunks
        assert len(set(with_grad)) == 1
        exits.add(with_grad[0])
        assert all(t > with_grad[0] for grad, t in passes if not grad)
    assert sorted(exits) == pytest.approx(sorted(m.times))


def test_every_rank_takes_the_same_exit_step_with_noise_of_its_own(monkeypatch):
    m = method()
    seen = []
    monkeypatch.setattr(
        dmd, "rollout", lambda s, c, noise, t, cfg, g, *, exit_step, grad: seen.append((exit_step, noise)) or noise
    )
    for step in range(6):
        for rank in range(2):
            m.rollout_of(conditioning(m), RngStreams(0, step, micro=rank), dmd.GENERATOR, grad=False)
    assert [k for k, _ in seen[::2]] == [k for k, _ in seen[1::2]]
    assert {k for k, _ in seen} == {0, 1, 2}
    assert not torch.equal(seen[0][1], seen[1][1])


def test_descending_moves_the_rollout_toward_the_teacher(monkeypatch):
    """The gradient in x is the normalised difference of the two estimates, per clip."""
    m = method()
    x = torch.randn(2, 8, 7, 4, 4, requires_grad=True)
    real, fake = torch.randn_like(x), torch.randn_like(x)
    monkeypatch.setattr(m, "rollout_of", lambda *a, **k: x)
    monkeypatch.setattr(m, "scores", lambda *a: (real, fake))
    m.generator_loss(conditioning(m), RngStreams(0, 0)).value.backward()
    scale = (x - real).abs().flatten(1).mean(1)[:, None, None, None, None]
    assert torch.allclose(x.grad * x.numel(), ((fake - real) / scale).detach(), atol=1e-4)


def test_the_given_image_counts_in_no_loss(monkeypatch):
    m = method("first_latent")
    cond = conditioning(m)
    x = m.rollout_of(cond, RngStreams(0, 0), dmd.GENERATOR, grad=True)
    assert torch.equal(x[:, :, 0], cond.image[:, :, 0])
    t, eps = m.noising(x, RngStreams(0, 0), dmd.GENERATOR)
    real, fake = m.scores(eps, t, cond)
    assert torch.equal(real[:, :, 0], fake[:, :, 0])

    def values() -> list[float]:
        return [float(loss(cond, RngStreams(0, 0)).value.detach()) for loss in (m.generator_loss, m.critic_loss)]

    whole = values()
    rollout_of = m.rollout_of

    def other_first_frame(*args, **kwargs):
        x = rollout_of(*args, **kwargs)
        return torch.cat([x[:, :, :1] + 5, x[:, :, 1:]], dim=2)

    monkeypatch.setattr(m, "rollout_of", other_first_frame)
    assert values() == pytest.approx(whole, rel=1e-5)


def test_times_are_clamped_and_shifted():
    m = method(t_low=0.3, t_high=0.6)
    x = torch.zeros(500, 1, 1, 1, 1)
    t, eps = m.noising(x, RngStreams(0, 0), dmd.CRITIC)
    assert float(t.min()) == pytest.approx(0.3)
    assert float(t.max()) == pytest.approx(0.6)
    assert eps.shape == x.shape
    open_t, _ = method(t_low=0.001, t_high=0.999).noising(x, RngStreams(0, 0), dmd.CRITIC)
    k = m.model.dit.shift
    assert float(open_t.median()) == pytest.approx(k * 0.5 / (1 + (k - 1) * 0.5), abs=0.05)


def test_latents_of_the_clips_are_never_read():
    m = method()
    batch = clips(m.model, 2)
    blind = clips(m.model, 2)
    blind.latents.fill_(float("nan"))
    for name in (dmd.GENERATOR, dmd.CRITIC):
        one, other = (m.loss(name, b, RngStreams(0, 0)).value for b in (batch, blind))
        assert torch.equal(one, other)


def test_collapse_is_reported():
    m = method()
    assert "flat colour" in m.alarms(0.01)[0]
    assert "noise" in m.alarms(10.0)[0]
    assert m.alarms(1.0) == ()


@pytest.mark.slow
def test_what_is_logged(tmp_path):
    ctx = FakeContext(tmp_path)
    train_dmd(ctx, small())
    for name in (
        "loss/generator",
        "loss/critic",
        "grad_norm/generator",
        "grad_norm/critic",
        "std/generator",
        "score_gap/generator",
        "heldout/latent_mse",
        "heldout/std",
        "clips_per_second",
    ):
        assert ctx.series(name), name
    assert ctx.images["student", 4].shape == (2 * 4, 6 * 4, 3)


def test_config_problems():
    bad = dmd_config(ratio=0, t_low=0.9, t_high=0.1)
    assert [p.split(":")[0] for p in bad.problems()] == ["dmd.ratio", "dmd.t_low, t_high"]


def test_a_teacher_elsewhere_takes_less():
    settings = dmd_config(batch=2, checkpoint_layers=True)
    assert settings.settings_that_save_memory(8) == [
        "dmd.batch=1",
        "dmd.teacher_placement=shard",
        "dmd.teacher_placement=offload",
    ]
    assert dmd_config(batch=1, teacher_placement="device").settings_that_save_memory(1) == [
        "dmd.checkpoint_layers=true",
        "dmd.teacher_placement=offload",
    ]
    kept = dmd_config(batch=1, checkpoint_layers=True, keep_attention=True, teacher_placement="offload")
    assert kept.settings_that_save_memory(8) == ["dmd.keep_attention=false"]
    assert dmd_config(batch=1, checkpoint_layers=True, teacher_placement="offload").settings_that_save_memory(8) == []


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "moves"), [("device", []), ("shard", []), ("offload", ["cpu", "cpu"])])
def test_an_offloaded_teacher_goes_back_after_it_has_scored(teacher, moves, monkeypatch):
    m = method(teacher_placement=teacher)
    seen: list[str] = []
    monkeypatch.setattr(m.teacher, "to", lambda place: seen.append(str(place)))
    m.critic_loss(conditioning(m), RngStreams(0, 0))
    assert seen == []  # the critic's turns do without it
    m.generator_loss(conditioning(m), RngStreams(0, 0))
    assert seen == moves


def test_rollouts_and_scores_read_image_tokens():
    m = method(model=seeing())
    cond = conditioning(m)
    assert cond.image_tokens is not None
    blind = replace(cond, image_tokens=torch.zeros_like(cond.image_tokens))
    rolled, unseen = (m.rollout_of(c, RngStreams(0, 0), "critic", grad=False) for c in (cond, blind))
    assert not torch.allclose(rolled, unseen, atol=1e-5)
    noisy, t = torch.randn_like(rolled), torch.tensor([0.5, 0.8])
    for a, b in zip(m.scores(noisy, t, cond), m.scores(noisy, t, blind), strict=True):
        assert not torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("null", ["empty", "negative"])
def test_the_real_score_compares_with_the_text_that_is_configured(null):
    m = method(model=saying(null))
    cond = conditioning(m)
    noisy, t = torch.randn_like(m.heldout.latents), torch.tensor([0.5, 0.8])
    (real, fake), (real_of_zeros, same) = (m.scores(noisy, t, c) for c in (cond, replace(cond, null_text=None)))
    assert not torch.allclose(real, real_of_zeros, atol=1e-5)
    assert torch.equal(fake, same)
