"""Clips: cut shots into clips of the preset's length, fps and size; make further motions from real training clips.

Legend: T frames of a clip, h w its size. Times are seconds from the video's first frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from msmodel.config import ClipConfig
from stages.data.files import save_frames, write_png
from stages.data.split import Shots
from stages.data.video import Container, Unreadable, read_frames, read_timestamps
from stages.records import Clip, Rejected
from stages.spec import Context, Reject, Resources, Stage, StageError

PLATE_SCALE = 4  # plates keep a shorter side of this many clip heights: the renderer cuts enlarged regions from them
PLATES = ("plate-0.png", "plate-1.png")
TIME_HELDOUT_SHARE = 0.15  # of the clips, where only one source is left and the split must go by time


@dataclass(frozen=True)
class ClipsRun:
    clip: ClipConfig
    overlap: float
    variants: tuple[str, ...]


def run(cfg: ClipsRun, item: Shots, ctx: Context) -> tuple[Clip | Rejected, ...]:
    """Shots -> its clips, and the shots that gave none. Raises Reject where the whole video gives none."""
    stamps = read_timestamps(item.video.path)
    out: list[Clip | Rejected] = []
    for first, end in item.spans:
        starts = list(window_starts(cfg, stamps[first:end]))
        if not starts:
            seconds = stamps[end - 1] - stamps[first]
            reason = f"shot of {seconds:.2f} s is too short, a clip needs {cfg.clip.frames / cfg.clip.fps:.2f} s"
            out.append(Rejected(f"{item.video.source} at {stamps[first]:.2f} s", "clips", reason))
        for start in starts:
            try:
                out += _cut(cfg, item, stamps, (first, end), start, ctx.workdir)
            except Unreadable as e:
                out.append(Rejected(f"{item.video.source} at {start:.2f} s", "clips", str(e)))
    if not any(isinstance(r, Clip) for r in out):
        reasons = dict.fromkeys(r.reason for r in out if isinstance(r, Rejected))
        raise Reject(f"{item.video.source}: {'; '.join(reasons) or 'no shot'}")
    return tuple(out)


def window_starts(cfg: ClipsRun, stamps: np.ndarray) -> Iterator[float]:
    """Start times of the clips that fit a shot whose frames have these presentation times (half a frame of tolerance)."""
    span = (cfg.clip.frames - 1) / cfg.clip.fps
    step = cfg.clip.frames / cfg.clip.fps * (1.0 - cfg.overlap)
    count = 0
    while (start := float(stamps[0]) + count * step) + span <= stamps[-1] + 0.5 / cfg.clip.fps:
        yield start
        count += 1


def nearest(stamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Index of the frame shown nearest to each time; handles variable frame rates. stamps N rising, times T -> T int."""
    right = np.clip(np.searchsorted(stamps, times), 1, max(len(stamps) - 1, 1))
    right = np.minimum(right, len(stamps) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(times - stamps[left] <= stamps[right] - times, left, right)


def crop_box(width: int, height: int, clip: ClipConfig) -> tuple[int, int, int, int]:
    """The largest centred box of the clip's aspect: left, top, width, height in pixels."""
    scale = min(width / clip.width, height / clip.height)
    w, h = min(width, round(clip.width * scale)), min(height, round(clip.height * scale))
    return (width - w) // 2, (height - h) // 2, w, h


def resize(frame: np.ndarray, clip: ClipConfig) -> np.ndarray:
    """h w 3 of the clip's aspect -> the clip's size: by area when shrinking, cubic when enlarging."""
    shrinks = frame.shape[0] >= clip.height
    size = (clip.width, clip.height)
    return cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _cut(
    cfg: ClipsRun, item: Shots, stamps: np.ndarray, span: tuple[int, int], start: float, workdir: Path
) -> list[Clip]:
    """One window: the clip itself with its plates and, in training sources, its variants."""
    video, clip = item.video, cfg.clip
    shot = stamps[span[0] : span[1]]
    steps = np.arange(clip.frames) / clip.fps
    plain = nearest(shot, start + steps) + span[0]
    wanted = set(plain.tolist())
    variants = cfg.variants if item.split == "train" else ()
    fast = nearest(shot, start + 2 * steps) + span[0]
    if start + 2 * steps[-1] > shot[-1] + 0.5 / clip.fps:
        variants = tuple(v for v in variants if v != "fast")
    if "fast" in variants:
        wanted |= set(fast.tolist())
    container = Container(video.width, video.height, video.rotation).scaled_to(PLATE_SCALE * clip.height)
    source = dict(zip(sorted(wanted), read_frames(video.path, container, sorted(wanted)), strict=True))

    clip_id = f"{video.video_id}-{round(start * 1000):07d}"
    base = Clip(
        clip_id=clip_id,
        folder=str(workdir / clip_id),
        scene=video.video_id,
        split=item.split,
        kind="real",
        caption=video.caption,
        source=video.source,
        licence=video.licence,
        start_seconds=start,
        clip_seconds=clip.frames / clip.fps,
    )
    plain_frames = _frames(source, plain, clip)
    out = [_save(base, plain_frames, clip.fps)]
    for name, index in zip(PLATES, (plain[0], plain[clip.frames // 2]), strict=True):
        write_png(Path(base.folder) / name, source[int(index)])
    make: dict[str, Callable[[], np.ndarray]] = {
        "reversed": lambda: plain_frames[::-1],
        "push_in": lambda: push_in([source[i] for i in plain.tolist()], clip, _generator(clip_id)),
        "fast": lambda: _frames(source, fast, clip),
    }
    for name in variants:
        seconds = base.clip_seconds * (2 if name == "fast" else 1)
        other = f"{clip_id}-{name.replace('_', '-')}"
        clip_of = replace(base, clip_id=other, folder=str(workdir / other), recipe=name, clip_seconds=seconds)
        out.append(_save(clip_of, make[name](), clip.fps))
    return out


def _generator(clip_id: str) -> np.random.Generator:
    return np.random.default_rng(list(clip_id.encode()))


def _save(clip: Clip, frames: np.ndarray, fps: float) -> Clip:
    save_frames(Path(clip.folder), frames, fps)
    return clip


def _frames(source: dict[int, np.ndarray], indices: np.ndarray, clip: ClipConfig) -> np.ndarray:
    """T h w 3: cropped and resized."""
    done = {}
    for i in set(indices.tolist()):
        frame = source[i]
        left, top, w, h = crop_box(frame.shape[1], frame.shape[0], clip)
        done[i] = resize(frame[top : top + h, left : left + w], clip)
    return np.stack([done[i] for i in indices.tolist()])


def push_in(frames: Sequence[np.ndarray], clip: ClipConfig, generator: np.random.Generator) -> np.ndarray:
    """The crop narrows steadily towards a random window: the first frame is the plain clip's, the camera moves. T h w 3."""
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


def settle_splits(clips: Sequence[Clip], say: Callable[[str], None]) -> list[Clip]:
    """Makes sure that both splits hold real clips: where one source is left, the split goes by shot and time, and is said so.

    Variants of held-out clips, and training clips that overlap one in time, are dropped. Raises StageError without clips.
    """
    if not clips:
        raise StageError("no clip was made: every input was rejected (see the reasons above)")
    if len({c.split for c in clips}) == 2:
        return list(clips)
    if len({c.source for c in clips}) > 1:
        return _by_source(clips, say)
    plain = sorted((c for c in clips if not c.recipe), key=lambda c: (c.source, c.start_seconds))
    if len(plain) < 2:
        say(f"one real clip only ({plain[0].clip_id}): it trains; held-out scenes are cut from its middle frame")
        return [replace(c, split="train") for c in clips]
    held = plain[-max(1, round(len(plain) * TIME_HELDOUT_SHARE)) :]
    say(f"one usable source only: its last {len(held)} of {len(plain)} clips are held out by time, not by source")
    out = [replace(c, split="heldout") for c in held]
    taken = {c.clip_id for c in held}
    for clip in clips:
        apart = all(clip.source != h.source or _apart(clip, h) for h in held)
        if clip.clip_id not in taken and apart:
            out.append(replace(clip, split="train"))
    return sorted(out, key=lambda c: c.clip_id)


def _by_source(clips: Sequence[Clip], say: Callable[[str], None]) -> list[Clip]:
    """All clips fell to one split, as the sources meant for the other gave none: one whole source changes sides.

    To the held-out side the one with the fewest clips, its variants dropped; to the training side all but that one.
    """
    counts = Counter(c.source for c in clips)
    held = min(counts, key=lambda source: (counts[source], source))
    say(f"the sources chosen for one split gave no clip: {held} is held out, the other {len(counts) - 1} train")
    kept = [c for c in clips if c.source != held or not c.recipe]
    return [replace(c, split="heldout" if c.source == held else "train") for c in kept]


def _apart(a: Clip, b: Clip) -> bool:
    tolerance = 1e-6
    return (
        a.start_seconds + a.clip_seconds <= b.start_seconds + tolerance
        or b.start_seconds + b.clip_seconds <= a.start_seconds + tolerance
    )


CLIPS = Stage("clips", 1, "per_item", run, Resources(cpus=1.0))
