"""make pictures: makes the README's two moving pictures, teacher_student.webp and drag.webp.

teacher_student.webp shows one held-out clip of the run's newest evaluation: the clip with the tracks that were asked for, and
what the teacher and the student made of its first frame and these tracks. The clip is the one with the median EPE of the
student (see `median_clip`), not the best one. drag.webp is recorded from the demo with the shipped student.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from configs.settings import Config
from demo.playing.pictures import known_licence
from infra.codec import Codec
from infra.files import CHECKOUT
from infra.results import manifests
from pipelines.commands.options import OK, add_settings, configured
from pipelines.results import newest_data
from stages import eval as ev
from stages.data.files import write_webp
from stages.eval.items import CLIP_KINDS, RENDERED, read_clip, read_tracks
from stages.eval.report import Videos
from stages.eval.videos import INK, PAPER, Tile, drawn_frame
from stages.records import Checkpoint

OUT = CHECKOUT / "docs" / "img"
TILE_WIDTH = 384  # px at most: clips are enlarged by a whole number
GAP_PX, LABEL_PX, FONT_PX = 6, 28, 17
PAUSE_SECONDS = 1.0  # on the last frame
MAX_BYTES = 2_000_000
TEACHER_STUDENT, DRAG = "teacher_student", "drag"


@dataclass(frozen=True)
class Evaluation:
    """The newest evaluation of a student in a run. config: that of the step that generated the videos, as JSON."""

    generated: tuple[ev.Generated, ...]
    measured: tuple[ev.Measured, ...]
    config: Mapping[str, Any]

    @property
    def teacher_steps(self) -> int:
        return self.config["generate"]["steps"]

    @property
    def student_steps(self) -> int:
        return self.config["model"]["student"]["steps"]

    @property
    def fps(self) -> float:
        return self.config["model"]["clip"]["fps"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="where to write (default: docs/img)")
    parser.add_argument("--only", choices=(TEACHER_STUDENT, DRAG), default="", help="one picture (default: both)")
    parser.add_argument("--kind", choices=CLIP_KINDS, default=RENDERED, help="of the clip (default: rendered)")
    add_settings(parser)


def execute(options: argparse.Namespace) -> int:
    cfg = configured(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only != DRAG:
        _teacher_student(cfg, options.kind, options.out / f"{TEACHER_STUDENT}.webp")
    if options.only != TEACHER_STUDENT:
        from demo.record_pictures import record_drag  # late: the other picture needs no browser

        file = options.out / f"{DRAG}.webp"
        record_drag(file)
        print(_size(file))
    return OK


def _teacher_student(cfg: Config, kind: str, file: Path) -> None:
    """Writes the picture of teacher and student, or prints what is missing for it."""
    evaluation = newest_evaluation(cfg.root)
    if evaluation is None:
        print(f"{file.name} is not made: {cfg.root} has no evaluation of a student. Make one, then run this again:\n"
              f"  make data teacher distill eval PRESET={cfg.preset} RUNS={cfg.root.parent}")  # fmt: skip
        return
    clip, rule = median_clip(evaluation, kind, shippable_clips(cfg.root))
    print(f"{clip.clip_id} ({clip.caption}): {rule}")
    frames = side_by_side(tiles(clip, evaluation), TILE_WIDTH)
    milliseconds = [round(1000 / evaluation.fps)] * len(frames)
    milliseconds[-1] += round(1000 * PAUSE_SECONDS)
    write_webp(file, [Image.fromarray(frame) for frame in frames], milliseconds, MAX_BYTES)
    print(_size(file))


def newest_evaluation(root: Path) -> Evaluation | None:
    """Returns the newest evaluation of a student in RUNS/PRESET, None where there is none."""
    codec = Codec((*ev.RECORDS, Checkpoint), root)

    def newest(stage: str) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
        for _, manifest in reversed(manifests(root, stage)):
            records = codec.decode(manifest["records"])
            if any(record.item.model == "student" for record in records):  # a sweep generates with the teacher alone
                return records, manifest["config"]
        return None

    generated, measured = newest(ev.GENERATE.name), newest(ev.MEASURE.name)
    return Evaluation(generated[0], measured[0], generated[1]) if generated and measured else None


def shippable_clips(root: Path) -> set[str]:
    """Returns the ids of the clips in the run's newest data whose licence is known."""
    rows = pq.read_table(newest_data(root)[0].catalogue, columns=["name", "licence"]).to_pylist()
    return {row["name"] for row in rows if known_licence(row["licence"] or "unknown")}


