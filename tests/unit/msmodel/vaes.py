"""Small VAEs with random weights for tests, in the layouts of Wan 2.1 and 2.2 and of nano."""

from __future__ import annotations

from typing import Any

import torch

from msmodel.config import VAEConfig
from msmodel.nano.patch_vae import PatchVAE
from msmodel.vae import VideoVAE

# Wan's published latent statistics: WanVAE of Wan2.1 (16 channels) and Wan2_2_VAE of Wan2.2 (48).
MEAN21 = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508]
MEAN21 += [0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
STD21 = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743]
STD21 += [3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]
MEAN22 = [-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891]
MEAN22 += [0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502]
MEAN22 += [-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723]
MEAN22 += [-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667]
STD22 = [0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901]
STD22 += [0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659]
STD22 += [0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944]
STD22 += [0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744]
# The two families as their config.json have them, but for the widths and the number of blocks. Wan 2.1 is what diffusers
# takes when nothing is said: its statistics are left to it.
WAN21: dict[str, Any] = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
WAN22: dict[str, Any] = {
    **WAN21,
    "z_dim": 48,
    "decoder_base_dim": 12,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "latents_mean": MEAN22,
    "latents_std": STD22,
}
LAYOUTS = {
    "wan21": (WAN21, VAEConfig("test", z_channels=16, stride_t=4, stride_s=8)),
    "wan22": (WAN22, VAEConfig("test", z_channels=48, stride_t=4, stride_s=16)),
}
STATISTICS = {"wan21": (MEAN21, STD21), "wan22": (MEAN22, STD22)}
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
