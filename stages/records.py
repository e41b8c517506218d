"""Records: frozen descriptions of something on disk. New records come out of a stage; none is mutated."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Video:
    """A source file as found. source: its name in the user's folder or table, or a packaged asset's. path: local, or an
    address (s3://...) that `Context.fetch` brings here.

    start_seconds, end_seconds: the part to use, where a table names one; an end of 0 is the file's own. notes: what a
    reader of the catalogue should know of the file (HDR, interlaced, damaged...), in words.
    """

    video_id: str
    path: str
    source: str
    licence: str = "unknown"
    caption: str = ""
    sha256: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    frames: int = 0
    rotation: int = 0
    interlaced: bool = False
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """An input that cannot be used, and why. Goes to the summary and the catalogue."""

    name: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Clip:
    """A span of one shot (or a rendered scene) at the preset's size and fps. Files lie in `folder`, named below.

    frames.mp4 (H.264, for people), clip.npz {frames: T h w 3 uint8}, later tracks.npz {xy_px: T n 2 float32,
    visible: T n bool, confidence: T n f16 where the tracker has one}, latents.npz {latents: c t h w f16,
    image: c t h w f16 (t = 1 with dit.image=first_latent), text: l c f16, clip: m c f16 where dit.clip_dim
    asks for it, empty_text and negative_text: l' c f16, without padding, where text.null asks for them}.
    scene groups clips that share a source or first frame: train / held-out is split by it. segment: which part of a long
    video it is from; clips of one scene and segment are made, tracked and encoded together. quality: figures that the
    gates judge and the catalogue shows (stages.data.gates), by name. phash: perceptual hash, hexadecimal.
    """

    clip_id: str
    folder: str
    scene: str
    split: str  # "train" | "heldout"
    kind: str  # "real" | "generated" (a video that a model made) | "rendered"
    caption: str
    source: str
    licence: str
    recipe: str = ""  # rendered: the motion's name, else ""
    start_seconds: float = 0.0
    clip_seconds: float = 0.0
    tracker: str = ""
    tracks: int = 0
    visible_share: float = 0.0
    moving_px: float = 0.0  # median path length over visible tracks, pixels at clip size
    segment: int = 0
    quality: dict[str, float] = field(default_factory=dict)
    phash: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardSet:
    """WebDataset shards of one split, with their index and the catalogue. digest = hash of the index. split: "train",
    "heldout", or a part of train: "train_real", "train_synthetic" (its generated and rendered clips). Clips that are neither
    real nor rendered are generated."""

    folder: str
    split: str
    shards: tuple[str, ...]
    clips: int
    real: int
    rendered: int
    digest: str
    catalogue: str


@dataclass(frozen=True)
class DataPage:
    """The data set for people: one page, and one picture (PNG) of contact sheets with tracks."""

    folder: str
    html: str
    picture: str


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights: safetensors in `folder`. name: teacher, adapted, student, critic, tiny_vae, vae."""

    name: str
    folder: str
    step: int
    digest: str
    parents: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OdePairs:
    """Teacher trajectories with joint guidance: folder/pairs-%06d.safetensors {states, endpoint, text, image, tracks}."""

    folder: str
    count: int
    timesteps: tuple[float, ...]
    digest: str


@dataclass(frozen=True)
class Report:
    """Figures for scripts, a page for people, and one picture (PNG) of contact sheets."""

    folder: str
    json: str
    html: str
    overview: str
