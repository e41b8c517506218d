"""The training loop. It knows no method by name.

It accumulates and clips gradients, averages weights (EMA), logs, saves, resumes, and stops on non-finite losses.
Resuming is automatic and exact: training 4 steps gives the same bits as training 2, saving, and training 2 more in a
new process (tests/unit/stages/train).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from msmodel.attention import kernel
from msmodel.dit import WanDiT
from msmodel.io.weights import save_weights
from stages.contracts import Context, StageError
from stages.train.ema import Ema
from stages.train.method import Loader, LoopConfig, Loss, Method, RngStreams
from stages.train.raw import averaged_weights, published_module
from stages.train.state import Saver, Training, resume

KEPT = "kept"  # folder of averaged weights of LoopConfig.kept_steps


@dataclass
class _Window:
    """Means of the figures measured since the last log line."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    clips: int = 0
    waited: float = 0.0  # seconds of the steps spent waiting for a batch, on this rank
    stepped: float = 0.0  # seconds of the steps, without validation and saving
    since: float = field(default_factory=time.monotonic)

    def add(self, name: str, value: float) -> None:
        self.sums[name] += value
        self.counts[name] += 1

    def means(self, ctx: Context) -> dict[str, float]:
        """Returns the means over all ranks, which must call it together.

        clips_per_second counts all ranks; loader/wait_share is this rank's.
        """
        means = [total / self.counts[name] for name, total in self.sums.items()]
        out = dict(zip(self.sums, _averaged(means, ctx), strict=True))
        speed = self.clips / max(time.monotonic() - self.since, 1e-9)
        return {**out, "clips_per_second": speed, "loader/wait_share": self.waited / max(self.stepped, 1e-9)}

    def note(self) -> str:
        """Returns the mean losses as text for the progress bar."""
        losses = [f"{n} {total / self.counts[n]:.4f}" for n, total in self.sums.items() if n.startswith("loss/")]
        return " ".join(losses)


def train(method: Method, loader: Loader, cfg: LoopConfig, seed: int, ctx: Context) -> dict[str, float]:
    """Trains the method's modules for cfg.total_steps steps, from the newest save in ctx.workdir if there is one.

    Every rank calls it. Afterwards the modules hold their averaged weights, where an average is kept: rank 0's in
    float32. Returns the metrics of the last validation, measured on those weights. Raises StageError on a non-finite
    loss, after saving its batch, and if a GPU's memory is too small, with the settings that would need less.
    """
    try:
        return _train(method, loader, cfg, seed, ctx)
    except torch.OutOfMemoryError as error:
        raise StageError(_too_large(cfg, ctx)) from error


def _train(method: Method, loader: Loader, cfg: LoopConfig, seed: int, ctx: Context) -> dict[str, float]:
    modules, micro_steps = method.trainable_modules(), cfg.micro_steps(ctx.world_size)
    engines = {
        n: ctx.engine(x.module, x.optimizer, cfg.clip_norm, micro_steps, x.chunkwise) for n, x in modules.items()
    }
    emas = {
        n: Ema(engines[n].master_weights(), cfg.ema_decay, engines[n].average_device)
        for n, x in modules.items()
        if x.ema
    }
    for name, trainable in modules.items():
        assert engines[name].module is trainable.module, (
            f"the engine of {name} wraps another module than the method uses"
        )
    for name in sorted({_attention(x.module, ctx) for x in modules.values() if isinstance(x.module, WanDiT)}):
        ctx.log(f"attention: {name}")
    training = Training(modules, engines, emas, loader)
    done = resume(training, ctx)
    saved_at, window = time.monotonic(), _Window()
    batches = iter(loader)
    if not done:
        validate(method, 0, ctx)  # figures before training; also the first image in the tracker
    keep = partial(_keep_average, training, cfg.kept_steps, ctx)
    with Saver(training, ctx, keep) as saver, ctx.progress(method.name, cfg.total_steps) as progress:
        if done:
            progress.advance(done, note="resumed")
        for step in range(done, cfg.total_steps):
            _step(method, training, batches, cfg, seed, step, window, ctx)
            done = step + 1
            last = done == cfg.total_steps
            progress.advance(1, note=window.note())
            if done % cfg.log_steps == 0 or last:
                ctx.emit(done, window.means(ctx) | loader.metrics())
                window = _Window()
            if done % cfg.validate_steps == 0 and not last:
                validate(method, done, ctx)
            due = done % cfg.save_steps == 0 or done in cfg.kept_steps or last
            if _agree(due or time.monotonic() - saved_at > 60 * cfg.save_minutes, ctx):
                saver.save(done)
                saved_at = time.monotonic()
    for name, ema in emas.items():
        engines[name].finish(ema.shadow)
    metrics = validate(method, done, ctx)  # in the type in which the weights will be used
    for name in emas:
        engines[name].to_float32()
    return metrics


