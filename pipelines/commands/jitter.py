"""motionstream jitter: measures the effect of input smoothing and the speed limit on a drag with jitter.

Prints figures of the tracks over 20 scripted drags with tremor. With --student it also plays a drag and prints figures
of the video: the distance of the dragged points, tracked in the video, from their intended positions. With --out it
writes a contact sheet.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.settings import Config
from demo.playing.model_player import ModelPlayer, load_player
from demo.playing.player import Start
from msmodel.points import uniform_grid
from msmodel.steering.controls import InputSmoothing
from msmodel.steering.steering import Steering
from msmodel.tracks import px_to_shares, shares_to_px
from pipelines.commands.options import OK, add_settings, configured
from stages.data.contact_sheets import contact_sheet
from stages.data.files import write_png
from stages.eval.epe import retrack
from stages.play.jitter import INTENDED, RAW, SMOOTHED, Jitter, Script, figures, streamed, target
from stages.play.video_writer import TrailPainter
from stages.trackers import make_tracker

SEEDS = 20
HANDS: dict[str, tuple[InputSmoothing, bool]] = {
    "raw": (RAW, False),
    "chunks only": (SMOOTHED, False),
    "treated": (SMOOTHED, True),
}
UNTIL = 2.4  # seconds of the script until the pointer leaves the frame: the part that can be tracked


def of_tracks(cfg: Config, jitter: Jitter) -> dict[str, dict[str, float]]:
    """Returns {smoothing: mean figures over SEEDS drags} for each entry of HANDS (stages.play.jitter.figures)."""
    clip, grid = cfg.model.clip, (cfg.data.grid_rows, cfg.data.grid_cols)
    size, member = (clip.height, clip.width), INTENDED[:1, 1:]
    chunk = cfg.model.student.chunk * cfg.model.vae.stride_t
    chunks = (chunk - cfg.model.vae.stride_t + 1, chunk)
    out = {}
    for name, (hand, steadied) in HANDS.items():
        each = []
        for seed in range(SEEDS):
            script = Script(hand, steadied, member, jitter, size[0] / size[1], seed)
            steering = Steering(size, clip.fps, hand, 2 * grid[0] * grid[1], grid)
            xy_px, _ = streamed(steering, script, clip.fps, chunks)
            each.append(figures(xy_px[:, 0], size, clip.fps))
        out[name] = {key: float(np.mean([f[key] for f in each])) for key in each[0]}
    return out


def of_video(
    player: ModelPlayer,
    cfg: Config,
    picture: str,
    members: np.ndarray,
    jitter: Jitter,
    hand: InputSmoothing,
    steadied: bool,
) -> tuple[dict[str, float], np.ndarray]:
    """Plays one drag with jitter on the student, and returns its figures and the frames with the tracks drawn over
    them.

    to_asked and to_meant are the mean distances, in percent of the frame's width, from the dragged points, tracked in
    the video, to the requested positions and to the intended ones at the best-fitting lag.
    """
    known = {p.id: p for p in player.pictures()}
    if picture not in known:
        raise ValueError(f"--picture: no picture {picture!r}; there are {', '.join(known)}")
    about, frame = player.about, known[picture]
    script = Script(hand, steadied, members, jitter, about.height / about.width, 0)
    performance = player.open(Start(frame.frame, frame.prompt, 0, hand), record=False)
    made: list[Any] = []
    while sum(len(p.frames) for p in made) / about.fps < INTENDED[-1, 0]:
        made.append(performance.next_chunk(script.controls(sum(len(p.frames) for p in made) / about.fps)))
        performance.settle()
    performance.close()
    frames, size = np.concatenate([p.frames for p in made]), (about.height, about.width)
    n, end = len(members), int(UNTIL * about.fps)
    asked = np.concatenate([p.xy_px for p in made])[:, :n]
    seen = np.concatenate([p.visible for p in made])[:, :n]
    of_asked = figures(asked.mean(axis=1) + shares_to_px(INTENDED[0, 1:] - members.mean(axis=0), size), size, about.fps)
    wanted = shares_to_px(target(members, end, about.fps, of_asked["lag_ms"] / 1000), size).astype(np.float32)
    raster, measure = cfg.eval.measure.raster, cfg.eval.measure
    scale = measure.raster_height / about.height
    tracker = make_tracker(replace(measure.tracker, max_back_px=measure.tracker.max_back_px * scale))

    def follow(frames: np.ndarray, queries_xy_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = tracker.track(frames, queries_xy_px)
        return found.xy_px, found.visible

    out: dict[str, float] = {}
    for name, xy in (("asked", asked[:end]), ("meant", wanted)):
        error = retrack(frames[:end], xy, seen[:end], raster, follow, measure.moving_px)
        out |= {f"to_{name}": 100 * error.epe / raster[1], f"seen_{name}": error.seen}
        out[f"frozen_{name}"] = 100 * error.frozen / raster[1]
    return {**out, **{f"tracks_{k}": v for k, v in of_asked.items()}}, TrailPainter().draw(frames, asked, seen)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--student", action="store_true", help="also play it with the student")
    parser.add_argument("--picture", default="", metavar="ID", help="one of the demo's pictures (default: the first)")
    parser.add_argument("--at", default="0.5,0.5", metavar="X,Y", help="centre of what is dragged, shares of the frame")
    parser.add_argument("--radius", type=float, default=0.12, help="radius of what is dragged, frame widths")
    parser.add_argument("--out", default="", metavar="FOLDER", help="where to write the contact sheets")
    add_settings(parser)


def execute(options: argparse.Namespace) -> int:
    cfg, jitter = configured(options), Jitter()
    report: dict[str, Any] = {"jitter": asdict(jitter), "tracks": of_tracks(cfg, jitter)}
    if options.student:
        report["video"] = played(cfg, options, jitter)
    print(json.dumps(report, indent=1))
    return OK


def played(cfg: Config, options: argparse.Namespace, jitter: Jitter) -> dict[str, dict[str, float]]:
    """Plays the drag with each entry of HANDS and returns {smoothing: figures of the video}. Writes OUT/jitter.png."""
    player = load_player(cfg, lambda words: print(words, file=sys.stderr))
    about, at = player.about, np.array([float(x) for x in options.at.split(",")])
    places = px_to_shares(uniform_grid(about.height, about.width, *about.grid), (about.height, about.width))
    away = (places - at) * [1.0, about.height / about.width]
    members = places[np.linalg.norm(away, axis=-1) <= options.radius]
    out, sheets = {}, []
    for name in HANDS:
        picture = options.picture or player.pictures()[0].id
        out[name], sheet = of_video(player, cfg, picture, members, jitter, *HANDS[name])
        sheets.append(sheet)
    if options.out:
        Path(options.out).mkdir(parents=True, exist_ok=True)
        write_png(Path(options.out) / "jitter.png", contact_sheet(sheets, 12))
    return out
