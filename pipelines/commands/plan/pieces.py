"""Runs the computations of which the stages consist on the meta device: the model's own code on tensors without values.

Each is one micro-step, or one pass, of one rank, with its inputs. Optimizers, data loading and validation are not
included.

Legend: b batch, k student timesteps, z latent channels, c channels, t latent frames, h w latent size, l text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from msmodel import flow, guidance, losses
from msmodel.batch import Conditioning
from msmodel.causal import CausalDiT
from msmodel.config import CLIP_TOKENS, ModelConfig, StudentConfig, VAEConfig
from msmodel.rollout import denoise_chunks, generate_chunk, rollout, start
from msmodel.track_encoding import encode_tracks
from msmodel.vae import EMBEDDED, fresh_vae, load_vae
from pipelines.commands.plan.trace import Cost, count

META = torch.device("meta")


@dataclass(frozen=True)
class How:
    """How a computation is run. batch: clips of a micro-batch. dtype: type of the weights; the residual stream is
    float32 in any case. checkpoint: whether layers are recomputed in the backward pass. keep_attention: whether they
    then keep the results of attention. keep: whether full gradients
    accumulate during the backward pass and count; otherwise each is freed at once (added to a shard, or counted
    elsewhere)."""

    batch: int
    dtype: torch.dtype = torch.float32
    checkpoint: bool = False
    keep: bool = False
    keep_attention: bool = False


class Pieces:
    """The computations, with one model for every role: generator, critic and teacher have the same parameters."""

    def __init__(self, model: ModelConfig, how: How) -> None:
        self.model, self.how = model, how
        with META:
            self.dit = CausalDiT(model).to(how.dtype)
        self.dit.checkpoint_layers, self.dit.keep_attention = how.checkpoint, how.keep_attention
        self.times = flow.student_timesteps(model.student.steps, model.dit.shift)
        self.generator = torch.Generator()
        if not how.keep:
            for p in self.dit.parameters():
                p.register_post_accumulate_grad_hook(_forget)

    def empty(self, *shape: int) -> Tensor:
        """Returns a tensor of shape (batch, *shape) on the meta device."""
        return torch.empty(self.how.batch, *shape, device=META)

    def latents(self, frames: int = 0) -> Tensor:
        """Returns latents b z t h w as the loader yields them. frames: latent frames; 0 for a whole clip."""
        m = self.model
        return self.empty(m.vae.z_channels, frames or m.latent_frames, m.latent_height, m.latent_width)

    def cond(self, frames: int = 0) -> Conditioning:
        """Returns the conditioning of a batch. frames: latent frames; 0 for a whole clip."""
        m, t = self.model, frames or self.model.latent_frames
        size = (t, m.latent_height, m.latent_width)
        image = self.empty(m.mask_channels + m.image_channels or m.vae.z_channels, *size)
        image_tokens = self.empty(CLIP_TOKENS, m.dit.clip_dim) if m.dit.clip_dim else None
        text, tracks = self.empty(m.text.length, m.text.dim), self.empty(m.track_feature_channels, *size)
        return Conditioning(text, image, tracks, image_tokens)

    def flow_step(self, frames: int = 0) -> None:
        """Runs a micro-step of the teacher: flow matching on clips of `frames` latent frames (0: whole clips)."""
        latents, image, cond = self.latents(frames), self.latents(frames), self.cond(frames)
        self._flow_loss(latents, cond).backward()
        del image  # part of the batch, of which the conditioning holds a copy

    def _flow_loss(self, latents: Tensor, cond: Conditioning) -> Tensor:
        t, eps = self.empty(), torch.empty_like(latents)
        v = self.dit(flow.add_noise(latents, eps, t), t, cond)
        return losses.flow_matching(v, flow.velocity(latents, eps), t)

    @torch.no_grad()
    def probed(self) -> Tensor:
        """Returns the teacher's held-out loss without tracks, while the inputs with tracks are also in memory."""
        latents, cond = self.latents(), self.cond()
        return self._flow_loss(latents, cond.without_tracks())

    def adapt_step(self, context: StudentConfig, grad: bool = True) -> None:
        """Runs a micro-step of the causal adaptation with the sink and window of `context`; without grad, its held-out
        loss."""
        m, cond = self.model, self.cond()
        states = self.empty(m.student.steps, *self.latents().shape[1:])
        endpoint, picked = self.latents(), self.latents()
        with torch.set_grad_enabled(grad):
            x0 = denoise_chunks(self.dit, picked, self.empty(m.chunks), cond, endpoint, context)
            loss = losses.regression(x0, endpoint)
        if grad:
            loss.backward()
        del states

    def generator_step(self, exit_step: int, w_text: float, w_track: float) -> None:
        """Runs a micro-step of DMD's generator: a rollout with gradient through the exit step, both scores, and the
        backward pass."""
        x, t, noisy, real, cond, *held = self.teacher_scored(exit_step, w_text, w_track)
        with torch.no_grad():
            fake = flow.x0_from_velocity(noisy, self.dit(noisy, t, cond), t)
        losses.dmd(x, real, fake).backward()
        del held

    def teacher_scored(self, exit_step: int, w_text: float, w_track: float) -> tuple[Any, ...]:
        """Runs the generator's step up to the teacher's score, after which the teacher may leave the device. Returns
        all tensors that are live then."""
        latents, image, cond = self.latents(), self.latents(), self.cond()
        x = self._rolled(cond, exit_step, grad=True)
        t, eps = self.empty(), torch.empty_like(x)
        noisy = flow.add_noise(x.detach(), eps, t)
        real = flow.x0_from_velocity(noisy, guidance.joint(self.dit, noisy, t, cond, w_text, w_track), t)
        return x, t, noisy, real, cond, eps, latents, image

    def critic_step(self, exit_step: int) -> None:
        """Runs a micro-step of DMD's critic: flow matching on a new rollout."""
        latents, image, cond = self.latents(), self.latents(), self.cond()
        self._flow_loss(self._rolled(cond, exit_step, grad=False), cond).backward()
        del latents, image

    def _rolled(self, cond: Conditioning, exit_step: int, grad: bool) -> Tensor:
        with torch.set_grad_enabled(grad):
            own, noise = self.model.student, self.latents()
            return rollout(self.dit, cond, noise, self.times, own, self.generator, exit_step=exit_step, grad=grad)

    def rolled(self, exit_step: int) -> Tensor:
        """Returns the latents of a rollout without gradient."""
        return self._rolled(self.cond(), exit_step, grad=False)

    def guided(self, w_text: float, w_track: float) -> Tensor:
        """Returns the velocity of one evaluation of the teacher with joint guidance."""
        noisy, cond = self.latents(), self.cond()
        return guidance.joint(self.dit, noisy, self.empty(), cond, w_text, w_track)

    @torch.no_grad()
    def streamed(self, chunks: int) -> None:
        """Generates the first `chunks` chunks of a stream and writes each into the cache."""
        m, own = self.model, self.model.student
        first = self.cond(own.chunk + int(m.image_alone))
        text = self.dit.text_keys_values(first.text, first.image_tokens)
        cache = start(self.dit, first, own, text)
        for i in range(chunks):
            cond, context = self.cond(own.chunk), cache.context(i)
            noise = self.latents(own.chunk)
            x = generate_chunk(self.dit, noise, cond, context, self.times, self.generator, text=text)
            cache.write(i, self.dit.clean_pass(x, cond, context, text))


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


