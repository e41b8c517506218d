"""Stage CUT (per item): one pass over a part of a video finds its shots and writes clips of the preset's length, fps and size.

Variants with other motion are made from real training clips. Each frame is decoded once, and kept only while a clip may still
need it.

Legend: T frames of a clip, h w its size. Times are seconds from the video's first frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from msmodel.config import ClipConfig
from stages.contracts import Context, Reject, Resources, Stage
from stages.data.config import DataConfig
from stages.data.files import save_frames, write_png
from stages.data.quality import perceptual_hash, picture_quality
from stages.data.shots import ShotFinder, Window, windows
from stages.data.sources import assign_splits
from stages.data.video import Unreadable, missing_end, read_container, read_frames, read_timestamps
from stages.records import Clip, Rejected, Video

STILL_SCALE = 4  # a still's shorter side in clip heights: the renderer cuts enlarged regions from stills
STILL_SIDE_LIMIT = 720  # px: the most for a still's shorter side, or twice the clip's where that is larger
STILLS = ("still-0.png", "still-1.png")


@dataclass(frozen=True)
class CutRun:
    """Settings of CUT, as in DataConfig."""

    clip: ClipConfig
    overlap: float
    variants: tuple[str, ...]
    threshold: float
    min_content: float
    min_seconds: float


@dataclass(frozen=True)
class Segment:
    """Describes a part of a video: frames [first, end) at its mean rate, which gives the same span of time at a variable rate.

    split: "train" or "heldout".
    """

    video: Video
    split: str
    number: int
    first: int
    end: int


def segments(videos: Sequence[Video], cfg: DataConfig, split: Mapping[str, str] | None = None) -> list[Segment]:
    """Divides every video into parts of cfg.segment_seconds; a rest of less than half of that joins the last part.

    split: video_id -> split, in place of what `assign_splits` decides.
    """
    split = assign_splits(videos, cfg) if split is None else split
    out = []
    for video in videos:
        first = round(video.start_seconds * video.fps)
        end = min(video.frames, round(video.end_seconds * video.fps) or video.frames)
        length = max(1, round(cfg.segment_seconds * video.fps))
        count = max(1, int((end - first) / length + 0.5))
        edges = [*(first + i * length for i in range(count)), end]
        for number, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
            out.append(Segment(video, split[video.video_id], number, start, stop))
    return out


def run(cfg: CutRun, item: Segment, ctx: Context) -> tuple[Clip | Rejected, ...]:
    """Cuts a segment: returns its clips and, as Rejected, shots without one. Raises Reject if the segment gives no clip."""
    video = item.video
    name = f"{video.source} from {item.first / video.fps:.0f} s" if item.number else video.source
    try:
        path = str(ctx.fetch(video.path))
        container, stamps = read_container(path), read_timestamps(path)
    except Unreadable as e:
        raise Reject(f"{name}: {e}") from None
    except (FileNotFoundError, PermissionError) as e:  # other errors may be temporary: they are retried
        raise Reject(f"{name}: cannot be read ({e.strerror or e})") from None
    edges = (np.array([item.first, item.end]) - 0.5) / video.fps
    first, end = (int(i) for i in np.searchsorted(stamps, edges))
    if end - first < 2:
        raise Reject(f"{name}: fewer than two frames lie in this part")
    cutter = Cutter(cfg, item, stamps[first:end], ctx.workdir)
    try:
        for frame in read_frames(path, container.scaled_to(decode_side(cfg.clip)), range(first, end)):
            cutter.add(frame)
    except Unreadable:
        if cutter.shots.read < 2:
            raise Reject(f"{name}: damaged: fewer than two frames can be decoded") from None
    out = cutter.finish()
    read = first + cutter.shots.read
    if read < end:
        reason = f"damaged from {stamps[read]:.1f} s: nothing is used from there to {stamps[end - 1]:.1f} s"
        out.append(Rejected(f"{video.source} at {stamps[read]:.2f} s", "cut", reason))
    lie = missing_end(container, stamps)
    if lie and end == len(stamps):
        out.append(Rejected(f"{video.source} at {stamps[-1]:.2f} s", "cut", lie))
    if not any(isinstance(r, Clip) for r in out):
        reasons = dict.fromkeys(r.reason for r in out if isinstance(r, Rejected))
        raise Reject(f"{name}: {'; '.join(reasons)}")
    return tuple(out)


def decode_side(clip: ClipConfig) -> int:
    """Returns the shorter side, in pixels, at which a video is decoded for clips of this size, if it is that large."""
    return min(STILL_SCALE * clip.height, max(2 * clip.height, STILL_SIDE_LIMIT))


class Cutter:
    """Takes a segment's frames in order and writes each clip as soon as its shot is known to be long enough.

    It keeps the frames that a clip not yet written will need, and the few by which the search for cuts lags behind: at most
    about twice the length of a clip, if the variant at twice the speed is wanted.
    """

    def __init__(self, cfg: CutRun, item: Segment, stamps: np.ndarray, workdir: Path):
        """stamps: presentation times of the segment's frames, N."""
        self.cfg, self.item, self.stamps, self.workdir = cfg, item, stamps, workdir
        self.variants = cfg.variants if item.split == "train" else ()
        self.shots = ShotFinder(cfg.threshold, cfg.min_content, cfg.min_seconds, item.video.fps)
        self.frames: dict[int, np.ndarray] = {}
        self.out: list[Clip | Rejected] = []
        self._begin(0)

    def add(self, frame: np.ndarray) -> None:
        """Takes the next frame, h w 3 uint8."""
        self.frames[self.shots.read] = frame.copy()  # a view would keep its whole decoded group
        for cut in self.shots.add(frame):
            self._end(cut)
            self._begin(cut)
        self._plan(self.shots.settled)
        while self.planned and self.planned[0].decided <= self.shots.settled:
            self._write(self.planned.popleft(), self.shots.settled)
        self._forget(self.shots.settled - 1)

    def finish(self) -> list[Clip | Rejected]:
        """Ends the last shot after the last frame; returns clips, and shots too short for one as Rejected, in order."""
        self._end(self.shots.read)
        return self.out

    def _begin(self, first: int) -> None:
        self.shot = first
        self.upcoming = windows(self.cfg.clip, self.cfg.overlap, "fast" in self.variants, self.stamps, first)
        self.planned: deque[Window] = deque([next(self.upcoming)])
        self.written = 0

    def _plan(self, known: int) -> None:
        """Plans every window that may need a frame before `known`, up to the one in which the segment ends."""
        while self.planned[-1].plain[0] < known and self.planned[-1].plain_reach < len(self.stamps):
            self.planned.append(next(self.upcoming))

    def _end(self, end: int) -> None:
        """Ends the current shot before frame `end`: writes the clips that fit it."""
        self._plan(end)
        for window in self.planned:
            if window.plain_reach < end:
                self._write(window, end)
        if not self.written:
            times, clip = self.stamps[[self.shot, end - 1]], self.cfg.clip
            reason = f"shot of {times[1] - times[0]:.2f} s is too short, a clip needs {clip.frames / clip.fps:.2f} s"
            self.out.append(Rejected(f"{self.item.video.source} at {times[0]:.2f} s", "cut", reason))

    def _forget(self, before: int) -> None:
        """Drops the frames before this one that no planned window needs."""
        for index in [i for i in self.frames if i < before and not any(w.wants(i) for w in self.planned)]:
            del self.frames[index]

    def _write(self, window: Window, end: int) -> None:
        """Writes the clip of a window whose shot reaches `end`, with its stills and, in training sources, its variants."""
        self.written += 1
        window = window.ended_at(end)
        video, clip, frames = self.item.video, self.cfg.clip, self.frames
        clip_id = f"{video.video_id}-{round(window.start * 1000):07d}"
        base = Clip(
            clip_id=clip_id,
            folder=str(self.workdir / clip_id),
            scene=video.video_id,
            split=self.item.split,
            kind="real",
            caption=video.caption,
            source=video.source,
            licence=video.licence,
            start_seconds=window.start,
            clip_seconds=clip.frames / clip.fps,
            segment=self.item.number,
            notes=video.notes,
        )
        plain = _frames(frames, window.plain, clip)
        self.out.append(_save(base, plain, clip.fps))
        for name, index in zip(STILLS, (window.plain[0], window.plain[clip.frames // 2]), strict=True):
            write_png(Path(base.folder) / name, frames[int(index)])
        make: dict[str, Callable[[], np.ndarray]] = {
            "reversed": lambda: plain[::-1],
            "push_in": lambda: push_in([frames[i] for i in window.plain.tolist()], clip, _generator(clip_id)),
            "fast": lambda: _frames(frames, window.fast, clip),
        }
        for name in self.variants:
            if name == "fast" and window.fast_reach >= end:
                continue  # the shot holds no footage for it
            seconds = base.clip_seconds * (2 if name == "fast" else 1)
            other = f"{clip_id}-{name.replace('_', '-')}"
            clip_of = replace(base, clip_id=other, folder=str(self.workdir / other), recipe=name, clip_seconds=seconds)
            self.out.append(_save(clip_of, make[name](), clip.fps))


def crop_box(width: int, height: int, clip: ClipConfig) -> tuple[int, int, int, int]:
    """Returns the largest centred box of the clip's aspect: left, top, width, height in pixels."""
    scale = min(width / clip.width, height / clip.height)
    w, h = min(width, round(clip.width * scale)), min(height, round(clip.height * scale))
    return (width - w) // 2, (height - h) // 2, w, h


def resize(frame: np.ndarray, clip: ClipConfig) -> np.ndarray:
    """Resizes a frame (h w 3, of the clip's aspect) to the clip's size: by area when shrinking, cubic when enlarging."""
    shrinks = frame.shape[0] >= clip.height
    size = (clip.width, clip.height)
    return cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _generator(clip_id: str) -> np.random.Generator:
    return np.random.default_rng(list(clip_id.encode()))


def _save(clip: Clip, frames: np.ndarray, fps: float) -> Clip:
    """Writes frames T h w 3; returns the clip with the figures of its picture and its perceptual hash."""
    save_frames(Path(clip.folder), frames, fps)
    return replace(clip, quality=picture_quality(frames), phash=perceptual_hash(frames))


def _frames(source: dict[int, np.ndarray], indices: np.ndarray, clip: ClipConfig) -> np.ndarray:
    """Returns the frames at `indices`, cropped and resized: T h w 3."""
    done = {}
    for i in set(indices.tolist()):
        frame = source[i]
        left, top, w, h = crop_box(frame.shape[1], frame.shape[0], clip)
        done[i] = resize(frame[top : top + h, left : left + w], clip)
    return np.stack([done[i] for i in indices.tolist()])


def push_in(frames: Sequence[np.ndarray], clip: ClipConfig, generator: np.random.Generator) -> np.ndarray:
    """Makes a camera move: the crop narrows steadily from the plain clip's towards a random window. Returns T h w 3."""
    left, top, w, h = crop_box(frames[0].shape[1], frames[0].shape[0], clip)
    end_scale = generator.uniform(0.55, 0.8)
    end_corner = generator.uniform(0, 1, 2) * (1 - end_scale) * np.array([w, h])
    out = []
    for i, frame in enumerate(frames):
        s = i / max(len(frames) - 1, 1)
        zoom = 1 - s + s * end_scale
        x, y = s * end_corner + (zoom - 1) / 2  # pixel centres lie at whole numbers here
        matrix = np.array([[zoom, 0, x], [0, zoom, y]])
        crop = np.ascontiguousarray(frame[top : top + h, left : left + w])
        moved = cv2.warpAffine(
            crop, matrix, (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )
        out.append(resize(moved, clip))
    return np.stack(out)


CUT = Stage("cut", 1, "per_item", run, Resources(cpus=1.0))
