"""What `make test-gpu` does at full size, as functions of (model, device): tests/unit/gpu runs them on a CPU at a tiny size.

Weights and inputs are random: nothing here asks how good a model is, only that it fits, is finite, and how fast it is.

Legend: b batch, l tokens, a heads, d channels of one head, k student timesteps, z latent channels, t latent frames, h w latent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infra.context import RunContext
from msmodel import attention
from msmodel.batch import image_conditioning
from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.flow import student_timesteps
from msmodel.io.weights import inference_dtype
from msmodel.stream import ChunkStream, DecoderMaker
from msmodel.track_encoding import clip_ids
from stages.eval.streaming import NoDecoder, filled_after
from stages.eval.timing import latency
from stages.train import adapt, dmd, teacher
from stages.train.conditioning import Augment, condition, draw_tracks
from stages.train.method import Method, RngStreams
from stages.train.ode_pairs import PairBatch
from tests.unit.stages.train.fakes import clips, decode

LR = 1e-3  # so large that bf16 weights move at the first step
AUGMENT = Augment(tracks_low=10, tracks_high=1000)


def made(kind: type[WanDiT], model: ModelConfig, device: torch.device, seed: int) -> WanDiT:
    """Random weights, also where fresh ones are zero, drawn on `device`; layers are recomputed in the backward pass."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        dit = kind(model)
        for weight in (dit.proj_out.weight.data, dit.track_slice):
            nn.init.normal_(weight, std=0.02)
    dit.checkpoint_layers = True
    return dit


def frozen(dit: WanDiT, device: torch.device) -> WanDiT:
    return dit.to(inference_dtype(device)).eval().requires_grad_(False)


def teacher_step(model: ModelConfig, ctx: RunContext) -> dict[str, dict[str, float]]:
    """One step of flow matching on one clip with tracks."""
    cfg = teacher.TeacherConfig(
        batch=1, phase1_steps=1, phase2_steps=0, lr=LR, augment=AUGMENT, probe_clips=1, picture_clips=0
    )
    dit = made(WanDiT, model, ctx.device, 1)
    probe = teacher.Probe(clips(model, 1, 99).to(ctx.device), model, AUGMENT, decode, 0)
    return step(teacher.TeacherMethod(dit, model, cfg, probe), clips(model, 1), ctx, cfg.clip_norm)


def adapt_step(model: ModelConfig, ctx: RunContext) -> dict[str, dict[str, float]]:
    """One step of causal adaptation on one trajectory."""
    cfg = adapt.AdaptConfig(batch=1, steps=1, lr=LR, picture_clips=0)
    student = made(CausalDiT, model, ctx.device, 1)
    assert isinstance(student, CausalDiT)
    pairs = random_pairs(model).to(ctx.device)
    method = adapt.AdaptMethod(student, model, cfg, pairs, decode, 0)
    return step(method, pairs, ctx, cfg.clip_norm)


def dmd_step(model: ModelConfig, ctx: RunContext) -> dict[str, dict[str, float]]:
    """One step of the generator and one of the critic, the teacher frozen in the type of inference."""
    cfg = dmd.DmdConfig(batch=1, steps=1, lr=LR, critic_lr=LR, augment=AUGMENT, heldout_clips=1, picture_clips=0)
    run = dmd.DmdRun(model, cfg)
    generator, critic = made(CausalDiT, model, ctx.device, 1), made(WanDiT, model, ctx.device, 2)
    assert isinstance(generator, CausalDiT)
    real = frozen(made(WanDiT, model, ctx.device, 3), ctx.device)
    heldout = clips(model, 1, 99).to(ctx.device)
    method = dmd.DmdMethod(run, generator, critic, real, heldout, decode, 0)
    return step(method, clips(model, 1), ctx, cfg.clip_norm)


STAGES: dict[str, Callable[[ModelConfig, RunContext], dict[str, dict[str, float]]]] = {
    "teacher": teacher_step,
    "adapt": adapt_step,
    "dmd": dmd_step,
}


def random_pairs(model: ModelConfig) -> PairBatch:
    """One trajectory of noise."""
    batch = clips(model, 1)
    rng, g = RngStreams(0, 0, 0), torch.Generator().manual_seed(5)
    cond = condition(batch, draw_tracks(batch, AUGMENT, model, rng), model)
    states = torch.randn(1, model.student.steps, *batch.latents.shape[1:], generator=g)
    return PairBatch(states, batch.latents, cond)


