"""A tiny student with random weights, ready to be played: no text encoder, a linear VAE, chunks of two frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msmodel.config import ModelConfig, TextConfig
from stages.play.playing import Playable, load_playable
from stages.records import Checkpoint
from stages.train.publish import weights_digest
from tests.unit.stages.eval import world

POINTS = 24
CPU = torch.device("cpu")


class FakeEncoder:
    """Embeddings that depend on the prompt alone."""

    def __init__(self, cfg: TextConfig, dtype: torch.dtype) -> None:
        self.cfg = cfg

    def to(self, device: torch.device) -> FakeEncoder:
        return self

    def encode(self, prompts: Sequence[str]) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(p.encode()).digest()[:6], "big") for p in prompts]
        shape = (self.cfg.length, self.cfg.dim)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


def make_student(folder: Path, name: str = "student") -> tuple[ModelConfig, Checkpoint]:
    """Weights in folder/name, and their VAE beside them."""
    model = world.model_config(folder)
    if not (folder / "vae").exists():
        world.make_vae(folder)
    made = world.make_checkpoint(name, folder, model)
    return model, Checkpoint("student", made.folder, 1, weights_digest(Path(made.folder)))


def playable(student: Checkpoint) -> Playable:
    """Needs `msmodel.pretrained.load_text_encoder` to be FakeEncoder."""
    return load_playable(student, None, "auto", POINTS, CPU)


def picture(seed: int = 3) -> np.ndarray:
    """H W 3 uint8."""
    return world.texture(seed, *world.SIZE).astype(np.uint8)