def _keep_average(training: Training, steps: Collection[int], ctx: Context, step: int, save: Path) -> None:
    """Writes the averaged weights of a save to kept/step-NNNNNNNN, for good, if `step` is one of `steps`."""
    if step in steps:
        module = training.modules[published_module(save)].module
        meta = {"step": step, "seed": ctx.seed}
        save_weights(module, ctx.workdir / KEPT / f"step-{step:08d}", meta, averaged_weights(save))


def _attention(dit: WanDiT, ctx: Context) -> str:
    """Returns the name of the attention kernel that this model uses here."""
    return kernel(ctx.device, dit.patch_embedding.weight.dtype, dit.cfg.dit.dim // dit.cfg.dit.heads).name


def validate(method: Method, step: int, ctx: Context) -> dict[str, float]:
    """Emits the method's held-out figures and pictures and returns the figures."""
    seen = method.validate(step)
    if seen.metrics:
        ctx.emit(step, seen.metrics)
    for key, picture in seen.pictures.items():
        ctx.image(key, picture, step)
    for warning in seen.warnings:
        ctx.log(f"step {step}: {warning}")
    return dict(seen.metrics)


def _step(
    method: Method,
    training: Training,
    batches: Iterator[Any],
    cfg: LoopConfig,
    seed: int,
    step: int,
    window: _Window,
    ctx: Context,
) -> None:
    """Runs one step: this rank's micro-batches through every module that is updated in it."""
    began, scheduled = time.perf_counter(), method.update_schedule(step)
    for name in scheduled:
        for group in training.modules[name].optimizer.param_groups:
            group["lr"] = method.lr(name, group["name"], step)
    micro_steps = cfg.micro_steps(ctx.world_size)
    for micro in range(micro_steps):
        asked = time.perf_counter()
        batch, rng = next(batches), RngStreams(seed, step, micro * ctx.world_size + ctx.rank)
        window.waited += time.perf_counter() - asked
        window.clips += cfg.batch * ctx.world_size
        for name in scheduled:
            loss = method.loss(name, batch, rng)
            _check(loss, name, batch, step, ctx)
            training.engines[name].backward(loss.value)
            norm = training.engines[name].step()
            _measure(window, name, loss)
            if micro == micro_steps - 1:
                window.add(f"grad_norm/{name}", norm)
                if not math.isfinite(norm):
                    _alarm(f"gradient of {name}", name, batch, step, ctx)
    for name in scheduled:
        if name in training.emas:
            training.emas[name].update(training.engines[name].master_weights())
    window.stepped += time.perf_counter() - began


def _measure(window: _Window, module: str, loss: Loss) -> None:
    window.add(f"loss/{module}", float(loss.value.detach()))
    for name, value in loss.metrics.items():
        window.add(f"{name}/{module}", value)


def _check(loss: Loss, module: str, batch: Any, step: int, ctx: Context) -> None:
    for warning in loss.warnings:
        ctx.log(f"step {step + 1}: {warning}")
    if not bool(torch.isfinite(loss.value.detach()).all()):
        _alarm(f"loss of {module}", module, batch, step, ctx)


def _alarm(what: str, module: str, batch: Any, step: int, ctx: Context) -> None:
    """Saves the batch and raises StageError, which stops the training."""
    folder = ctx.workdir / "alarms"
    path = folder / f"step-{step + 1:08d}-{module}-rank-{ctx.rank:05d}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_batch(batch, path)
    raise StageError(
        f"the {what} is not finite at step {step + 1}: its batch is in {path}. Look for damaged clips there, lower the "
        f"learning rate or clip_norm, and run again: the training resumes from its last save"
    )


def save_batch(batch: Any, path: Path) -> None:
    """Writes a batch's tensors as safetensors, and its other fields (clip ids) as their metadata."""
    values: Mapping[str, Any] = (
        {f.name: getattr(batch, f.name) for f in fields(batch)} if is_dataclass(batch) else dict(batch)
    )
    tensors = {n: v.detach().cpu().contiguous() for n, v in values.items() if isinstance(v, Tensor)}
    save_file(tensors, path, metadata={n: repr(v) for n, v in values.items() if not isinstance(v, Tensor)})


def _too_large(cfg: LoopConfig, ctx: Context) -> str:
    """Returns the error message for too little GPU memory, with the settings that need less."""
    savings = cfg.settings_that_save_memory(ctx.world_size) + ctx.settings_that_save_memory()
    return (
        f"the GPU's memory is too small for {cfg.group}.batch={cfg.batch}. These take less, the first ones at the least cost: "
        f"{'; '.join(savings)}. The training resumes from its last save where only compute.* changes"
    )


def _averaged(values: list[float], ctx: Context) -> list[float]:
    """Returns the mean of each value over the ranks."""
    if ctx.world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=ctx.device)
    torch.distributed.all_reduce(total)
    return (total / ctx.world_size).tolist()


def _agree(wish: bool, ctx: Context) -> bool:
    """Returns whether any rank has the wish. Clocks differ between ranks, but all must save together or not at all."""
    if ctx.world_size == 1:
        return wish
    flag = torch.tensor([float(wish)], device=ctx.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
