"""What is counted on the meta device is what happens on real tensors: FLOPs, saved bytes, peaks of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from msmodel.batch import Conditioning
from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.track_encoding import encode_tracks
from msmodel.vae import fresh_vae, vae_on_meta
from pipelines.commands.plan import steps
from pipelines.commands.plan.steps import META, Case, Choice
from pipelines.commands.plan.trace import Cost, Counter, MetaCounter, count
from stages.train import adapt, dmd
from stages.train.ode_pairs import PairBatch
from stages.train.sampling import Guidance
from stages.train.teacher import TeacherMethod
from tests.unit.msmodel.models import tiny_config
from tests.unit.stages.train.fakes import clips, decode
from tests.unit.stages.train.methods import alive, dmd_config, frozen, teacher_config

TRACKS = 20  # of the real clips
BATCH, LAYERS = 2, 4  # deep enough to be extrapolated from two and three layers
LAYOUTS = ("channels", "first_latent")
aten = torch.ops.aten
ATTENTION: dict[Any, Any] = {  # FlopCounterMode knows the kernels of GPUs only
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, out_shape=None, **kw: sdpa_flop_count(
        q, k, v
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *a, out_shape=None, **kw: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}


def model(image: str, layers: int = LAYERS) -> ModelConfig:
    """image: of LAYOUTS, or "clip": channels, and CLIP's tokens of the image."""
    cfg = tiny_config("channels" if image == "clip" else image)
    dit = replace(cfg.dit, dim=64, ffn_dim=160, layers=layers, clip_dim=48 if image == "clip" else 0)
    return replace(cfg, clip=replace(cfg.clip, height=32, width=48), dit=dit)


@dataclass(frozen=True)
class FixedDraws:
    """stages.train.method.RngStreams with a chosen exit step, or piece."""

    shared_seed: int = 0
    step: int = 0

    def own(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def shared(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.shared_seed)


def exits_at(step: int, steps: int) -> Any:
    def drawn(seed: int) -> int:
        return int(torch.randint(steps, (), generator=torch.Generator().manual_seed(seed)))

    return FixedDraws(next(seed for seed in range(50) if drawn(seed) == step))


Work = Callable[[], object]


def real_teacher(m: ModelConfig, checkpoint: bool) -> Work:
    dit = alive(WanDiT, m)
    dit.checkpoint_layers = checkpoint
    cfg = teacher_config(group_steps=0, phase2_steps=0)
    method = TeacherMethod(dit, m, cfg, None)  # type: ignore[arg-type]  # the probe is for observing
    rng: Any = FixedDraws()
    return lambda: method.loss("dit", clips(m, BATCH), rng).value.backward()


def real_dmd(m: ModelConfig, checkpoint: bool, module: str, exit_step: int) -> Work:
    generator, critic = alive(CausalDiT, m, 1), alive(WanDiT, m, 2)
    assert isinstance(generator, CausalDiT)
    generator.checkpoint_layers = critic.checkpoint_layers = checkpoint
    run = dmd.DmdRun(m, dmd_config())
    method = dmd.DmdMethod(run, generator, critic, frozen(alive(WanDiT, m, 3)), clips(m, 1, 99), decode, 0)
    rng = exits_at(exit_step, m.student.steps)
    return lambda: method.loss(module, clips(m, BATCH), rng).value.backward()


def real_adapt(m: ModelConfig, checkpoint: bool) -> Work:
    student = alive(CausalDiT, m)
    assert isinstance(student, CausalDiT)
    student.checkpoint_layers = checkpoint

    def pairs() -> PairBatch:
        latents = clips(m, BATCH).latents
        cond = steps.inputs(m, BATCH, TRACKS, torch.device("cpu"))
        return PairBatch(torch.stack([latents] * m.student.steps, 1), latents, cond)

    cfg = adapt.AdaptConfig(own_share=1.0, picture_clips=0)
    method = adapt.AdaptMethod(student, m, cfg, pairs(), decode, 0)
    rng: Any = FixedDraws()

    def work() -> None:
        batch = pairs()  # alive during the backward pass, as in the loop
        method.loss("student", batch, rng).value.backward()

    return work


TEACHER = teacher_config(group_steps=0, phase2_steps=0)
ADAPT = adapt.AdaptConfig(own_share=1.0, picture_clips=0)
CASES: dict[str, tuple[Callable[[ModelConfig, bool], Work], str, Any, str, float]] = {
    "teacher": (real_teacher, "teacher", TEACHER, "dit", 0.999),
    "generator, first exit": (lambda m, c: real_dmd(m, c, "generator", 0), "dmd", dmd_config(), "generator", 0.0),
    "generator, last exit": (lambda m, c: real_dmd(m, c, "generator", 2), "dmd", dmd_config(), "generator", 0.999),
    "critic": (lambda m, c: real_dmd(m, c, "critic", 1), "dmd", dmd_config(), "critic", 0.5),
    "adapt": (real_adapt, "adapt", ADAPT, "student", 0.0),
}


def counted(case: str, m: ModelConfig, checkpoint: bool, **more: Any) -> Cost:
    _, name, own, module, draw = CASES[case]
    own = replace(own, batch=BATCH, checkpoint_layers=checkpoint)
    made = Case(name, m, own, Guidance(), TRACKS, **({"dtype": torch.float32, "keep": True} | more))
    return steps.extrapolated(m, lambda at: steps._loss_at(replace(made, model=at), module, Choice(1.0, 1, (draw,))))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True], ids=["plain", "recomputed"])
