"""A fake model: a textured disc that a dragged point takes along. It is deterministic, and as fast or slow as it is set.

Legend: T frames, H W pixels, n points.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from demo.playing.player import About, Picture, PlayedChunk, Start
from msmodel.steering.steering import Controls
from stages.data.files import save_npz, write_mp4, write_png

ABOUT = About(
    preset="fake",
    student="a fake of the tests",
    digest="0" * 12,
    height=40,
    width=64,
    fps=24.0,
    first_frames=5,
    chunk_frames=6,
    max_points=64,
    grid=(5, 8),
)
WAIT_SECONDS = 300.0  # before a test gives up on something that must come; a busy machine takes long
RADIUS = 0.18  # of the disc, in frame heights
FILES = ("video.mp4", "drawn.mp4", "first.png", "tracks.npz", "recording.json")
REACH = 0.25  # shares: a point that appears no farther from the disc's middle takes it along


def draw(about: About, centre: np.ndarray, background: np.ndarray) -> np.ndarray:
    """centre: x, y shares. background: H W 3 uint8. -> H W 3 uint8: the disc, bright with dark stripes, before it."""
    y, x = np.mgrid[: about.height, : about.width] + 0.5
    dx, dy = x - centre[0] * about.width, y - centre[1] * about.height
    inside = dx**2 + dy**2 < (RADIUS * about.height) ** 2
    stripes = np.where((np.floor(dx / 2) + np.floor(dy / 2)) % 2 < 1, 255, 150)
    out = background.copy()
    out[inside] = np.stack([stripes, stripes * 0.8, stripes * 0.1], -1)[inside].astype(np.uint8)
    return out


def disc_centre(frame: np.ndarray) -> np.ndarray:
    """Where the disc is seen in H W 3 uint8: x, y shares."""
    wide = frame.astype(int)
    y, x = np.nonzero((wide[..., 0] > 120) & (wide[..., 0] - wide[..., 2] > 80))
    assert len(x), "no disc in the frame"
    return np.array([(x.mean() + 0.5) / frame.shape[1], (y.mean() + 0.5) / frame.shape[0]])


@dataclass
class FakePlayer:
    """seconds: of one chunk. settle_seconds: of the clean pass. fault: index of the chunk that fails, -1 for none."""

    about: About = ABOUT
    folder: Path | None = None  # of recordings; without it `save` is refused
    seconds: float = 0.0
    settle_seconds: float = 0.0
    fault: int = -1
    cold: str = ""  # why it cannot be warmed up
    may_warm: threading.Event | None = None  # waited for by warm_up
    opened: list[FakePerformance] = field(default_factory=list)

    @property
    def alive(self) -> int:
        """Performances that are open."""
        return sum(not p.closed for p in self.opened)

    def pictures(self) -> Sequence[Picture]:
        shades = {"dusk": (40, 40, 90), "moss": (30, 80, 40), "slate": (60, 70, 80)}
        size = (self.about.height, self.about.width, 3)
        return [
            Picture(name, name.title(), f"a disc, {name}", np.full(size, c, np.uint8)) for name, c in shades.items()
        ]

    def warm_up(self) -> None:
        if self.may_warm is not None:
            assert self.may_warm.wait(WAIT_SECONDS)
        if self.cold:
            raise ValueError(self.cold)

    def open(self, start: Start) -> FakePerformance:
        if start.frame.shape != (self.about.height, self.about.width, 3):
            raise ValueError(f"a frame of {start.frame.shape}")
        self.opened.append(FakePerformance(self, start))
        return self.opened[-1]

    def motion_of(self, clip: bytes) -> tuple[np.ndarray, np.ndarray]:
        if clip[4:8] != b"ftyp":
            raise ValueError("motion: not a video that can be read; send an mp4")
        steps = np.linspace(0, self.about.width / 2, 24, dtype=np.float32)
        xy_px = np.stack([np.stack([steps, np.full(24, 20, np.float32)], -1)] * 4, 1)
        return xy_px, np.ones((24, 4), bool)

    def recordings(self) -> Sequence[dict[str, Any]]:
        files = sorted(self.folder.glob("*/recording.json"), reverse=True) if self.folder else []
        return [{**json.loads(f.read_text()), "folder": str(f.parent)} for f in files]

    def recording_file(self, id: str, name: str) -> Path:
        known = {r["id"] for r in self.recordings()}
        if self.folder is None or id not in known or name not in FILES:
            raise ValueError(f"no {name} of a recording {id!r}")
        return self.folder / id / name


@dataclass
class FakePerformance:
    """What was done to it stands in `calls`."""

    player: FakePlayer
    start: Start
    closed: bool = False
    calls: list[str] = field(default_factory=list)
    cache_bytes: int = 1000

    def __post_init__(self) -> None:
        self.prompt = self.start.prompt
        self._restart()

    def _restart(self) -> None:
        self.index = 0
        self.centre = np.array([0.5, 0.5])
        self.grips: dict[int, np.ndarray] = {}  # id -> the disc's middle less the point
        self.frames: list[np.ndarray] = []

    def next_chunk(self, controls: Controls) -> PlayedChunk:
        assert not self.closed, "a closed performance was used"
        time.sleep(self.player.seconds)
        if self.index == self.player.fault:
            raise RuntimeError(f"planted fault at chunk {self.index}")
        about = self.player.about
        count = about.chunk_frames if self.index else about.first_frames
        target = self._target(controls)
        steps = [self.centre + (target - self.centre) * (t + 1) / count for t in range(count)]
        if self.index == 0:
            steps[0] = self.centre
        frames = np.stack([draw(about, c, self.start.frame) for c in steps])
        self.centre, self.index = target, self.index + 1
        self.frames.append(frames)
        del self.frames[:-200]
        xy_px = np.repeat((controls.xy * [about.width, about.height])[None], count, 0).astype(np.float32)
        visible = np.ones(xy_px.shape[:2], bool)
        return PlayedChunk(self.index - 1, controls.revision, frames, xy_px, visible, self.player.seconds, 0.0)

    def _target(self, controls: Controls) -> np.ndarray:
        """Where the disc's middle goes: with the first dragged point that holds it."""
        points = dict(zip(controls.ids[~controls.pinned].tolist(), controls.xy[~controls.pinned], strict=True))
        self.grips = {i: g for i, g in self.grips.items() if i in points}
        for i, xy in points.items():
            if i not in self.grips and np.hypot(*(self.centre - xy)) < REACH:
                self.grips[i] = self.centre - xy
        held = [points[i] + grip for i, grip in self.grips.items()]
        return held[0].astype(np.float64) if held else self.centre

    def settle(self) -> None:
        assert not self.closed, "a closed performance was used"
        time.sleep(self.player.settle_seconds)

    def set_prompt(self, prompt: str) -> None:
        self.prompt = prompt
        self.calls.append(f"prompt {prompt}")

    def refresh_sink(self) -> None:
        if self.index < 2:
            raise ValueError(f"sink: {self.index} chunks are too few to refresh it with; wait for 2")
        self.calls.append("sink")

    def reset(self) -> None:
        self.calls.append("reset")
        self._restart()

    def add_motion(self, name: str, xy_px: np.ndarray, visible: np.ndarray) -> None:
        self.calls.append(f"motion {name} {len(xy_px)}")

    def add_webcam_frame(self, frame: np.ndarray) -> None:
        self.calls.append(f"webcam {frame.shape}")

    def save(self, title: str) -> Path:
        if not self.frames or self.player.folder is None:
            raise ValueError("recording: nothing was played yet")
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{len(self.player.recordings())}"
        folder = self.player.folder / name
        folder.mkdir(parents=True)
        frames = np.concatenate(self.frames)
        for video in ("video.mp4", "drawn.mp4"):
            write_mp4(folder / video, frames, self.player.about.fps)
        write_png(folder / "first.png", self.start.frame)
        save_npz(folder / "tracks.npz", {"xy_px": np.zeros((len(frames), 0, 2), np.float32)})
        about = {"id": name, "title": title, "prompt": self.prompt, "seed": self.start.seed, "frames": len(frames)}
        about |= {"seconds": len(frames) / self.player.about.fps, "saved": datetime.now(UTC).isoformat()}
        about |= {"student": self.player.about.student, "digest": self.player.about.digest}
        about |= {"preset": self.player.about.preset}
        (folder / "recording.json").write_text(json.dumps(about))
        return folder

    def close(self) -> None:
        self.closed = True
