"""Records of the evaluation: the selected clips, the videos generated from them, and their measurements.

One EvalItem is a batch of clips of one kind, one model and one variant. Models: "real" (the clip itself), "vae" (the
clip encoded and decoded by the VAE), "teacher", "student", "adapted" (the student before distribution matching; own
tracks only). Variants: "tracks" (the clip's own), "no_tracks", the counterfactuals, and for "real" also "spare" (clips
that nothing is generated from: the second set of FVD real against real).
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

    file: npz {frames T h w 3 uint8, latents z t h w, image z t h w (t = 1 with dit.image=first_latent), text l c
    (f16), and clip m c, empty_text l c and negative_text l c where the data has them}. tracks: (variant, npz
    {xy_px T n 2 float32, visible T n bool}) pairs, "tracks" first, then its counterfactuals.
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
        """Returns the file of the variant's tracks; without tracks, the clip's own, which the result is compared with."""
        return dict(self.tracks)["tracks" if variant in ("no_tracks", "spare") else variant]


@dataclass(frozen=True)
class Selection:
    """The clips selected for an evaluation, and the digest of the data set that they come from."""

    folder: str
    clips: tuple[EvalClip, ...]
    dataset_digest: str


@dataclass(frozen=True)
class EvalItem:
    """A batch of clips of one kind, model and variant. checkpoint: the weights (None for "real" and "vae")."""

    name: str
    kind: str
    model: str
    variant: str
    clips: tuple[EvalClip, ...]
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Generated:
    """The videos of an item. file: npz {videos k T h w 3 uint8}, in the order of item.clips."""

    name: str
    item: EvalItem
    file: str


@dataclass(frozen=True)
class Measured:
    """The figures of an item. file: JSON, one object of figures per clip.

    features: npz {i3d k 400 float32}, "" if there are none.
    """

    name: str
    item: EvalItem
    file: str
    features: str = ""


@dataclass(frozen=True)
class Figures:
    """The result of a stage such as SPEED or LONG_RUN. file: JSON.

    videos: npz of uint8 videos for the page, "" if there are none.
    """

    name: str
    file: str
    videos: str = ""


def read_clip(clip: EvalClip) -> dict[str, np.ndarray]:
    """Returns the arrays of EvalClip.file."""
    with np.load(clip.file) as data:
        return dict(data)


def read_tracks(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns xy_px, T n 2 float32 in clip pixels, and visible, T n bool."""
    with np.load(path) as data:
        return data["xy_px"], data["visible"]


def read_videos(path: str) -> np.ndarray:
    """Returns the videos of a file, k T h w 3 uint8."""
    with np.load(path) as data:
        return data["videos"]


def seeded(*key: object) -> torch.Generator:
    """Returns a generator that depends on the key only. A clip gets the same noise in every run, model and variant."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def plan(
    selection: Selection,
    batch: int,
    teacher: Checkpoint | None,
    student: Checkpoint | None,
    adapted: Checkpoint | None = None,
) -> list[EvalItem]:
    """Returns all items of an evaluation, for GENERATE and MEASURE. A model that is None is left out."""
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
    """Returns the items of a sweep of guidance: the teacher with own tracks on the first `clips` clips of each kind."""
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
    """Returns the path of a file in a stage's work folder, which is also its final place. It makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / name)
