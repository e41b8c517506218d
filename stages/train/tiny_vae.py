"""Stage TINY_VAE: trains a small decoder for streaming on the frozen encoder's latents of real pixels.

Loss = L1 + multi-scale difference of image gradients, which replaces LPIPS (its weights are not available offline) +
optional adversarial hinge loss with a patch discriminator (paper: reconstruction + LPIPS + adversarial). At nano the
adversarial weight is 0: at 80x48 pixels a discriminator costs more than it gains.

Legend: b batch, z latent channels, t latent frames, h w latent size, T pixel frames, H W pixels; pixels in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from msmodel.config import ModelConfig
from msmodel.tiny_vae import TinyDecoder, load_tiny_vae
from stages.contracts import Context, Resources, Stage
from stages.data.loader import IN_PROCESS, LoaderConfig
from stages.records import Checkpoint, ShardSet
from stages.train.frames import CropSize, FrameBatch, FrameLoader
from stages.train.loop import train
from stages.train.method import Loader, Loss, RngStreams, StepsConfig, TrainableModule, Validation, at_least, scheduled
from stages.train.optim import make_optimizer
from stages.train.publish import RANDOM, publish
from stages.train.sampling import contact_sheet_of_videos

DECODER, DISCRIMINATOR = "decoder", "discriminator"


@dataclass(frozen=True)
class TinyVAEConfig(StepsConfig):
    """Settings of the tiny VAE's training. Paper: 200 K steps, lr 3e-4, batch 16, crops of 144x144x21.

    width: channels of the finest level. init: "random", "embedded:NAME" or a folder. latent_frames: latent frames of
    the training crop, 0 = all. side_px: side of the training crop in pixels, 0 = full size. fit_clips: crops for the
    least-squares initialisation of a random decoder's linear projection.
    """

    group: ClassVar[str] = "tiny_vae"
    spares: ClassVar[bool] = True  # its batch and its work are small

    steps: int = 200_000
    batch: int = 16
    lr: float = 3e-4
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    width: int = 64
    init: str = RANDOM
    latent_frames: int = 6
    side_px: int = 144
    gradient_weight: float = 1.0  # weight of the image-gradient loss added to the pixel loss
    adversarial_weight: float = 0.0  # weight of the discriminator's loss; 0 trains none
    discriminator_lr: float = 1e-4  # learning rate of the discriminator
    fit_clips: int = 8
    heldout_clips: int = 8  # clips that held-out figures are measured on
    picture_clips: int = 2  # held-out clips on the contact sheet

    def checks(self) -> list[str]:
        least = dict.fromkeys(("width", "heldout_clips"), 1)
        least |= dict.fromkeys(("latent_frames", "side_px", "fit_clips", "picture_clips"), 0)
        least |= dict.fromkeys(("gradient_weight", "adversarial_weight", "discriminator_lr"), 0)
        out = super().checks() + at_least(self, least)
        if self.latent_frames == 1:
            out.append("latent_frames: 1 holds no motion; give at least 2, or 0 for whole clips")
        return out


@dataclass(frozen=True)
class TinyBaseConfig(TinyVAEConfig):
    """Settings of the tiny VAE that `make nano-base` ships, from which the nano preset's own tiny VAE starts."""

    group: ClassVar[str] = "tiny_base"


@dataclass(frozen=True)
class TinyVAERun:
    """Settings that stage TINY_VAE reads. All of them are hashed into its key."""

    model: ModelConfig
    tiny_vae: TinyVAEConfig


@dataclass(frozen=True)
class TinyVAEInputs:
    """Inputs of stage TINY_VAE: training and held-out shards, and the loader's settings."""

    train: ShardSet
    heldout: ShardSet
    loader: LoaderConfig = field(default_factory=LoaderConfig)


def gradient_loss(made: Tensor, real: Tensor, scales: int = 3) -> Tensor:
    """Returns the mean L1 difference of horizontal and vertical image gradients, at `scales` resolutions, a scalar.

    made, real: b 3 T H W.
    """
    a, b = (rearrange(v, "b c t h w -> (b t) c h w") for v in (made, real))
    total = a.new_zeros(())
    for scale in range(scales):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        error = a - b
        total = total + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return total / scales