@pytest.mark.parametrize("case", CASES)
def test_flops_and_peak_are_those_of_a_real_step(case, checkpoint):
    check(case, model(LAYOUTS[0] if "first" in case or case == "adapt" else LAYOUTS[1]), checkpoint)


def check(case: str, m: ModelConfig, checkpoint: bool) -> None:
    """The scored frames and the restored image included. Five per cent in memory, because noise is drawn on the CPU, which
    is no other place there."""
    real = CASES[case][0]
    predicted = counted(case, m, checkpoint)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as flops:
        real(m, checkpoint)()
    work, counter = real(m, checkpoint), Counter()
    with counter:
        work()
    assert predicted.flops == pytest.approx(flops.get_total_flops(), rel=1e-3)
    assert predicted.peak == pytest.approx(counter.peak, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["teacher", "critic", "adapt"])
def test_image_tokens_count_as_in_a_real_step(case):
    m = model("channels")
    check(case, replace(m, dit=replace(m.dit, clip_dim=20)), checkpoint=False)


def test_passes_are_what_zero_3_gathers():
    """Forwards and backwards, not a recomputation; a rollout's passes, and those of a frozen model."""
    m = model("channels")
    assert [counted("teacher", m, checkpoint).passes for checkpoint in (False, True)] == [2, 2]
    first, last = (counted(f"generator, {which} exit", m, False) for which in ("first", "last"))
    assert last.passes - first.passes == 2 * m.chunks  # two denoising steps more for each chunk
    assert (first.frozen_passes, last.frozen_passes, counted("critic", m, False).frozen_passes) == (1, 1, 0)
    assert 0 < first.frozen_peak <= first.peak


def test_what_is_read_on_the_meta_device_is_arbitrary_and_choices_are_given():
    with MetaCounter((0.0, 0.999)):
        value = torch.ones(3, device=META)
        assert float(value.mean()) == 1.0
        assert not bool((value > 0).all())
        assert value.cpu().shape == (3,)
        low, high = (int(torch.randint(2, 5, (), generator=torch.Generator())) for _ in range(2))
        assert (low, high) == (2, 4)
        assert float(torch.rand((), generator=torch.Generator())) == pytest.approx(0.999)
        assert torch.randint(3, (50,), generator=torch.Generator()).max() < 3  # indices are real


def saved_bytes(module: nn.Module, work: Work) -> int:
    """Of everything that autograd keeps for the backward pass, weights left out, as torch itself tells."""
    kept: dict[int, int] = {}
    held: list[Tensor] = []
    weights = {p.untyped_storage()._cdata for p in module.parameters()}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        held.append(x)  # an address counts once as long as it lives
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        work()
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["plain", "recomputed"])
@pytest.mark.parametrize("image", [*LAYOUTS, "clip"])
def test_autograd_keeps_the_same_on_the_meta_device(image, checkpoint, dtype):
    """Also that bfloat16 halves what is in bfloat16, the residual stream staying as it is: byte for byte."""
    m = model(image, layers=3)
    real = alive(CausalDiT, m).to(dtype)
    with META:
        made = CausalDiT(m).to(dtype)
    real.checkpoint_layers = made.checkpoint_layers = checkpoint
    with MetaCounter():
        cond, noisy = steps.inputs(m, BATCH, TRACKS), steps.latents(m, BATCH)
    true_cond = Conditioning(*(x if x is None else torch.randn(x.shape) for x in vars(cond).values()))
    kept = saved_bytes(made, lambda: made(noisy, torch.ones(BATCH, device=META), cond))
    assert kept == saved_bytes(real, lambda: real(torch.randn(noisy.shape), torch.ones(BATCH), true_cond))


