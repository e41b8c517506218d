"""A tiny CLIP image encoder with random weights, as Wan's image-to-video repositories carry theirs in diffusers' layout."""

from __future__ import annotations

from pipelines.commands.rehearse.weights import CLIP_SIDE as SIDE
from pipelines.commands.rehearse.weights import CLIP_WIDTH as WIDTH
from pipelines.commands.rehearse.weights import PROCESSOR
from pipelines.commands.rehearse.weights import write_clip as save_clip

__all__ = ["PROCESSOR", "SIDE", "TOKENS", "WIDTH", "save_clip"]
TOKENS = 5
