"""The model's side of the demo, as the server sees it. Everything here blocks and runs in one worker thread at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from msmodel.steering.steering import (
    Controls,
    InputSmoothing,
)


@dataclass(frozen=True)
class About:
    """What a client is told before it starts. chunk_seconds: how long one chunk plays."""

    preset: str
    student: str  # where the weights are from, for people
    digest: str  # of the weights
    height: int
    width: int
    fps: float
    first_frames: int  # pixel frames of chunk 0
    chunk_frames: int  # pixel frames of every later chunk
    max_points: int
    grid: tuple[int, int]  # rows, columns of the grid the model was trained with
    device: str = "cpu"

    @property
    def chunk_seconds(self) -> float:
        return self.chunk_frames / self.fps


@dataclass(frozen=True)
class Picture:
    """A first frame to choose from. frame: H W 3 uint8 at clip size."""

    id: str
    title: str
    prompt: str
    frame: np.ndarray
    held_out: bool = True


@dataclass(frozen=True)
class Start:
    """What a performance begins with. frame: H W 3 uint8 at clip size. depth: H W float32,
    relative inverse depth (larger is nearer), or None for a plane."""

    frame: np.ndarray
    prompt: str = ""
    seed: int = 0
    hand: InputSmoothing = field(default_factory=InputSmoothing)
    depth: np.ndarray | None = None


@dataclass(frozen=True)
class Played:
    """One chunk as it leaves. frames: T H W 3 uint8. xy_px T n 2, visible T n: the tracks it was asked to follow, in clip
    pixels. revision: of the controls that it saw. notice: what the user should be told once, "" for nothing: that the recording
    ended, and why."""

    index: int
    revision: int
    frames: np.ndarray
    xy_px: np.ndarray
    visible: np.ndarray
    seconds_dit: float
    seconds_decode: float
    notice: str = ""


class Performance(Protocol):
    """One endless clip. Calls come one after another; `settle` between chunks, while the frames travel."""

    def next_chunk(self, controls: Controls) -> Played: ...
    def settle(self) -> None:
        """The clean pass that fills the cache with the last chunk."""
        ...

    def set_prompt(self, prompt: str) -> None:
        """From the next chunk on."""
        ...

    def refresh_sink(self) -> None:
        """Anchors what follows to the newest chunks. ValueError while there are too few."""
        ...

    def reset(self) -> None:
        """Back to chunk 0, the same picture, seed and prompt."""
        ...

    def add_motion(self, name: str, xy_px: np.ndarray, visible: np.ndarray) -> None:
        """A motion to transfer (T n 2 clip pixels at the clip's fps, T n): Controls.transfer names it."""
        ...

    def see(self, frame: np.ndarray) -> None:
        """A webcam frame (H W 3 uint8, any size) for the live motion, which Controls.transfer = "webcam" names."""
        ...

    def save(self, title: str) -> Path:
        """Keeps all that was played since the start or the last reset as a recording: its folder. ValueError if nothing was."""
        ...

    @property
    def cache_bytes(self) -> int: ...

    def close(self) -> None:
        """Frees everything. The performance is not used again."""
        ...


class Player(Protocol):
    """The loaded model. One performance at a time."""

    about: About

    def pictures(self) -> Sequence[Picture]: ...
    def warm_up(self) -> None:
        """What the first performance would have to wait for; called once, before it. ValueError where something is missing."""
        ...

    def open(self, start: Start) -> Performance:
        """ValueError for a frame of another size, an empty prompt is allowed."""
        ...

    def motion_of(self, clip: bytes) -> tuple[np.ndarray, np.ndarray]:
        """A video file's tracks by the embedded tracker (or the configured one), resampled to the clip's size and fps: xy_px
        T n 2, visible T n. ValueError where it is no video, too long or too large. It runs in a thread of its own, so that a
        stream that plays goes on."""
        ...

    def recordings(self) -> Sequence[dict[str, Any]]:
        """What the gallery lists, newest first: {id, title, prompt, seed, seconds, frames, saved (ISO time), student, digest}.
        It and `recording_file` read small files only, and run in a thread of their own."""
        ...

    def recording_file(self, id: str, name: str) -> Path:
        """A file of a recording (video.mp4, drawn.mp4, first.png, tracks.npz, recording.json). ValueError for any other."""
        ...
