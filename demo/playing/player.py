"""The interface between the demo's server and the model. Its calls block; the server makes them in its model thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from msmodel.steering.steering import Controls, InputSmoothing


@dataclass(frozen=True)
class About:
    """Describes the loaded model to a client. chunk_seconds: how long one chunk plays."""

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
    """A first frame that users can choose. frame: H W 3 uint8 at clip size."""

    id: str
    title: str
    prompt: str
    frame: np.ndarray
    held_out: bool = True


@dataclass(frozen=True)
class Start:
    """The inputs of a new performance. frame: H W 3 uint8 at clip size. depth: H W float32,
    relative inverse depth (larger is nearer), or None for a plane."""

    frame: np.ndarray
    prompt: str = ""
    seed: int = 0
    smoothing: InputSmoothing = field(default_factory=InputSmoothing)
    depth: np.ndarray | None = None


@dataclass(frozen=True)
class PlayedChunk:
    """One chunk of the stream. frames: T H W 3 uint8. xy_px T n 2, visible T n: the tracks the model was given, in clip pixels.
    revision: of the controls that were used. notice: a message for the user, shown once, or "": that the recording ended, and
    why."""

    index: int
    revision: int
    frames: np.ndarray
    xy_px: np.ndarray
    visible: np.ndarray
    seconds_dit: float
    seconds_decode: float
    notice: str = ""


class Performance(Protocol):
    """One endless clip. Calls are made one after another; `settle` is called between chunks, while the frames are being
    sent."""

    def next_chunk(self, controls: Controls) -> PlayedChunk:
        """Makes the next chunk, which follows the controls."""
        ...

    def settle(self) -> None:
        """Runs the clean pass, which writes the last chunk into the cache."""
        ...

    def set_prompt(self, prompt: str) -> None:
        """Changes the prompt from the next chunk on."""
        ...

    def refresh_sink(self) -> None:
        """Replaces the attention sink by the newest chunks. Raises ValueError while there are too few."""
        ...

    def reset(self) -> None:
        """Goes back to chunk 0, with the same picture, seed and prompt."""
        ...

    def add_motion(self, name: str, xy_px: np.ndarray, visible: np.ndarray) -> None:
        """Adds a motion that Controls.transfer can name. xy_px: T n 2 in clip pixels at the clip's fps; visible: T n."""
        ...

    def add_webcam_frame(self, frame: np.ndarray) -> None:
        """Adds a webcam frame (H W 3 uint8, any size) to the live motion, which Controls.transfer = "webcam" names."""
        ...

    def save(self, title: str) -> Path:
        """Saves what was played since the start or the last reset. Returns the recording's folder. Raises ValueError where
        nothing
        was played."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of cached keys and values."""
        ...

    def close(self) -> None:
        """Frees its memory and files. The performance is not used again."""
        ...


class Player(Protocol):
    """The loaded model. It plays one performance at a time."""

    about: About

    def pictures(self) -> Sequence[Picture]:
        """Returns the first frames that users can choose."""
        ...

    def warm_up(self) -> None:
        """Does what would delay the first performance; called once. Raises ValueError where something is missing."""
        ...

    def open(self, start: Start) -> Performance:
        """Starts a performance. Raises ValueError for a frame of another size; an empty prompt is allowed."""
        ...

    def motion_of(self, clip: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Tracks a video file with the configured tracker. Returns xy_px T n 2 and visible T n at the clip's size and fps.
        Raises
        ValueError where it is not a video, too long or too large. It is called in a thread of its own, so that a running stream
        goes on."""
        ...

    def recordings(self) -> Sequence[dict[str, Any]]:
        """Returns the gallery's entries, newest first: {id, title, prompt, seed, seconds, frames, saved (ISO time), student,
        digest}. It and `recording_file` read small files only, and are called in threads of their own."""
        ...

    def recording_file(self, id: str, name: str) -> Path:
        """Returns the path of a recording's video.mp4, drawn.mp4, first.png, tracks.npz or recording.json. Raises
        ValueError for
        any other name."""
        ...
