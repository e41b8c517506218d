"""Ingest: is this file a video we can use, and what is in it? Nothing is decoded but the first frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msmodel.config import ClipConfig
from msmodel.packages import sha256
from stages.data.files import slug
from stages.data.sources import Candidate
from stages.data.video import Unreadable, frame_rate, read_container, read_frames, read_timestamps
from stages.records import Video
from stages.spec import Context, Reject, Resources, Stage


@dataclass(frozen=True)
class IngestRun:
    clip: ClipConfig
    min_side_px: int


def run(cfg: IngestRun, item: Candidate, ctx: Context) -> Video:
    """Candidate -> Video. Raises Reject with the reason where the file is of no use."""
    try:
        return probe(cfg, item)
    except Unreadable as e:
        raise Reject(f"{item.name}: {e}") from None
    except (PermissionError, IsADirectoryError) as e:  # other errors of the disk or the network may pass: tried again
        raise Reject(f"{item.name}: cannot be read ({e.strerror or e})") from None


def probe(cfg: IngestRun, item: Candidate) -> Video:
    """Raises Unreadable, or OSError."""
    container = read_container(item.path)
    if min(container.width, container.height) < cfg.min_side_px:
        raise Unreadable(f"{container.width} x {container.height} px: the shorter side is below {cfg.min_side_px}")
    stamps = read_timestamps(item.path)
    if len(stamps) < 2:
        raise Unreadable("one frame only: a picture, not a video")
    fps = frame_rate(stamps)
    if fps <= 0:
        raise Unreadable(f"zero frames a second: the timestamps of its {len(stamps)} frames do not advance")
    seconds, needed = len(stamps) / fps, cfg.clip.frames / cfg.clip.fps
    if seconds < needed - 1.0 / cfg.clip.fps:
        raise Unreadable(f"too short: {seconds:.2f} s, a clip needs {needed:.2f} s")
    next(iter(read_frames(item.path, container, [0])))
    digest = sha256(item.path)
    return Video(
        video_id=f"{slug(Path(item.name).name)}-{digest[:8]}",
        path=item.path,
        source=item.source,
        licence=item.licence,
        caption=item.caption,
        sha256=digest,
        width=container.width,
        height=container.height,
        fps=fps,
        frames=len(stamps),
        rotation=container.rotation,
    )


INGEST = Stage("ingest", 1, "per_item", run, Resources(cpus=1.0))
