"""Stage VAE: pre-trains the nano VAE on videos. It is part of `make nano-base`; the full presets use Wan's own VAE.

The encoder is set first, to the principal components of space-time patches. Then the decoder's residual network is
trained on Charbonnier(reconstruction) + g Charbonnier(its spatial gradients). A little noise is added to the latents,
so that the decoder does not amplify the small errors of a diffusion model (Rombach et al. 2022, section 3.1, use a KL
term for this).

Legend: b batch, z latent channels, t latent frames, p patch values, T pixel frames, H W pixels; RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from msmodel.config import VAEConfig
from msmodel.nano.patch_vae import PatchVAE, fold, principal_components
from msmodel.vae import save_patch_vae
from stages.contracts import Context, Resources, Stage, StageError
from stages.records import Checkpoint, Video
from stages.train.loop import train
from stages.train.method import Loader, Loss, RngStreams, StepsConfig, TrainableModule, Validation, at_least, scheduled
from stages.train.optim import make_optimizer
from stages.train.publish import weights_digest
from stages.train.sampling import contact_sheet_of_videos
from stages.train.vae_footage import Footage, decode_small


@dataclass(frozen=True)
class VAETrainConfig(StepsConfig):
    """Settings of the training of the shipped VAE. A step takes `batch` clips of `frames` frames.

    latent_noise: standard deviation of the noise added to normalised latents in training. component_clips: clips whose
    patches give the principal components. short_side: short side in pixels of the footage kept in memory. max_frames:
    most frames of a video that are kept in memory.
    """

    group: ClassVar[str] = "vae_training"

    steps: int = 800
    batch: int = 8
    lr: float = 1e-3
    warmup_steps: int = 50
    cooldown_steps: int = 400
    weight_decay: float = 1e-4
    save_steps: int = 200
    validate_steps: int = 200
    width: int = 96  # channels of the hidden layers
    layers: int = 3  # hidden layers
    frames: int = 9  # frames of a training clip
    gradient_weight: float = 0.5  # weight of the image-gradient loss added to the pixel loss
    latent_noise: float = 0.05
    component_clips: int = 800
    short_side: int = 96
    max_frames: int = 160
    heldout_clips: int = 8  # clips that held-out figures are measured on

    def checks(self) -> list[str]:
        ones = ("width", "layers", "frames", "component_clips", "short_side", "max_frames", "heldout_clips")
        return super().checks() + at_least(self, dict.fromkeys(ones, 1) | {"gradient_weight": 0, "latent_noise": 0})


@dataclass(frozen=True)
class VAERun:
    """Settings that stage VAE reads, all of them hashed into its key. height, width: size of training crops, pixels."""

    vae: VAEConfig
    vae_training: VAETrainConfig
    height: int
    width: int


@dataclass(frozen=True)
class VAEInputs:
    """Inputs of stage VAE: videos to train on, and held-out videos to validate on."""

    train: tuple[Video, ...]
    heldout: tuple[Video, ...]


class FootageLoader:
    """Yields batches b 3 T H W endlessly, which go to the ranks in order; the i-th depends on (seed, i) only."""

    def __init__(self, footage: Footage, batch: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.footage, self.batch, self.seed, self.rank, self.world_size = footage, batch, seed, rank, world_size
        self.drawn = 0  # batches made by all ranks together

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            generator = RngStreams(self.seed, self.drawn + self.rank + 1).own("footage")
            self.drawn += self.world_size
            yield {"video": self.footage.batch(self.batch, generator)}

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])


class VAEMethod:
    """Reconstruction of pixels. It trains one module, "vae", the decoder's network; the encoder is held in buffers."""

    name = "vae"

    def __init__(self, vae: PatchVAE, cfg: VAETrainConfig, heldout: Tensor) -> None:
        self.vae, self.cfg, self.heldout = vae, cfg, heldout
        self._trainable = TrainableModule(vae, make_optimizer(vae, cfg))

    def trainable_modules(self) -> dict[str, TrainableModule]:
        return {"vae": self._trainable}

    def update_schedule(self, step: int) -> tuple[str, ...]:
        return ("vae",)

    def lr(self, module: str, group: str, step: int) -> float:
        return scheduled(self.cfg.lr, self.cfg, step)

    def loss(self, module: str, batch: Mapping[str, Tensor], rng: RngStreams) -> Loss:
        video = batch["video"].to(self.heldout.device)
        latents = self.vae.encode(video)
        noise = torch.randn(latents.shape, generator=rng.own("noise")).to(latents)
        made = self.vae.reconstruct(latents + self.cfg.latent_noise * noise)
        return Loss(reconstruction_loss(made, video, self.cfg.gradient_weight), {"psnr": psnr(made.detach(), video)})

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns heldout/psnr (dB, mean over clips) of clips encoded and decoded, and a contact sheet."""
        made = self.vae.decode(self.vae.encode(self.heldout))
        value = sum(psnr(a, b) for a, b in zip(made, self.heldout, strict=True)) / len(made)
        rows = [v[clip] for clip in range(min(2, len(made))) for v in (self.heldout, made)]
        return Validation({"heldout/psnr": value}, {"vae": contact_sheet_of_videos(rows)})


def reconstruction_loss(x: Tensor, target: Tensor, gradient_weight: float) -> Tensor:
    """Returns the pixels' Charbonnier loss plus gradient_weight times that of the differences of neighbours in y and x."""
    error = x - target
    loss = _charbonnier(error).mean()
    for dim in (-1, -2):
        loss = loss + gradient_weight * _charbonnier(error.diff(dim=dim)).mean() / 2
    return loss


