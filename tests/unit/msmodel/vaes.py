"""Small VAEs with random weights for tests, in the layouts of Wan 2.1 and 2.2 and of nano."""

from __future__ import annotations

from typing import Any

import torch

from msmodel.config import VAEConfig
from msmodel.patch_vae import PatchVAE
from msmodel.vae import VideoVAE

STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 2.0, 1.0, 3.0]}
WAN21: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    **STATISTICS,
}
WAN22: dict[str, Any] = {
    **WAN21,
    "decoder_base_dim": 12,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
LAYOUTS = {"wan21": (WAN21, VAEConfig("test", 4, 4, 8)), "wan22": (WAN22, VAEConfig("test", 4, 4, 16))}
PATCH = VAEConfig("test", z_channels=4, stride_t=2, stride_s=4)


def wan_net(layout: str) -> Any:
    """A fresh AutoencoderKLWan, the same at every call."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(**LAYOUTS[layout][0]).eval().requires_grad_(False)


def wan_vae(layout: str) -> VideoVAE:
    return VideoVAE(wan_net(layout), LAYOUTS[layout][1])


def patch_vae() -> PatchVAE:
    """Orthonormal random components, and a decoder whose residual network is not silent."""
    torch.manual_seed(0)
    vae = PatchVAE(PATCH, width=8, layers=2)
    basis, _ = torch.linalg.qr(torch.randn(len(vae.centre), PATCH.z_channels))
    vae.set_components(0.1 * torch.randn(len(vae.centre)), basis, torch.tensor([2.0, 1.0, 0.5, 0.3]))
    for p in vae.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return vae.eval().requires_grad_(False)


def some_video(cfg: VAEConfig, batch: int = 1, latent_frames: int = 5, seed: int = 1) -> torch.Tensor:
    """b 3 T H W in [-1, 1], on 2 x 3 latent pixels."""
    shape = (batch, 3, 1 + cfg.stride_t * (latent_frames - 1), 2 * cfg.stride_s, 3 * cfg.stride_s)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_latents(cfg: VAEConfig, batch: int = 1, latent_frames: int = 5, seed: int = 2) -> torch.Tensor:
    """b z t h w."""
    shape = (batch, cfg.z_channels, latent_frames, 2, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
