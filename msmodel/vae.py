"""The video VAE: diffusers' AutoencoderKLWan with normalised latents and caches that belong to the caller.

diffusers keeps the caches of its causal convolutions on the module, so that two streams through one VAE disturb each
other. Here the encoder and decoder are called with cache lists owned by a session: any number of streams share the
weights, and pushing frames or latents in any grouping gives the latents or frames of the complete clip.

Legend: b batch, z latent channels, t latent frames, T pixel frames (T = 1 + stride_t (t - 1)), h w latent, H W pixels.
Pixels are RGB in [-1, 1].
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msmodel.config import VAEConfig
from msmodel.io.sources import first_line, is_folder
from msmodel.nano.frame_groups import FrameGroups, check_sides, check_video, with_tail
from msmodel.nano.patch_vae import KIND, PatchVAE

EMBEDDED = "embedded:"
WEIGHTS, CONFIG = "vae.safetensors", "config.json"
SIZES = ("z_channels", "stride_t", "stride_s")
# (z, stride_t, stride_s) -> arguments of AutoencoderKLWan; Wan 2.1's sizes are its defaults.
FAMILIES: Mapping[tuple[int, int, int], dict[str, Any]] = {
    (16, 4, 8): {},
    (48, 4, 16): {
        "z_dim": 48,
        "base_dim": 160,
        "decoder_base_dim": 256,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    },
}


class VideoVAE(nn.Module):
    """An AutoencoderKLWan whose latents are normalised: (mu - mean) / std, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, cfg: VAEConfig, latents_a_call: int = 1):
        """Wraps net, an AutoencoderKLWan.

        latents_a_call: latent frames computed at once; results do not depend on it. The default is one, as in Wan's own
        code: four need four times the memory, and at full size this is most of the memory that a validation on held-out
        clips needs. Raises ValueError when net's sizes are not those of cfg, or its latent statistics are those of
        another VAE.
        """
        super().__init__()
        _require(_sizes(net.config), cfg)
        _require_statistics(net.config, cfg)
        self.net: Any  # an AutoencoderKLWan
        self.net, self.cfg, self.latents_a_call = net, cfg, latents_a_call
        self.patch: int = net.config["patch_size"] or 1
        self.register_buffer("mean", _per_channel(net.config["latents_mean"]), persistent=False)
        self.register_buffer("std", _per_channel(net.config["latents_std"]), persistent=False)

    def normalise(self, z: Tensor) -> Tensor:
        return (z - self.mean.to(z)) / self.std.to(z)

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents * self.std.to(latents) + self.mean.to(latents)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Encodes video b 3 T H W in [-1, 1] as latents b z t h w: normalised posterior means, float32.

        Raises ValueError for sizes that are not multiples of the strides.
        """
        check_video(video, self.cfg)
        return self.encoder().push(video)

    @torch.no_grad()
    def encode_image(self, first: Tensor, frames: int) -> Tensor:
        """Encodes `with_tail`'s clip of `frames` frames, from first b 3 H W in [-1, 1], as latents b z t h w."""
        return self.encode(with_tail(first, frames, self.cfg))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents b z t h w, normalised, as video b 3 T H W in [-1, 1]."""
        return torch.cat(list(self.decode_parts(latents)), dim=2)

    def decode_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """Yields the video that `decode` returns in successive parts, each of the frames of latents_a_call latents."""
        session = self.decoder()
        for part in latents.split(self.latents_a_call, dim=2):
            yield session.push(part)

    def encoder(self) -> EncoderSession:
        """Returns a new stream of frames with its own caches, which shares only the weights with other sessions."""
        return EncoderSession(self)

    def decoder(self) -> DecoderSession:
        """Returns a new stream of latents with its own caches, which shares only the weights with other sessions."""
        return DecoderSession(self)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


class EncoderSession:
    """A stream of pixel frames. The first frame gives one latent frame, then every stride_t frames one."""

    def __init__(self, vae: VideoVAE):
        self._vae = vae
        self._cache = _new_cache(vae.net.encoder)
        self._groups = FrameGroups(vae.cfg.stride_t)

    @torch.no_grad()
    def push(self, video: Tensor) -> Tensor:
        """Returns the latents b z t h w, normalised, float32, of the groups that the next frames complete.

        video: b 3 T H W in [-1, 1], any T. t is 0 until a group is complete. Raises ValueError for sides that are not
        multiples of the stride.
        """
        vae = self._vae
        check_sides(video, vae.cfg)
        starts, frames = self._groups.take(video)
        parts = [frames[:, :, :1]] * starts
        parts += frames[:, :, int(starts) :].split(vae.cfg.stride_t * vae.latents_a_call, dim=2)
        done = [self._encode(part.to(vae._dtype)) for part in parts if part.shape[2]]
        if not done:
            sides = (side // vae.cfg.stride_s for side in video.shape[-2:])
            return torch.zeros(video.shape[0], vae.cfg.z_channels, 0, *sides, device=video.device)
        return vae.normalise(torch.cat(done, dim=2)).float()

    def _encode(self, frames: Tensor) -> Tensor:
        net = self._vae.net
        x = net.encoder(_fold(frames, self._vae.patch), feat_cache=self._cache, feat_idx=[0])
        mu, _log_variance = net.quant_conv(x).chunk(2, dim=1)
        return mu


class DecoderSession:
    """A stream of latents. The first latent frame gives one pixel frame, each further one stride_t."""

    def __init__(self, vae: VideoVAE):
        self._vae = vae
        self._cache = _new_cache(vae.net.decoder)
        self._started = False

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Returns the frames b 3 T' H W in [-1, 1] of the next latents b z t h w, normalised, any t >= 1."""
        z = self._vae.denormalise(latents.to(self._vae._dtype))
        return self._decode(z).clamp(-1.0, 1.0).float()

    def _decode(self, z: Tensor) -> Tensor:
        net = self._vae.net
        x = net.post_quant_conv(z)
        parts = [x] if self._started else [x[:, :, :1], x[:, :, 1:]]  # the first latent frame is decoded alone
        frames = []
        for part in parts:
            if part.shape[2]:
                first = not self._started
                frames.append(net.decoder(part, feat_cache=self._cache, feat_idx=[0], first_chunk=first))
                self._started = True
        return _unfold(torch.cat(frames, dim=2), self._vae.patch)


