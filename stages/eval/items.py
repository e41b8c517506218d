"""Records of the evaluation: the clips chosen, what is generated from them, and what was measured.

One EvalItem is a batch of clips of one kind, one model and one variant. Models: "real" (the clip itself), "vae" (its round
trip through the VAE), "teacher", "student", "adapted" (the student before distribution matching; own tracks only).
Variants: "tracks" (the clip's own), "no_tracks", the counterfactuals, and for "real" also "spare" (clips nothing is generated
from: the other side of FVD real against real).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stages.records import Checkpoint

RENDERED, REAL = "rendered", "real"
CLIP_KINDS = (RENDERED, REAL)
MODELS = ("teacher", "student")
ADAPTED = "adapted"


@dataclass(frozen=True)
class EvalClip:
    """A held-out clip, ready for evaluation.

    file: npz {frames T h w 3 uint8, latents z t h w, image z t h w, text l c (f16), and clip m c where the
    data has CLIP's tokens of the first frame}.
    tracks: (variant, npz {xy_px T n 2 float32, visible T n bool}) pairs, "tracks" first, then its counterfactuals.
    """

    clip_id: str
    kind: str
    file: str
    tracks: tuple[tuple[str, str], ...]
    caption: str = ""
    source: str = ""
    recipe: str = ""
    tracker: str = ""
    spare: bool = False

    def track_file(self, variant: str) -> str:
        """The tracks asked for in a variant; without tracks the clip's own are still what is compared with."""
        return dict(self.tracks)["tracks" if variant in ("no_tracks", "spare") else variant]


@dataclass(frozen=True)
class Selection:
    folder: str
    clips: tuple[EvalClip, ...]
    dataset_digest: str


@dataclass(frozen=True)
class EvalItem:
    """checkpoint: the weights (None for "real" and "vae")."""

    name: str
    kind: str
    model: str
    variant: str
    clips: tuple[EvalClip, ...]
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Generated:
    """file: npz {videos k T h w 3 uint8}, in the order of item.clips."""

    name: str
    item: EvalItem
    file: str


@dataclass(frozen=True)
class Measured:
    """file: json, one object of figures a clip. features: npz {i3d k 400 float32}, "" where none were taken."""

    name: str
    item: EvalItem
    file: str
    features: str = ""


@dataclass(frozen=True)
class Figures:
    """Result of SPEED or LONG_RUN. file: json. videos: npz of uint8 videos for the page, "" if none."""

    name: str
    file: str
    videos: str = ""


def read_clip(clip: EvalClip) -> dict[str, np.ndarray]:
    """Arrays of EvalClip.file."""
    with np.load(clip.file) as data:
        return dict(data)


def read_tracks(path: str) -> tuple[np.ndarray, np.ndarray]:
    """xy_px T n 2 float32 in clip pixels, visible T n bool."""
    with np.load(path) as data:
        return data["xy_px"], data["visible"]


def read_videos(path: str) -> np.ndarray:
    """k T h w 3 uint8."""
    with np.load(path) as data:
        return data["videos"]


def seeded(*key: object) -> torch.Generator:
    """A generator that depends on the key alone: the same clip gets the same noise in every run, model and variant."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def plan(
    selection: Selection,
    batch: int,
    teacher: Checkpoint | None,
    student: Checkpoint | None,
    adapted: Checkpoint | None = None,
) -> list[EvalItem]:
    """All items of an evaluation: what GENERATE and MEASURE run over. A model that is None is left out."""
    out: list[EvalItem] = []
    models: dict[str, Checkpoint | None] = {"real": None, "vae": None}
    trained = (("teacher", teacher), ("student", student), (ADAPTED, adapted))
    models |= {name: c for name, c in trained if c is not None}
    for kind in CLIP_KINDS:
        chosen = [c for c in selection.clips if c.kind == kind and not c.spare]
        spare = [c for c in selection.clips if c.kind == kind and c.spare]
        for model, checkpoint in models.items():
            out += _items(kind, model, "tracks", chosen, batch, checkpoint)
            if model in MODELS:
                out += _items(kind, model, "no_tracks", chosen, batch, checkpoint)
                for variant in dict.fromkeys(v for c in chosen for v, _ in c.tracks if v != "tracks"):
                    having = [c for c in chosen if variant in dict(c.tracks)]
                    out += _items(kind, model, variant, having, batch, checkpoint)
        out += _items(kind, "real", "spare", spare, batch, None)
    return out


def guided_items(selection: Selection, clips: int, batch: int, teacher: Checkpoint) -> list[EvalItem]:
    """The teacher on its own tracks, on the first `clips` chosen clips of each kind: what a sweep of guidance runs over."""
    out: list[EvalItem] = []
    for kind in CLIP_KINDS:
        chosen = [c for c in selection.clips if c.kind == kind and not c.spare][:clips]
        out += _items(kind, "teacher", "tracks", chosen, batch, teacher)
    return out


def _items(
    kind: str, model: str, variant: str, clips: list[EvalClip], batch: int, checkpoint: Checkpoint | None
) -> list[EvalItem]:
    parts = [tuple(clips[i : i + batch]) for i in range(0, len(clips), batch)]
    return [
        EvalItem(f"{model}-{kind}-{variant}-{i:03d}", kind, model, variant, p, checkpoint) for i, p in enumerate(parts)
    ]


def folder_file(folder: Path, name: str) -> str:
    """A path inside a stage's work folder, which is also its final place."""
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / name)