def step(method: Method, batch: Any, ctx: RunContext, clip_norm: float) -> dict[str, dict[str, float]]:
    """One step of every module, on the engine that a training takes here: {module: {loss, grad_norm, seconds, peak_gb}}.

    AssertionError where a loss or norm is not finite, or no weight moves.
    """
    out = {}
    engines = {
        n: ctx.engine(x.module, x.optimizer, clip_norm, chunkwise=x.chunkwise)
        for n, x in method.trainable_modules().items()
    }
    for name, engine in engines.items():
        before = [p.detach().clone() for p in trained(engine.module)]
        if ctx.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(ctx.device)
        seconds = time.perf_counter()
        loss = method.loss(name, batch, RngStreams(0, 0, 0)).value
        engine.backward(loss)
        norm = engine.step()
        value = float(loss.detach())  # waits for the device
        seconds = time.perf_counter() - seconds
        peak = torch.cuda.max_memory_allocated(ctx.device) / 1e9 if ctx.device.type == "cuda" else 0.0
        assert np.isfinite([value, norm]).all() and norm > 0, f"{name}: loss {value}, gradient norm {norm}"
        moved = [not torch.equal(a, b) for a, b in zip(before, trained(engine.module), strict=True)]
        assert any(moved), f"{name}: no weight has moved"
        out[name] = {"loss": value, "grad_norm": norm, "seconds": seconds, "peak_gb": peak}
    return out


def trained(module: nn.Module) -> list[Tensor]:
    """A few weights that train: all would be a second model."""
    return [p for p in module.parameters() if p.requires_grad][-4:]


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one call, by CUDA events on a GPU."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - began)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    stop.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(stop))


def student_speed(
    model: ModelConfig, device: torch.device, vae: DecoderMaker | None, chunks: int, warmup: int
) -> dict[str, Any]:
    """Chunk latency (mean, std, p50, p95 in ms) and FPS of a stream, in the type of inference, the clean pass included.

    vae: decodes every chunk; None: the transformer alone. warmup: chunks before the clock, at least those that fill the cache.
    """
    student = frozen(made(CausalDiT, model, device, 1), device)
    assert isinstance(student, CausalDiT)
    batch, n = clips(model, 1, tracks=100).to(device), 100

    def controls(index: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        return batch.xy_px[0, :1].expand(count, -1, -1), torch.ones(count, n, dtype=torch.bool)

    session = ChunkStream(
        student,
        vae or NoDecoder(),
        controls,
        text=batch.text,
        image=image_conditioning(batch.image, model),
        track_id_embedding=clip_ids(1, n, model, torch.Generator().manual_seed(4)).to(device),
        timesteps=student_timesteps(model.student.steps, model.dit.shift),
        generator=torch.Generator().manual_seed(0),
    )
    for _ in range(max(warmup, filled_after(model.student))):
        session.next_chunk()
    ms = [milliseconds(session.next_chunk, device) for _ in range(chunks)]
    frames = model.student.chunk * model.vae.stride_t
    summary = vars(latency([x / 1000 for x in ms]))
    return {"chunk_latency_ms": summary, "fps": 1000 * frames * chunks / sum(ms), "chunks": chunks}


def flash_against_sdpa(
    device: torch.device, dtype: torch.dtype, query: int, keys: int, heads: int, head_dim: int, rounds: int
) -> dict[str, Any]:
    """`attend` (forward and backward) beside torch's SDPA: greatest difference over the greatest value, and ms of both."""
    chosen = attention.kernel(device, dtype, head_dim)
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(1, n, heads, head_dim, generator=g).to(device, dtype) for n in (query, keys, keys)]
    out: dict[str, Any] = {"kernel": chosen.name, "query": query, "keys": keys, "heads": heads, "head_dim": head_dim}
    found, times = [], {}
    for name, flash in (("attend", chosen.flash), ("sdpa", None)):
        leaves = [x.clone().requires_grad_() for x in given]

        def work(flash: Any = flash, leaves: list[Tensor] = leaves) -> Tensor:
            y = attention.attend_with(flash, *leaves)
            y.float().square().mean().backward()
            return y

        y = work()
        found.append([y.detach().float(), *(x.grad.float().clone() for x in leaves if x.grad is not None)])
        times[f"{name}_ms"] = float(np.median([milliseconds(work, device) for _ in range(rounds)]))
    differences = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True)]
    return out | times | {"worst_difference": max(differences)}
