"""Frame groups: short clips of latent frame 0 and a few random later latent frames.

Steps on them are cheap, and control over large displacements appears in them, before training on whole clips. They are
our addition for small models (docs/adr/0004).

Legend: b batch, z latent channels, t latent frames, h w latent size, k latent frames of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

from msmodel.batch import Conditioning
from stages.train.conditioning import pick_frames
from stages.train.method import LoopConfig, RngStreams, at_least


@dataclass(frozen=True)
class GroupedConfig(LoopConfig):
    """Settings of a training that begins with `group_steps` steps on frame groups. At paper scale there are none."""

    group_steps: int = 0  # first steps, which train on frame groups
    groups_per_clip: int = 2  # frame groups sampled from each clip
    group_later: int = 3  # a group has 1 to this many later frames, the same number in all groups of a step

    def grouped(self, step: int) -> bool:
        """Returns whether `step` (from 0) trains on frame groups."""
        return step < self.group_steps

    def checks(self) -> list[str]:
        return super().checks() + at_least(self, {"group_steps": 0, "groups_per_clip": 1, "group_later": 1})

    def draw_groups(self, latents: Tensor, cond: Conditioning, rng: RngStreams) -> tuple[Tensor, Conditioning]:
        """Returns the groups of one step, (groups_per_clip b) z k h w, and their conditioning. latents: b z t h w."""
        most = min(self.group_later, latents.shape[2] - 1)
        later = int(torch.randint(1, most + 1, (), generator=rng.shared("group size")))
        return frame_groups(latents, cond, self.groups_per_clip, later, rng.own("groups"))


def group_frames(groups: int, latent_frames: int, later: int, generator: torch.Generator) -> Tensor:
    """Returns the indices of frame 0 and `later` distinct later latent frames in their order: (groups 1+later) int64."""
    order = torch.rand(groups, latent_frames - 1, generator=generator).argsort(dim=1)
    chosen = 1 + order[:, :later].sort(dim=1).values
    return torch.cat([torch.zeros_like(chosen[:, :1]), chosen], dim=1)


def frame_groups(
    latents: Tensor, cond: Conditioning, per_clip: int, later: int, generator: torch.Generator
) -> tuple[Tensor, Conditioning]:
    """Returns `per_clip` groups of each clip, with the image and the tracks of their frames.

    latents: b z t h w. The result is (per_clip b) z 1+later h w, with the conditioning to match.
    """
    frames = group_frames(latents.shape[0] * per_clip, latents.shape[2], later, generator)

    def many(x: Tensor) -> Tensor:
        return repeat(x, "b ... -> (k b) ...", k=per_clip)

    image, c_m = pick_frames(many(cond.image), frames), pick_frames(many(cond.tracks), frames)
    image_tokens = None if cond.image_tokens is None else many(cond.image_tokens)
    return pick_frames(many(latents), frames), Conditioning(many(cond.text), image, c_m, image_tokens)