@pytest.mark.slow
def test_a_deep_model_costs_what_shallow_ones_foretell():
    """Directly counted at 6 layers, and from 2 and 3, where layers weigh more than what is around them, as at full size."""
    m = model("channels", layers=6)
    m = replace(m, dit=replace(m.dit, ffn_dim=1024))
    for name in ("teacher", "adapt"):
        _, kind, own, module, draw = CASES[name]
        own = replace(own, batch=BATCH, checkpoint_layers=True)
        deep = Case(kind, m, own, Guidance(), TRACKS, torch.bfloat16)
        direct = steps._loss_at(deep, module, Choice(1.0, 1, (draw,)))
        foretold = counted(name, m, True, dtype=torch.bfloat16, keep=False)
        assert foretold.flops == pytest.approx(direct.flops, rel=1e-9)
        assert foretold.peak == pytest.approx(direct.peak, rel=0.01)


def forward(m: ModelConfig) -> float:
    """FLOPs of a forward pass of one clip."""
    with META:
        dit = CausalDiT(m)
    with MetaCounter():
        cond = steps.inputs(m, 1, TRACKS)
    with torch.no_grad():
        return count(lambda: dit(steps.latents(m, 1), torch.ones(1, device=META), cond)).flops


def by_hand(m: ModelConfig, tokens: int) -> tuple[float, float]:
    """FLOPs of a forward pass of one clip: (matrix products, attention)."""
    d, words = m.dit, m.text.length
    layer = 2 * tokens * (6 * d.dim**2 + 2 * d.dim * d.ffn_dim) + 2 * words * 2 * d.dim**2
    attention = 4 * tokens * (tokens + words) * d.dim
    cells = tokens * d.patch[1] * d.patch[2]
    ends = 2 * tokens * m.in_channels * d.patch[1] * d.patch[2] * d.dim + 2 * cells * m.vae.z_channels * d.dim
    ends += 2 * cells * m.track_feature_channels * d.track_channels
    text = 2 * words * (m.text.dim * d.dim + d.dim**2)
    time = 2 * (d.freq_dim * d.dim + d.dim**2 + 6 * d.dim**2)
    return d.layers * layer + ends + text + time, d.layers * attention


def test_flops_are_those_counted_by_hand():
    """The backward pass costs twice the forward one, and attention two and a half, as it forms its weights anew; recomputation
    adds the layers' forward pass."""
    m = model("channels")
    linear, attention = by_hand(m, m.tokens)
    assert forward(m) == pytest.approx(linear + attention, rel=0.02)
    plain, recomputed = (counted("teacher", m, c).flops / BATCH for c in (False, True))
    assert plain == pytest.approx(3 * linear + 3.5 * attention, rel=0.02)
    assert recomputed - plain == pytest.approx(forward(m), rel=0.05)


def test_clip_tokens_are_counted():
    """257 of an image: the embedder's two matrices, and keys, values and attention in every layer."""
    without, m = model("channels"), model("clip")
    d = m.dit
    embedder = 2 * 257 * (d.clip_dim * d.clip_dim + d.clip_dim * d.dim)
    layer = 257 * (2 * 2 * d.dim**2 + 4 * m.tokens * d.dim)
    assert forward(m) - forward(without) == pytest.approx(embedder + d.layers * layer, rel=1e-6)
    streams = [steps.streamed(kind, TRACKS, torch.float32, 3).flops for kind in (without, m)]
    assert streams[0] < streams[1]


def test_a_canvas_through_the_vae_costs_what_it_costs_on_real_tensors():
    """In every conditioning, so that it is part of each step; no weights are read for it."""
    m = model("first_latent")
    m = replace(m, dit=replace(m.dit, track_encoding="rgb_vae"))
    frames = m.clip.frames
    xy_px, visible, colour = torch.rand(1, frames, 9, 2) * 32, torch.ones(1, frames, 9) > 0, torch.rand(1, 9, 3)
    vae = fresh_vae(m.vae)
    with FlopCounterMode(display=False) as flops, Counter() as counter:
        encode_tracks(xy_px, visible, colour, m, vae)
    vae_on_meta(m.vae)
    alone = count(lambda: encode_tracks(xy_px.to(META), visible.to(META), colour.to(META), m))
    assert alone.flops == count(lambda: steps.inputs(m, 1, 9)).flops == flops.get_total_flops() > 0
    assert alone.peak == pytest.approx(counter.peak, rel=0.05)


def test_the_stream_settles():
    """Every steady chunk costs the same."""
    m = model("channels", layers=2)
    costs = [steps.streamed(m, TRACKS, torch.float32, n) for n in (4, 5, 6)]
    assert costs[1].flops - costs[0].flops == costs[2].flops - costs[1].flops
    assert costs[1].peak == costs[2].peak


def test_a_tensor_counts_as_long_as_it_lives():
    def work() -> None:
        a = torch.empty(1000, device=META)
        b = a.view(10, 100).t() + 1
        del a
        torch.empty(500, device=META)
        b.add_(1)

    assert count(work).peak == 8000
    given = torch.zeros(1000)
    with Counter() as counter:
        given.view(10, 100).add_(1)
    assert counter.peak == 0  # it was there before