def load_vae(cfg: VAEConfig) -> VideoVAE | PatchVAE:
    """Loads the VAE named by cfg.source, in float32, eval mode, frozen.

    source: "embedded:NAME" (part of msmodel/assets), a folder with config.json and vae.safetensors, a diffusers folder
    or hub id (its `vae` subfolder). Raises ValueError when files are missing or damaged, or sizes differ from cfg.
    """
    vae: VideoVAE | PatchVAE
    if cfg.source.startswith(EMBEDDED):
        folder = Path(str(resources.files("msmodel") / "assets" / cfg.source.removeprefix(EMBEDDED) / "vae"))
        vae = _load_folder(folder, cfg)
    elif (Path(cfg.source) / WEIGHTS).is_file():
        vae = _load_folder(Path(cfg.source), cfg)
    else:
        vae = VideoVAE(_from_pretrained(cfg.source), cfg)
    return vae.eval().requires_grad_(False)


def fresh_vae(cfg: VAEConfig) -> VideoVAE | PatchVAE:
    """Returns a VAE of cfg's sizes with random weights, frozen, for timings and tests.

    It is of Wan's full-size class where the sizes are those of a Wan family, else a PatchVAE. Its latent statistics are
    not Wan 2.2's.
    """
    known = FAMILIES.get((cfg.z_channels, cfg.stride_t, cfg.stride_s))
    if known is None:
        return PatchVAE(cfg).eval().requires_grad_(False)
    from diffusers import AutoencoderKLWan

    return VideoVAE(AutoencoderKLWan(**known), cfg).eval().requires_grad_(False)


@lru_cache(maxsize=8)
def vae_on_meta(cfg: VAEConfig) -> VideoVAE | PatchVAE:
    """Returns the VAE on the meta device: a shipped one from its file, else one of cfg's sizes in float32."""
    if cfg.source.startswith(EMBEDDED):
        return load_vae(cfg).to(torch.device("meta"))
    with torch.device("meta"):
        return fresh_vae(cfg)


