"""Pre-training of the nano VAE: videos -> Checkpoint("vae"). Part of `make nano-base`; the full presets use Wan's own VAE.

The encoder is fixed first: the principal components of space-time patches. Then its decoder's residual network is trained on
Charbonnier(reconstruction) + g Charbonnier(its spatial gradients), from latents with a little noise on them, so that the
decoder does not amplify the small errors of a diffusion model (Rombach et al. 2022, section 3.1, does it by a KL term).
Legend: b batch, z latent channels, t latent frames, T pixel frames, H W pixels; RGB in [-1, 1].
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from msmodel.config import VAEConfig
from msmodel.packages import sha256
from msmodel.patch_vae import PatchVAE, fold, principal_components
from msmodel.vae import WEIGHTS, save_patch_vae
from stages.records import Checkpoint, Video
from stages.spec import Context, Stage, StageError
from stages.train.vae_footage import Footage, decode_small

STATE = "state.safetensors"


@dataclass(frozen=True)
class VAEPretrainConfig:
    """The recipe of the shipped VAE. One step is `batch` clips of `frames` frames at height x width."""

    vae: VAEConfig = field(default_factory=lambda: VAEConfig("embedded:nano", z_channels=8, stride_t=2, stride_s=4))
    decoder_width: int = 96
    decoder_layers: int = 3
    steps: int = 1500
    batch: int = 8
    frames: int = 9
    height: int = 48
    width: int = 80
    learning_rate: float = 1e-3
    warmup: int = 50
    gradient_weight: float = 0.5
    latent_noise: float = 0.05  # standard deviation added to normalised latents while training
    component_batches: int = 100  # of `batch` clips, from which the principal components are taken
    short_side: int = 96  # of the cached footage, pixels
    max_frames: int = 160  # of each source
    save_seconds: float = 120.0
    log_every: int = 20

    def problems(self) -> list[str]:
        out = []
        if (self.frames - 1) % self.vae.stride_t:
            out.append(f"vae_pretrain.frames: {self.frames} is not 1 + a multiple of {self.vae.stride_t}")
        if self.height % self.vae.stride_s or self.width % self.vae.stride_s:
            out.append(f"vae_pretrain.height, width: {self.height}x{self.width} not multiples of {self.vae.stride_s}")
        if self.steps < 1 or self.batch < 1:
            out.append(f"vae_pretrain.steps, batch: {self.steps}, {self.batch} must be at least 1")
        return out


def run(cfg: VAEPretrainConfig, inputs: Sequence[Video], ctx: Context) -> Checkpoint:
    """Trains a VAE on `inputs` (a list that must not hold evaluation sources) and writes it into ctx.workdir.

    Resumes from ctx.workdir where an earlier attempt was cut off. Raises StageError when nothing can be decoded.
    """
    if cfg.problems():
        raise StageError("; ".join(cfg.problems()))
    clips = _decode_all(cfg, inputs, ctx)
    footage = Footage(clips, cfg.height, cfg.width, cfg.frames)
    trainer = Trainer(cfg, footage, ctx)
    if not trainer.resume():
        fix_encoder(trainer.vae, footage, cfg, ctx.seed)
    metrics = trainer.train()
    save_patch_vae(trainer.vae, ctx.workdir)
    return Checkpoint("vae", str(ctx.workdir), cfg.steps, sha256(str(ctx.workdir / WEIGHTS)), metrics=metrics)


STAGE = Stage("vae", 2, "once", run)


@torch.no_grad()
def fix_encoder(vae: PatchVAE, footage: Footage, cfg: VAEPretrainConfig, seed: int) -> None:
    """Sets the encoder to the principal components of patches drawn from the footage."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [fold(footage.batch(cfg.batch, generator), cfg.vae) for _ in range(cfg.component_batches)]
    patches = torch.cat([rearrange(p, "b p t h w -> (b t h w) p") for p in drawn])
    vae.set_components(*principal_components(patches, cfg.vae.z_channels))


def reconstruction_loss(x: Tensor, target: Tensor, gradient_weight: float) -> Tensor:
    """Charbonnier of the pixels, plus gradient_weight times that of the differences between neighbours in y and x."""
    error = x - target
    loss = _charbonnier(error).mean()
    for dim in (-1, -2):
        loss = loss + gradient_weight * _charbonnier(error.diff(dim=dim)).mean() / 2
    return loss


