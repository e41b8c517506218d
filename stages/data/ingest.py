"""Stage INGEST (per item): checks whether a file is a usable video, and reads its facts. It decodes only the first frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msmodel.config import ClipConfig
from msmodel.io.packages import sha256
from stages.contracts import Context, Reject, Resources, Stage
from stages.data.files import slug
from stages.data.sources import Candidate
from stages.data.video import (
    Container,
    Unreadable,
    frame_rate,
    missing_end,
    read_container,
    read_frames,
    read_timestamps,
)
from stages.records import Video

PROBE_SIDE = 256  # px: the first frame is decoded at this size, however large it is
SPAN_TOLERANCE = 0.1  # seconds that a table's span may end after the video: tables round


@dataclass(frozen=True)
class IngestRun:
    """Limits of a usable video, as in DataConfig."""

    clip: ClipConfig
    min_side_px: int
    max_side_px: int
    min_aspect: float
    max_aspect: float


def run(cfg: IngestRun, item: Candidate, ctx: Context) -> Video:
    """Makes a Video of a candidate. Raises Reject with the reason if the file cannot be used."""
    try:
        return probe(cfg, item, str(ctx.fetch(item.path)))
    except Unreadable as e:
        raise Reject(f"{item.name}: {e}") from None
    except (
        FileNotFoundError,
        PermissionError,
        IsADirectoryError,
    ) as e:  # other errors may be temporary: they are retried
        raise Reject(f"{item.name}: cannot be read ({e.strerror or e})") from None


def probe(cfg: IngestRun, item: Candidate, path: str) -> Video:
    """Reads the facts of a video. path: of the candidate's file on this machine. Raises Unreadable, or OSError."""
    container = read_container(path)
    _check_size(cfg, container)
    stamps = read_timestamps(path)
    if len(stamps) < 2:
        raise Unreadable("one frame only: a picture, not a video")
    fps = frame_rate(stamps)
    if fps <= 0:
        raise Unreadable(f"zero frames a second: the timestamps of its {len(stamps)} frames do not advance")
    _check_length(cfg, item, len(stamps) / fps)
    next(iter(read_frames(path, container.scaled_to(PROBE_SIDE), [0])))
    digest = sha256(path)
    lie = missing_end(container, stamps)
    return Video(
        video_id=f"{slug(Path(item.name).name)}-{digest[:8]}{_span_of(item)}",
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
        interlaced=container.interlaced,
        start_seconds=item.start_seconds,
        end_seconds=item.end_seconds,
        notes=(*item.notes, *container.notes(), *([lie] if lie else [])),
    )


def _check_size(cfg: IngestRun, container: Container) -> None:
    size = f"{container.width} x {container.height} px"
    if min(container.width, container.height) < cfg.min_side_px:
        raise Unreadable(f"{size}: the shorter side is below {cfg.min_side_px}")
    if max(container.width, container.height) > cfg.max_side_px:
        raise Unreadable(f"{size}: the longer side is above {cfg.max_side_px}")
    aspect = container.width / container.height
    if not cfg.min_aspect <= aspect <= cfg.max_aspect:
        raise Unreadable(f"{size}: the aspect {aspect:.2f} is not between {cfg.min_aspect:g} and {cfg.max_aspect:g}")


def _check_length(cfg: IngestRun, item: Candidate, seconds: float) -> None:
    """Raises Unreadable if the video, or its given span, is shorter than one clip."""
    start, end = item.start_seconds, item.end_seconds or seconds
    if start >= seconds or end > seconds + SPAN_TOLERANCE:
        shown = f"{start:g}-{end:g} s" if item.end_seconds else f"from {start:g} s"
        raise Unreadable(f"span {shown} lies beyond the video's {seconds:.1f} s")
    length, needed = min(end, seconds) - start, cfg.clip.frames / cfg.clip.fps
    if length < needed - 1.0 / cfg.clip.fps:
        raise Unreadable(f"too short: {length:.2f} s, a clip needs {needed:.2f} s")


def _span_of(item: Candidate) -> str:
    """Returns the suffix of an id that distinguishes spans of one file, in milliseconds; "" for a whole file."""
    if not (item.start_seconds or item.end_seconds):
        return ""
    return f"-{round(item.start_seconds * 1000)}to{round(item.end_seconds * 1000) if item.end_seconds else 'end'}"


INGEST = Stage("ingest", 2, "per_item", run, Resources(cpus=1.0))
