"""Stage REPORT (once): writes report.json for scripts and one self-contained report.html for readers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.contracts import Context, Stage
from stages.data.contact_sheets import data_uri, png
from stages.eval.config import ReportRun
from stages.eval.counterfactual import KINDS
from stages.eval.items import CLIP_KINDS, EvalClip, Generated, read_clip, read_tracks, read_videos
from stages.eval.paper import ROWS, differences, findings
from stages.eval.plots import drift_plot, epe_bars, latency_plot
from stages.eval.summary import ReportInputs, build, read_json, shown_clips, version
from stages.eval.videos import Tile, mosaic, mp4
from stages.records import Report

OVERVIEW_COLUMNS = 6  # frames of a row of the contact sheet
TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Shown:
    """A video of the page, as data URIs. poster: its middle frame."""

    title: str
    note: str
    video: str
    poster: str


def run(cfg: ReportRun, inputs: ReportInputs, ctx: Context) -> Report:
    """Writes report.json, report.html and overview.png to ctx.workdir.

    The reports, their pictures and their main figures also go to the tracker.
    """
    report = build(cfg, inputs, ctx.seed) | {"version": version(ctx.workdir)}
    ctx.workdir.mkdir(parents=True, exist_ok=True)
    json_file, html_file = ctx.workdir / "report.json", ctx.workdir / "report.html"
    json_file.write_text(json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False))
    videos = clip_videos(cfg, inputs, ctx) + long_videos(cfg, inputs, ctx)
    html_file.write_text(page(cfg, inputs, report, videos))
    sheet = overview(cfg, inputs)
    picture_file = ctx.workdir / "overview.png"
    picture_file.write_bytes(png(sheet))
    ctx.image("eval/overview", sheet)
    for file in (json_file, html_file):
        ctx.artifact(file, "report")
    ctx.emit(0, flat(report))
    return Report(str(ctx.workdir), str(json_file), str(html_file), str(picture_file))


def flat(report: Mapping[str, Any]) -> dict[str, float]:
    """Returns the main figures under slash names, for the tracker."""
    out: dict[str, float] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key not in ("details", "drift", "reference"):
                    walk(inner, f"{name}/{key}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out[name] = float(value)

    for part in (*CLIP_KINDS, "long_run"):
        walk(report[part], part)
    return out


class Videos:
    """Generated videos by clip, model and variant. Each file is read once."""

    def __init__(self, generated: Sequence[Generated]) -> None:
        self.found = {
            (clip.clip_id, g.item.model, g.item.variant): (g.file, i)
            for g in generated
            for i, clip in enumerate(g.item.clips)
        }
        self.read: dict[str, np.ndarray] = {}

    def get(self, clip: EvalClip, model: str, variant: str) -> np.ndarray | None:
        """Returns a video, T h w 3 uint8, or None if it was not generated."""
        if (clip.clip_id, model, variant) not in self.found:
            return None
        file, i = self.found[clip.clip_id, model, variant]
        if file not in self.read:
            self.read[file] = read_videos(file)
        return self.read[file][i]


def clip_rows(clip: EvalClip, videos: Videos) -> list[list[Tile]]:
    """Returns the rows of tiles of one clip.

    The first row is the clip with its tracks, and both models with and without tracks. Then each model has a row of
    counterfactuals.
    """
    own = read_tracks(clip.track_file("tracks"))
    rows = [
        [
            Tile("real, asked tracks", read_clip(clip)["frames"], own),
            Tile("teacher", videos.get(clip, "teacher", "tracks")),
            Tile("teacher, no tracks", videos.get(clip, "teacher", "no_tracks")),
            Tile("student", videos.get(clip, "student", "tracks")),
            Tile("student, no tracks", videos.get(clip, "student", "no_tracks")),
        ]
    ]
    asked = dict(clip.tracks)
    for model in ("teacher", "student"):
        row = []
        for name in KINDS:
            video = videos.get(clip, model, name)
            if video is not None:
                row.append(Tile(f"{model}: {name.replace('_', ' ')}", video, read_tracks(asked[name])))
        if row:
            rows.append(row)
    return rows


def overview(cfg: ReportRun, inputs: ReportInputs) -> np.ndarray:
    """Returns a contact sheet, H W 3 uint8, of the first clip of each kind.

    It shows the real clip with the given tracks, and both models with and without tracks.
    """
    videos = Videos(inputs.generated)
    clips = shown_clips(inputs.selection.clips, 1)
    tiles = [[tile] for clip in clips for tile in clip_rows(clip, videos)[0]]
    columns = mosaic(tiles, cfg.eval.report.video_height // 2)
    picked = np.linspace(0, len(columns) - 1, OVERVIEW_COLUMNS).round().astype(int)
    return np.concatenate(list(columns[picked]), axis=1)


def clip_videos(cfg: ReportRun, inputs: ReportInputs, ctx: Context) -> list[Shown]:
    """Returns the videos of the first clips of each kind, and sends them to the tracker."""
    videos, out = Videos(inputs.generated), []
    for clip in shown_clips(inputs.selection.clips, cfg.eval.report.show_clips):
        picture = mosaic(clip_rows(clip, videos), cfg.eval.report.video_height)
        ctx.image(f"eval/{clip.kind}/{clip.clip_id}", picture[len(picture) // 2])
        note = f"{clip.kind}, {clip.source}" + (f", {clip.recipe}" if clip.recipe else "")
        encoded = kept_mp4(clip.clip_id, picture, cfg.model.clip.fps, ctx)
        out.append(shown(f"{clip.clip_id}: {clip.caption}", note, picture, encoded))
    return out


def long_videos(cfg: ReportRun, inputs: ReportInputs, ctx: Context) -> list[Shown]:
    """Returns the video of the long runs next to the real clip played back and forth."""
    if inputs.long_run is None or not inputs.long_run.videos or not cfg.eval.report.show_clips:
        return []
    with np.load(inputs.long_run.videos) as data:
        tiles = [Tile("real, back and forth" if name == "real" else name, data[name]) for name in data.files]
    picture = mosaic([tiles], cfg.eval.report.video_height)
    ctx.image("eval/long_run", picture[-1])
    seconds = len(picture) / cfg.model.clip.fps
    note = f"{len(picture)} frames, {seconds:.1f} s: {cfg.eval.long_run.horizons} times the training horizon"
    return [shown("Long run", note, picture, kept_mp4("long_run", picture, cfg.model.clip.fps, ctx))]


def kept_mp4(name: str, picture: np.ndarray, fps: float, ctx: Context) -> bytes:
    """Returns the video (T H W 3 uint8) as mp4. It is also written to ctx.workdir/clips and sent to the tracker."""
    encoded, file = mp4(picture, fps), ctx.workdir / "clips" / f"{name}.mp4"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(encoded)
    ctx.artifact(file, "clips")
    return encoded


def shown(title: str, note: str, picture: np.ndarray, encoded: bytes) -> Shown:
    poster = data_uri(png(picture[len(picture) // 2]), "image/png")
    return Shown(title, note, data_uri(encoded, "video/mp4"), poster)


def page(cfg: ReportRun, inputs: ReportInputs, report: Mapping[str, Any], videos: list[Shown]) -> str:
    """Returns the HTML page. It fetches nothing from elsewhere."""
    from jinja2 import Environment

    long_run = read_json(inputs.long_run)
    plots = {"epe": epe_bars(report, [k for k in CLIP_KINDS if report[k]["clips"]] or list(CLIP_KINDS))}
    if long_run:
        slope, ci = long_run["latency_slope_pct_per_100_chunks"], long_run["latency_slope_ci"]
        plots["latency"] = latency_plot(long_run["chunk_seconds"], long_run["chunk_seconds_alongside"], slope, ci)
        plots["drift"] = drift_plot(report["long_run"])
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": figure, "words": words}
    return environment.from_string(TEMPLATE.read_text()).render(
        r=report,
        cfg=cfg,
        kinds=CLIP_KINDS,
        counterfactuals=KINDS,
        plots={name: data_uri(content, "image/png") for name, content in plots.items()},
        videos=[v for v in videos if v.title != "Long run"],
        long_videos=[v for v in videos if v.title == "Long run"],
        findings=findings(report),
        paper=ROWS,
        differences=differences(cfg.model, cfg.eval, report["provenance"]["speed"]),
        provenance=json.dumps(report["provenance"], indent=1, ensure_ascii=False),
    )


def figure(value: float | None, digits: int = 2) -> str:
    """Returns a number for a table, or a dash if it is null (the reasons are listed at the end of the page)."""
    if value is None:
        return "–"
    return f"{value:,.{digits}f}"


def words(name: str) -> str:
    return name.replace("_", " ")


REPORT = Stage("eval_report", version=4, how="once", run=run)