def psnr(x: Tensor, target: Tensor) -> float:
    """dB over the whole batch, peak 2 (pixels in [-1, 1])."""
    return float(10.0 * torch.log10(4.0 / (x - target).square().mean()))


class Trainer:
    """AdamW with warm-up and cosine decay, and a state file so that a cut-off run goes on where it stood."""

    def __init__(self, cfg: VAEPretrainConfig, footage: Footage, ctx: Context):
        torch.manual_seed(ctx.seed)
        self.cfg, self.footage, self.ctx = cfg, footage, ctx
        self.vae = PatchVAE(cfg.vae, cfg.decoder_width, cfg.decoder_layers).to(ctx.device)
        self.weights = list(self.vae.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, lr=cfg.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.generator = torch.Generator().manual_seed(ctx.seed + 1)
        self.step = 0

    def train(self) -> dict[str, float]:
        """Runs to cfg.steps; returns the means of the last metrics logged."""
        metrics: dict[str, float] = {}
        window: list[dict[str, float]] = []
        saved = time.monotonic()
        with self.ctx.progress("vae", self.cfg.steps) as bar:
            bar.advance(self.step)
            while self.step < self.cfg.steps:
                window.append(self.train_step())
                self.step += 1
                bar.advance()
                if self.step % self.cfg.log_every == 0 or self.step == self.cfg.steps:
                    metrics = {k: sum(m[k] for m in window) / len(window) for k in window[0]}
                    window = []
                    self.ctx.emit(self.step, metrics)
                if time.monotonic() - saved > self.cfg.save_seconds:
                    self.save()
                    saved = time.monotonic()
        self.save()
        return metrics

    def train_step(self) -> dict[str, float]:
        """One optimizer step. Raises StageError when the loss is not finite; the batch is saved beside the state."""
        cfg = self.cfg
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(cfg, self.step)
        x = self.footage.batch(cfg.batch, self.generator).to(self.ctx.device)
        latents = self.vae.encode(x)
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        y = self.vae.reconstruct(latents + cfg.latent_noise * noise)
        loss = reconstruction_loss(y, x, cfg.gradient_weight)
        if not torch.isfinite(loss):
            save_file({"video": x}, self.ctx.workdir / "bad_batch.safetensors")
            raise StageError(f"vae: loss is {loss.item()} at step {self.step}; its batch is in {self.ctx.workdir}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        return {"vae/loss": loss.item(), "vae/psnr": psnr(y.detach(), x), "vae/grad_norm": float(norm)}

    def save(self) -> None:
        """Writes weights, optimizer, generator and step, atomically."""
        state: dict[str, Tensor] = {"step": torch.tensor(self.step), "generator": self.generator.get_state()}
        state |= {f"vae.{k}": v for k, v in self.vae.state_dict().items()}
        for i, w in enumerate(self.weights):
            state |= {f"adam.{i}.{k}": v for k, v in self.optimizer.state[w].items()}
        aside = self.ctx.workdir / f".{STATE}.writing"
        save_file({k: v.contiguous() for k, v in state.items()}, aside)
        aside.replace(self.ctx.workdir / STATE)

    def resume(self) -> bool:
        """Goes on from the state file in the work folder; whether there was one."""
        path: Path = self.ctx.workdir / STATE
        if not path.is_file():
            return False
        state = load_file(path)
        self.step = int(state["step"])
        self.generator.set_state(state["generator"])
        self.vae.load_state_dict({k.removeprefix("vae."): v for k, v in state.items() if k.startswith("vae.")})
        for i, w in enumerate(self.weights):
            prefix = f"adam.{i}."
            self.optimizer.state[w] = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.ctx.say(f"vae: going on at step {self.step}")
        return True


def learning_rate(cfg: VAEPretrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to 2% of the peak at cfg.steps."""
    if step < cfg.warmup:
        return cfg.learning_rate * (step + 1) / cfg.warmup
    share = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    return cfg.learning_rate * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share))))


def _decode_all(cfg: VAEPretrainConfig, videos: Sequence[Video], ctx: Context) -> list[Tensor]:
    clips = []
    with ctx.progress("footage", len(videos)) as bar:
        for video in videos:
            try:
                clips.append(decode_small(video, cfg.short_side, cfg.max_frames))
                bar.advance()
            except ValueError as e:
                bar.advance(failed=1, note=str(e))
    if not clips:
        raise StageError(f"vae: none of {len(videos)} videos could be decoded; check the paths of the sources")
    return clips


def _charbonnier(error: Tensor) -> Tensor:
    return (error.square() + 1e-6).sqrt()