def save_patch_vae(vae: PatchVAE, folder: Path) -> None:
    """Writes config.json and vae.safetensors (float32 encoder, float16 decoder) into folder, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"kind": KIND, "width": vae.width, "layers": vae.layers, **asdict(vae.cfg)}
    exact = {name for name, _ in vae.named_buffers()}
    state = {k: (v if k in exact else v.half()).detach().cpu().contiguous() for k, v in vae.state_dict().items()}
    for name, write in ((WEIGHTS, lambda p: save_file(state, p)), (CONFIG, lambda p: _write_json(p, config))):
        aside = folder / f".{name}.writing"
        write(aside)
        aside.replace(folder / name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _load_folder(folder: Path, cfg: VAEConfig) -> PatchVAE:
    fix = "restore it from version control, or make it with `make nano-base`"
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"VAE {cfg.source}: no file {folder / name}: {fix}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, json.JSONDecodeError) as e:
        raise ValueError(f"VAE {cfg.source}: a file in {folder} is damaged ({e}): {fix}") from e
    if config.get("kind") != KIND:
        raise ValueError(f"VAE {cfg.source}: {folder / CONFIG} is of kind {config.get('kind')!r}, not {KIND!r}: {fix}")
    _require({k: config[k] for k in SIZES}, cfg)
    vae = PatchVAE(cfg, config["width"], config["layers"])
    try:
        vae.load_state_dict({k: v.float() for k, v in state.items()})
    except RuntimeError as e:
        raise ValueError(f"VAE {cfg.source}: {folder / WEIGHTS} does not fit {CONFIG}: {e}") from e
    return vae


def _from_pretrained(source: str) -> nn.Module:
    local = is_folder(source, "vae.source")
    from diffusers import AutoencoderKLWan

    try:
        return AutoencoderKLWan.from_pretrained(
            source, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True, local_files_only=local
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise ValueError(
            f"VAE {source}: cannot be loaded ({first_line(e)}). Give vae.source a diffusers hub id that this machine can "
            f"reach, a local folder with a `vae` subfolder, or embedded:nano"
        ) from e


def _sizes(net_config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the sizes of VAEConfig that an AutoencoderKLWan has."""
    patch = net_config["patch_size"] or 1
    return {
        "z_channels": net_config["z_dim"],
        "stride_t": 2 ** sum(map(bool, net_config["temperal_downsample"])),
        "stride_s": patch * 2 ** (len(net_config["dim_mult"]) - 1),
    }


def _require(actual: Mapping[str, int], cfg: VAEConfig) -> None:
    wanted = asdict(cfg)
    wrong = [f"vae.{k} is {wanted[k]}, its weights have {v}" for k, v in actual.items() if wanted[k] != v]
    if wrong:
        raise ValueError(f"VAE {cfg.source} does not fit the config: " + "; ".join(wrong))


def _require_statistics(net_config: Mapping[str, Any], cfg: VAEConfig) -> None:
    """Raises ValueError for a config whose latent statistics do not have one value a channel.

    A Wan 2.2 config without statistics would get diffusers' defaults, Wan 2.1's sixteen values.
    """
    for name in ("latents_mean", "latents_std"):
        if len(net_config[name]) != net_config["z_dim"]:
            raise ValueError(
                f"VAE {cfg.source}: its config.json has {len(net_config[name])} values of {name} for {net_config['z_dim']} "
                f"channels; take the config.json of its own family"
            )


def _per_channel(values: Sequence[float]) -> Tensor:
    return rearrange(torch.tensor(values, dtype=torch.float32), "z -> 1 z 1 1 1")


def _new_cache(part: nn.Module) -> list[Any]:
    """Returns one empty entry per causal convolution, as diffusers counts them."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    return [None] * sum(isinstance(m, WanCausalConv3d) for m in part.modules())


def _fold(video: Tensor, patch: int) -> Tensor:
    """Folds the pixels of a patch x patch square into channels, in diffusers' order (channel, column, row)."""
    return rearrange(video, "b c t (h p) (w q) -> b (c q p) t h w", p=patch, q=patch)


def _unfold(x: Tensor, patch: int) -> Tensor:
    return rearrange(x, "b (c q p) t h w -> b c t (h p) (w q)", p=patch, q=patch)