class PatchDiscriminator(nn.Module):
    """Classifies patches of single frames as real or decoded: b 3 T H W -> logits (b T) 1 h w."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [(3, width), (width, 2 * width), (2 * width, 4 * width)]
        layers: list[nn.Module] = []
        for inputs, outputs in sizes:
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, video: Tensor) -> Tensor:
        weight = self.net[0].weight
        assert isinstance(weight, Tensor)
        return self.net(rearrange(video, "b c t h w -> (b t) c h w").to(weight.dtype)).float()


class TinyVAEMethod:
    """Reconstruction from latents. It trains "decoder", and also "discriminator" if adversarial_weight is above 0."""

    name = "tiny_vae"

    def __init__(
        self, decoder: TinyDecoder, cfg: TinyVAERun, heldout: FrameBatch, seed: int, device: torch.device
    ) -> None:
        self.decoder, self.cfg, self.heldout, self.device = decoder, cfg.tiny_vae, heldout, device
        self._modules = {DECODER: TrainableModule(decoder, make_optimizer(decoder, cfg.tiny_vae))}
        self.discriminator: PatchDiscriminator | None = None
        if cfg.tiny_vae.adversarial_weight > 0:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.discriminator = PatchDiscriminator().to(device)
            optimizer = make_optimizer(self.discriminator, cfg.tiny_vae, lr=cfg.tiny_vae.discriminator_lr)
            self._modules[DISCRIMINATOR] = TrainableModule(self.discriminator, optimizer, ema=False)

    def trainable_modules(self) -> dict[str, TrainableModule]:
        return self._modules

    def update_schedule(self, step: int) -> tuple[str, ...]:
        return tuple(self._modules)

    def lr(self, module: str, group: str, step: int) -> float:
        return scheduled(self.cfg.lr if module == DECODER else self.cfg.discriminator_lr, self.cfg, step)

    def loss(self, module: str, batch: FrameBatch, rng: RngStreams) -> Loss:
        batch = batch.to(self.device)
        video = batch.video()
        if module == DISCRIMINATOR:
            return Loss(self.hinge(self._decode(batch, video).detach(), video))
        made = self._decode(batch, video)
        l1, gradients = F.l1_loss(made, video), gradient_loss(made, video)
        value = l1 + self.cfg.gradient_weight * gradients
        metrics = {"l1": float(l1.detach()), "gradients": float(gradients.detach())}
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)  # the gradient goes through it to the decoder
            fooled = -self.discriminator(made).mean()
            self.discriminator.requires_grad_(True)
            value = value + self.cfg.adversarial_weight * fooled
        return Loss(value, metrics)

    def _decode(self, batch: FrameBatch, video: Tensor) -> Tensor:
        """Decodes the crops, b 3 T H W. Where a crop begins within its clip, its first latent is there for the decoder's
        memory only: its frame is replaced by the true one, which adds nothing to any loss."""
        made = self.decoder(batch.latents)
        if bool(batch.begins.all()):
            return made
        first = torch.where(batch.begins[:, None, None, None, None], made[:, :, :1], video[:, :, :1])
        return torch.cat([first, made[:, :, 1:]], dim=2)

    def hinge(self, made: Tensor, video: Tensor) -> Tensor:
        """Returns the discriminator's hinge loss on decoded and real videos, b 3 T H W."""
        assert self.discriminator is not None
        return F.relu(1 - self.discriminator(video)).mean() + F.relu(1 + self.discriminator(made)).mean()

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns heldout/psnr (dB, mean over frames) and heldout/l1 of whole held-out clips, and a contact sheet.

        Clips are decoded one by one and a few frames at a time, so that memory does not grow with their number or length.
        """
        psnr, l1 = [], []
        rows: list[Tensor] = []
        for clip in self.heldout.clips():
            video = clip.video()
            made = decode_stepwise(self.decoder, clip.latents.to(self.device)).cpu()
            per_frame = rearrange((made - video).square(), "1 c t h w -> t (c h w)").mean(dim=1)
            psnr.append(10 * torch.log10(4 / per_frame.clamp_min(1e-10)))
            l1.append(float((made - video).abs().mean()))
            if len(rows) < 2 * self.cfg.picture_clips:
                rows += [video[0], made[0]]
        metrics = {"heldout/psnr": float(torch.cat(psnr).mean()), "heldout/l1": sum(l1) / len(l1)}
        return Validation(metrics, {"tiny_vae": contact_sheet_of_videos(rows)} if rows else {})


AT_ONCE = 2  # latent frames decoded at a time


def decode_stepwise(decoder: TinyDecoder, latents: Tensor) -> Tensor:
    """Returns the video b 3 T H W in [-1, 1] of whole clips' latents b z t h w, decoded a few latent frames at a time."""
    stream = decoder.decoder()
    return torch.cat([stream.push(part) for part in latents.split(AT_ONCE, dim=2)], dim=2)


def initial_decoder(cfg: TinyVAERun, start: FrameBatch, seed: int) -> TinyDecoder:
    """Returns the initial decoder. A random one gets its linear projection by least squares on `start`."""
    if cfg.tiny_vae.init != RANDOM:
        return load_tiny_vae(cfg.tiny_vae.init).train().requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = TinyDecoder(cfg.model.vae, cfg.tiny_vae.width)
    if cfg.tiny_vae.fit_clips:
        decoder.fit_preview(start.latents, start.video())
    return decoder


def fit(cfg: TinyVAERun, decoder: TinyDecoder, loader: Loader, heldout: FrameBatch, ctx: Context) -> dict[str, float]:
    """Trains `decoder` in place and leaves it with the averaged weights. Returns the last held-out figures."""
    method = TinyVAEMethod(decoder, cfg, heldout, ctx.seed, ctx.device)
    return train(method, loader, cfg.tiny_vae, ctx.seed, ctx)


def some_frames(shards: ShardSet, most: int, size: CropSize) -> FrameBatch:
    """Returns crops of at most `most` clips of a set, the same every time and on every rank."""
    loader = replace(IN_PROCESS, decode_workers=0)
    return next(iter(FrameLoader((shards,), min(most, shards.clips), 0, 0, 1, size, loader)))


def run(cfg: TinyVAERun, inputs: TinyVAEInputs, ctx: Context) -> Checkpoint:
    """Returns checkpoint "tiny_vae": the averaged weights, with held-out PSNR and L1 as metrics."""
    tiny, vae = cfg.tiny_vae, cfg.model.vae
    crop = CropSize(vae, tiny.latent_frames, tiny.side_px)
    decoder = initial_decoder(cfg, some_frames(inputs.train, max(tiny.fit_clips, 1), crop), ctx.seed).to(ctx.device)
    micro_steps, place = tiny.micro_steps(ctx.world_size), (ctx.rank, ctx.world_size)
    loader = FrameLoader((inputs.train,), tiny.batch, ctx.seed, *place, crop, inputs.loader, ctx.log, micro_steps)
    metrics = fit(cfg, decoder, loader, some_frames(inputs.heldout, tiny.heldout_clips, CropSize(vae)), ctx)
    return publish("tiny_vae", decoder, tiny.total_steps, ctx, metrics=metrics)


TINY_VAE = Stage(name="tiny_vae", version=3, how="distributed", run=run, resources=Resources(threads=2))