@lru_cache(maxsize=512)
def cost(model: ModelConfig, how: How, piece: Callable[..., object], *given: Any) -> Cost:
    """Returns the cost of one computation. piece: a method of Pieces. given: its arguments.

    For a model of 4 layers or more, models of 2 and 3 layers are traced and extrapolated, because the cost is linear in
    the number of layers (tests/unit/pipelines/planning).
    """

    def shallow(layers: int) -> Cost:
        pieces = Pieces(replace(model, dit=replace(model.dit, layers=layers)), how)
        return count(lambda: piece(pieces, *given))

    layers = model.dit.layers
    return shallow(layers) if layers < 4 else shallow(2).at(shallow(3), layers - 2)


@lru_cache(maxsize=32)
def parameters(model: ModelConfig) -> tuple[int, int]:
    """Returns the numbers of parameters of one DiT: (all, those in the layers' matrices, which Muon would train)."""
    with META:
        named = list(CausalDiT(model).named_parameters())
    matrices = sum(p.numel() for n, p in named if n.startswith("blocks.") and p.ndim == 2)
    return sum(p.numel() for _, p in named), matrices


@lru_cache(maxsize=32)
def largest(model: ModelConfig) -> int:
    """Returns the number of elements of the largest weight of one DiT."""
    with META:
        return max(p.numel() for p in CausalDiT(model).parameters())


@lru_cache(maxsize=8)
def vae_on_meta(cfg: VAEConfig) -> nn.Module:
    """Returns the VAE on the meta device: a shipped one from its file, else the Wan VAE of these sizes in float32."""
    if cfg.source.startswith(EMBEDDED):
        return load_vae(cfg).to(META)
    with META:
        return fresh_vae(cfg)


@lru_cache(maxsize=8)
def vae_bytes(cfg: VAEConfig) -> int:
    """Returns the bytes of the VAE's parameters and buffers in their types."""
    vae = vae_on_meta(cfg)
    return sum(x.numel() * x.element_size() for x in (*vae.parameters(), *vae.buffers()))


@lru_cache(maxsize=64)
def decoded(model: ModelConfig, frames: int = 0) -> Cost:
    """Returns the cost of decoding one clip of `frames` latent frames (0: a whole clip)."""
    vae: Any = vae_on_meta(model.vae)
    size = (model.vae.z_channels, frames or model.latent_frames, model.latent_height, model.latent_width)
    return count(lambda: vae.decode(torch.empty(1, *size, device=META)))


@lru_cache(maxsize=64)
def drawn(model: ModelConfig, tracks: int, frames: int = 0) -> Cost:
    """Returns the cost of encoding the tracks of one clip, or of `frames` latent frames of it, as a picture through the
    VAE.

    This applies to dit.track_encoding=rgb_vae; otherwise the cost is 0, because the map that the track head reads is
    cheap.
    """
    if model.dit.track_encoding != "rgb_vae":
        return Cost(0.0, 0.0)
    vae: Any = vae_on_meta(model.vae)
    span = 1 + ((frames or model.latent_frames) - 1) * model.vae.stride_t
    xy_px, colour = torch.empty(1, span, tracks, 2, device=META), torch.empty(1, tracks, 3, device=META)
    visible = torch.empty(1, span, tracks, dtype=torch.bool, device=META)
    return count(lambda: encode_tracks(xy_px, visible, colour, model, vae))