def median_clip(evaluation: Evaluation, kind: str, shippable: set[str]) -> tuple[ev.EvalClip, str]:
    """Chooses a held-out clip, and returns it with the rule in words.

    Of the evaluated clips of a kind whose licence is known, it is the one with the median EPE of the student on the clip's own
    tracks; the worse of the two middle ones where their number is even. Raises ValueError where there is no such clip.
    """
    found: list[tuple[float, str, ev.EvalClip]] = []
    for measured in evaluation.measured:
        item = measured.item
        if (item.kind, item.model, item.variant) != (kind, "student", "tracks"):
            continue
        figures = json.loads(Path(measured.file).read_text())
        shown = [clip for clip in item.clips if clip.clip_id in shippable]
        found += [(figures[clip.clip_id]["epe"]["epe"], clip.clip_id, clip) for clip in shown]
    if not found:
        raise ValueError(
            f"no evaluated {kind} clip has a known licence: evaluate more (eval.select.clips), or give --kind"
        )
    found.sort(key=lambda entry: entry[:2])
    epe, _, clip = found[len(found) // 2]
    return (
        clip,
        f"the median EPE of the student ({epe:.1f} px) among {len(found)} {kind} held-out clips of known licence",
    )


def tiles(clip: ev.EvalClip, evaluation: Evaluation) -> list[Tile]:
    """Returns the clip with its tracks, and the teacher's and the student's video of it.

    Raises ValueError if one is missing.
    """
    videos = Videos(evaluation.generated)
    labels = {"teacher": f"teacher, {evaluation.teacher_steps} steps"}
    labels["student"] = f"student, {evaluation.student_steps} steps a chunk"
    made = [Tile(label, videos.get(clip, model, "tracks")) for model, label in labels.items()]
    if any(tile.video is None for tile in made):
        raise ValueError(f"the evaluation has no video of {clip.clip_id} by both models: `make eval` makes them")
    own = read_tracks(clip.track_file("tracks"))
    return [Tile(f"{clip.kind}, with the tracks", read_clip(clip)["frames"], own), *made]


def side_by_side(row: Sequence[Tile], most_width: int) -> np.ndarray:
    """Lays out tiles with videos of one size in a row, each label below its tile: T H W 3 uint8.

    Videos are enlarged by the largest whole number that keeps a tile within most_width pixels.
    """
    videos = [tile.video for tile in row if tile.video is not None]
    length, (h, w) = min(map(len, videos)), videos[0].shape[1:3]
    scale = max(1, most_width // w)
    height, width = scale * h, scale * w
    page = Image.new("RGB", (len(row) * (width + GAP_PX) - GAP_PX, height + LABEL_PX), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_PX)
    for i, tile in enumerate(row):
        middle = (i * (width + GAP_PX) + width / 2, height + LABEL_PX / 2)
        draw.text(middle, tile.label, INK, font, anchor="mm")
    out = np.repeat(np.asarray(page)[None], length, axis=0)
    for t in range(length):
        for i, tile in enumerate(row):
            x = i * (width + GAP_PX)
            out[t, :height, x : x + width] = drawn_frame(tile, t, height)
    return out


def _size(file: Path) -> str:
    with Image.open(file) as image:
        frames = getattr(image, "n_frames", 1)
    return f"{file}: {frames} frames, {file.stat().st_size / 1e6:.2f} MB"