def psnr(x: Tensor, target: Tensor) -> float:
    """Returns the PSNR in dB over all values, with peak 2 (pixels in [-1, 1])."""
    return float(10.0 * torch.log10(4.0 / (x - target).square().mean()))


@torch.no_grad()
def fix_encoder(vae: PatchVAE, footage: Footage, clips: int, seed: int) -> None:
    """Sets the encoder to the principal components of patches sampled from the footage."""
    drawn = fold(footage.batch(clips, torch.Generator().manual_seed(seed)), vae.cfg)
    patches = rearrange(drawn, "b p t h w -> (b t h w) p")
    vae.set_components(*principal_components(patches, vae.cfg.z_channels))


def fit(cfg: VAERun, vae: PatchVAE, loader: Loader, heldout: Tensor, ctx: Context) -> dict[str, float]:
    """Trains `vae` in place and leaves it with the averaged weights. Returns the last held-out figures.

    heldout: b 3 T H W.
    """
    return train(VAEMethod(vae, cfg.vae_training, heldout.to(ctx.device)), loader, cfg.vae_training, ctx.seed, ctx)


def run(cfg: VAERun, inputs: VAEInputs, ctx: Context) -> Checkpoint:
    """Returns checkpoint "vae". Raises StageError if no video can be decoded."""
    own = cfg.vae_training
    size = (cfg.height, cfg.width, own.frames)
    footage = Footage(decode_all(inputs.train, own, ctx), *size)
    watched = Footage(decode_all(inputs.heldout, own, ctx), *size)
    with torch.random.fork_rng():
        torch.manual_seed(ctx.seed)
        vae = PatchVAE(cfg.vae, own.width, own.layers)
    fix_encoder(vae, footage, own.component_clips, ctx.seed)
    heldout = watched.batch(own.heldout_clips, torch.Generator().manual_seed(0))
    loader = FootageLoader(footage, own.batch, ctx.seed, ctx.rank, ctx.world_size)
    metrics = fit(cfg, vae.to(ctx.device), loader, heldout, ctx)
    folder = ctx.workdir / "vae"
    if ctx.rank == 0:
        save_patch_vae(vae, folder)
    ctx.barrier()
    return Checkpoint("vae", str(folder), own.total_steps, weights_digest(folder), metrics=metrics)


def decode_all(videos: Sequence[Video], cfg: VAETrainConfig, ctx: Context) -> list[Tensor]:
    """Returns small clips T H W 3 uint8 of the videos that can be decoded, and logs the others.

    Raises StageError if there are none.
    """
    clips = []
    for video in videos:
        try:
            clips.append(decode_small(video, cfg.short_side, cfg.max_frames))
        except ValueError as e:
            ctx.log(f"{video.path}: left out: {e}")
    if not clips:
        raise StageError(f"vae: none of {len(videos)} videos could be decoded; check the paths of the sources")
    return clips


def _charbonnier(error: Tensor) -> Tensor:
    return (error.square() + 1e-6).sqrt()


VAE = Stage(name="vae", version=3, how="distributed", run=run, resources=Resources(threads=2))
