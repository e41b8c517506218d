"""Matching initialisation: one attention head that attends to equal track ids from the first step on.

To follow a track, attention at (t, p) must find the same id at (0, q) and copy its content. Learned from scratch such a
head appears suddenly, late, or not at all in a small model. Here it is initialised. The track channels are read alike
at every place inside a patch and at both pixel frames of a latent frame. One head's queries and keys both project on
them, in rotary channels that hardly rotate over a clip; its values carry the image found there into separate channels.
How to use these is learned.

This is not in the paper, which starts from a large pretrained model. It is for small models trained in minutes
(docs/LOG.md).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.rope import THETA, axis_channels

LARGEST_TURN = 0.35  # radians over a full clip by which a rotary channel may rotate and still serve for matching


def slow_channels(head_dim: int, sizes: tuple[int, int, int]) -> list[int]:
    """Returns the channels of a head that rotate less than LARGEST_TURN over a grid of `sizes` (frames, rows, columns)."""
    slow, start = [], 0
    for channels, size in zip(axis_channels(head_dim), sizes, strict=True):
        for j in range(0, channels, 2):
            if (size - 1) / THETA ** (j / channels) < LARGEST_TURN:
                slow += [start + j, start + j + 1]
        start += channels
    return slow


def lacking(cfg: ModelConfig) -> str:
    """Returns why a model cannot get the matching head; "" where it can."""
    if cfg.dit.track_encoding != "head":
        return f"the matching head is given through the track head, which dit.track_encoding={cfg.dit.track_encoding} has not"
    if not cfg.mask_channels:
        return f"the matching head knows the given frame by its mask channels, which dit.image={cfg.dit.image} has not"
    ids, head_dim, slow = id_channels(cfg), cfg.dit.dim // cfg.dit.heads, len(head_channels(cfg))
    if ids < 1:
        return f"dit.track_channels={cfg.dit.track_channels} leave none for the ids in addition to the offsets"
    if slow <= ids:
        return f"heads of {head_dim} have {slow} slow rotary channels; {ids} + 1 are needed"
    return ""


def id_channels(cfg: ModelConfig) -> int:
    """Returns the number of track channels that hold ids; the others hold offsets."""
    return cfg.dit.track_channels - cfg.vae.stride_t * cfg.offset_channels


def head_channels(cfg: ModelConfig) -> list[int]:
    """Returns `slow_channels` of a model's heads."""
    d = cfg.dit
    grid = (cfg.latent_frames, cfg.latent_height // d.patch[1], cfg.latent_width // d.patch[2])
    return slow_channels(d.dim // d.heads, grid)


@torch.no_grad()
def match_tracks(
    dit: WanDiT,
    generator: torch.Generator,
    layers: int = 1,
    loudness: float = 2.0,
    focus: float = 5.0,
    carry: float = 3.0,
) -> None:
    """Initialises head 0 of the first `layers` layers of `dit` as the matching head. This changes the function of the model.

    loudness: size of an id's embedding in the residual stream, per channel. focus: the weight in the head's query of
    the given frame (latent frame 0, known by its mask) over the other frames of the same track. carry: scale of the
    output weights that write the image found. Raises ValueError for a model that cannot get the head (`lacking`).
    """
    d = dit.cfg.dit
    if lack := lacking(dit.cfg):
        raise ValueError(lack)
    head_dim = d.dim // d.heads
    slow, ids = head_channels(dit.cfg), id_channels(dit.cfg)
    embedding = _orthonormal(d.dim, d.track_channels, generator)
    _read_ids_alike(dit, embedding * loudness, ids, generator)
    basis = embedding[:, :ids]
    image = torch.linalg.qr(dit.patch_embedding.weight[:, d_image(dit)].flatten(1))[0]
    apart = _orthonormal(d.dim, image.shape[1], generator)
    apart = torch.linalg.qr(apart - image @ (image.T @ apart) - basis @ (basis.T @ apart))[0]
    known = dit.patch_embedding.weight[:, d_mask(dit)].sum(dim=(1, 2, 3, 4))
    known = known - basis @ (basis.T @ known)
    known = known / known.norm()
    for layer in dit.layers[:layers]:
        attention = layer.attn1
        scale = attention.to_q.weight.norm(dim=1).mean() * (d.dim / ids) ** 0.5
        for linear in (attention.to_q, attention.to_k):
            linear.weight[:head_dim] = 0.0
            linear.bias[:head_dim] = 0.0
            linear.weight[slow[1 : 1 + ids]] = scale * basis.T
        attention.to_k.weight[slow[0]] = scale * known
        attention.to_q.bias[slow[0]] = focus * scale
        carried = min(image.shape[1], head_dim)
        attention.to_v.weight[:carried] = image.T[:carried]
        attention.to_v.bias[:head_dim] = 0.0
        out = attention.to_out[0]
        assert isinstance(out, nn.Linear)
        out.weight[:, :carried] = carry * apart[:, :carried]


def d_mask(dit: WanDiT) -> slice:
    """Returns the mask channels among the patch embedding's inputs."""
    z = dit.cfg.vae.z_channels
    return slice(z, z + dit.cfg.mask_channels)


def d_image(dit: WanDiT) -> slice:
    """Returns the image channels among the patch embedding's inputs."""
    mask = d_mask(dit)
    return slice(mask.stop, mask.stop + dit.cfg.image_channels)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator))[0]


def _read_ids_alike(dit: WanDiT, embedding: Tensor, ids: int, generator: torch.Generator) -> None:
    """Initialises the track head and the track slice of the patch embedding so that ids are read alike everywhere.

    Track head: one random orthonormal map of the ids for all pixel frames of a latent frame, into its first `ids`
    channels; offsets are copied to the others. Patch embedding: one map for all places of a patch.
    """
    head = dit.track_head
    assert isinstance(head, nn.Conv3d)
    d, stride_t, offsets = dit.cfg.dit, dit.cfg.vae.stride_t, dit.cfg.offset_channels
    one = _orthonormal(d.track_id_dim, ids, generator).T / (stride_t * (d.track_id_dim / 2) ** 0.5) * d.dim**0.5
    head.weight.zero_()
    by_frame = rearrange(head.weight[..., 0, 0, 0], "c (s d) -> s c d", s=stride_t)
    for frame, weight in enumerate(by_frame):
        weight[:ids, : d.track_id_dim] = one
        first = ids + frame * offsets
        weight[first : first + offsets, d.track_id_dim :] = torch.eye(offsets)
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    dit.track_slice.copy_(embedding[:, :, None, None, None].expand_as(dit.track_slice))
