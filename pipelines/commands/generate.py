"""motionstream generate --image FILE (--motion NAME | --tracks FILE) [--out FILE.mp4]: makes a video without the demo's
page.

The video has any length, starts from one picture, and is steered by an authored motion or by tracks from a file. The
command writes FILE.mp4 with the tracks drawn over the video, FILE-plain.mp4 without them, and the contact sheet
FILE-strip.png.
"""

from __future__ import annotations

import argparse
import mimetypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.settings import Config
from demo.playing.model_player import ModelPlayer, load_player
from demo.playing.player import About, PlayedChunk, Start
from demo.server.uploads import PICTURES, CroppedPicture, read_picture
from msmodel.steering.authored import KINDS, Authored, authored
from msmodel.steering.steering import Controls
from pipelines.commands.options import OK, add_settings, configured
from pipelines.commands.tracks import read_file
from stages.data.contact_sheets import contact_sheet
from stages.data.files import write_png
from stages.play.video_writer import TrailPainter, VideoWriter, enlarged

STRIP = 8  # frames of the contact sheet
MOTION = "asked for"  # name of the motion in the stream
MOST_NUMBERS = {"pan": 2, "zoom": 1, "orbit": 1, "drag": 4}
MOTIONS = (
    "pan[:X[,Y]] frame widths and heights a second, zoom[:DOUBLINGS a second], orbit[:DEGREES a second], "
    "drag[:X0,Y0,X1,Y1] shares of the frame"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", default="", help="first frame: a PNG, JPEG or WebP, or the id of one of the demo's pictures"
    )
    parser.add_argument("--motion", default="", help=MOTIONS)
    parser.add_argument(
        "--tracks", default="", help="tracks in place of a motion: .npz, ATI's .pth, Wan-Move's .npy,.npy"
    )
    parser.add_argument("--prompt", default="", help="text (default: the picture's own, if it has one)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the video (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--out", default="out.mp4", metavar="FILE", help="the video (default: out.mp4)")
    add_settings(parser)


def execute(options: argparse.Namespace) -> int:
    generate(configured(options), Job.of(options))
    return OK


@dataclass(frozen=True)
class Job:
    """The options of one video. Either tracks (a file) or motion (one of MOTIONS) is given."""

    image: str
    motion: str
    tracks: str
    prompt: str
    seconds: float
    seed: int
    out: str

    @classmethod
    def of(cls, options: argparse.Namespace) -> Job:
        o = options
        return cls(o.image, o.motion, o.tracks, o.prompt, o.seconds, o.seed, o.out)

    def check(self) -> None:
        """Raises ValueError that lists all mistakes in the options."""
        wrong = []
        if not self.image:
            wrong.append("--image: name a PNG, JPEG or WebP, or the id of one of the demo's pictures")
        if bool(self.motion) == bool(self.tracks):
            wrong.append(f"--motion or --tracks: give one of them. Motions: {MOTIONS}")
        if not 0 < self.seconds <= 3600:
            wrong.append(f"--seconds: {self.seconds:g} must be above 0, and at most 3600")
        if not 0 <= self.seed < 2**31:
            wrong.append(f"--seed: {self.seed} must be 0 to 2147483647")
        if not self.out.endswith(".mp4"):
            wrong.append(f"--out: {self.out!r} must end in .mp4")
        if wrong:
            raise ValueError("generate:" + "".join(f"\n  {line}" for line in wrong))


def generate(cfg: Config, job: Job, log: Callable[[str], None] = print) -> list[Path]:
    """Writes the videos and the contact sheet, and returns their paths.

    Raises ValueError for a wrong input or setting, and OSError for a full disk.
    """
    job.check()
    if job.motion:
        motion_of(job.motion)  # reports a mistake before a model is loaded
    player = load_player(cfg, log)
    about = player.about
    frames = max(1, round(job.seconds * about.fps))
    cut, caption = first_frame(job.image, player, cfg.demo.max_megapixels)
    motion = asked_tracks(job, about, player.playable.points, cut, frames)
    return write_videos(player, Start(cut.frame, job.prompt or caption, job.seed), motion, frames, Path(job.out), log)


def write_videos(
    player: ModelPlayer,
    start: Start,
    motion: tuple[np.ndarray, np.ndarray],
    wanted: int,
    out: Path,
    log: Callable[[str], None],
) -> list[Path]:
    """Writes two videos, with and without the tracks drawn, and a contact sheet, and returns their paths.

    motion: (xy_px T n 2, visible T n); tracks shorter than the video are repeated forward and backward. wanted: the
    number of frames of the video.
    """
    out = out.expanduser().resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    about, plain = player.about, out.with_name(f"{out.stem}-plain.mp4")
    drawn, undrawn = (VideoWriter(out.parent, stem, about.fps) for stem in (out.stem, plain.stem))
    trails = TrailPainter()
    strip: list[np.ndarray] = []
    at = set(np.linspace(0, wanted - 1, STRIP).round().astype(int).tolist())
    try:
        for first, frames, xy_px, visible in chunks(player, start, motion, wanted, log):
            pictures = trails.draw(frames, xy_px, visible)
            drawn.push(pictures)
            undrawn.push(enlarged(frames))
            strip += [picture for t, picture in enumerate(pictures, first) if t in at]
        drawn.finish(out)
        undrawn.finish(plain)
    finally:
        drawn.discard()
        undrawn.discard()
    sheet = out.with_name(f"{out.stem}-strip.png")  # not FILE.png, which may be the picture
    write_png(sheet, contact_sheet([np.stack(strip)], len(strip)))
    made = [out, plain, sheet]
    log("\n".join(str(path) for path in made))
    return made


def chunks(
    player: ModelPlayer,
    start: Start,
    motion: tuple[np.ndarray, np.ndarray],
    wanted: int,
    log: Callable[[str], None],
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (index of the first frame, frames, xy_px, visible) of every chunk; the last chunk is cut so that there are
    `wanted` frames in all."""
    performance = player.open(start, record=False)
    performance.add_motion(MOTION, *motion)
    controls = Controls(transfer=MOTION)
    done, told, seconds = 0, 0, 0.0
    try:
        while done < wanted:
            played: PlayedChunk = performance.next_chunk(controls)
            performance.settle()
            n = min(len(played.frames), wanted - done)
            yield done, played.frames[:n], played.xy_px[:n], played.visible[:n]
            done, seconds = done + n, seconds + played.seconds_dit + played.seconds_decode
            if done * 10 // wanted > told or done == wanted:
                told = done * 10 // wanted
                log(f"{done} of {wanted} frames, {done / seconds:.0f} a second")
    finally:
        performance.close()


def asked_tracks(
    job: Job, about: About, points: int, cut: CroppedPicture, frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (xy_px T n 2, visible T n) of the authored motion or of the file. Tracks of a file that has the picture's
    uncropped size are cropped like the picture."""
    size = (about.height, about.width)
    if not job.tracks:
        kind, how = motion_of(job.motion)
        return authored(kind, size, frames, about.fps, about.grid, points, how)
    left, top, right, bottom = cut.crop
    found = read_file(job.tracks, (cut.height, cut.width))
    if found.size == (cut.height, cut.width):
        shifted = found.xy_px - np.array([left, top], np.float32)
        found = replace(found, xy_px=shifted, size=(bottom - top, right - left))
    found = found.fitted(size, about.fps)
    return found.xy_px, found.visible


def motion_of(text: str) -> tuple[str, Authored]:
    """Returns the kind of a motion, and its parameters with the given numbers in place of the defaults. Raises
    ValueError for text that is none of MOTIONS."""
    kind, _, numbers = text.partition(":")
    try:
        given = [float(part) for part in numbers.split(",")] if numbers else []
    except ValueError:
        given = [float("nan")]
    if kind not in KINDS or len(given) > MOST_NUMBERS[kind] or not np.isfinite(given).all():
        raise ValueError(f"--motion: {text!r} is none of {MOTIONS}")
    how = Authored()
    if kind == "pan":
        x, y = [*given, *how.pan[len(given) :]]
        return kind, replace(how, pan=(x, y))
    if kind == "drag":
        x0, y0, x1, y1 = [*given, *(*how.start, *how.end)[len(given) :]]
        return kind, replace(how, start=(x0, y0), end=(x1, y1))
    if not given:
        return kind, how
    return kind, replace(how, zoom=given[0]) if kind == "zoom" else replace(how, orbit=given[0])


def first_frame(image: str, player: ModelPlayer, megapixels: float) -> tuple[CroppedPicture, str]:
    """Returns the picture, centre-cropped and resized to clip size, and a prompt for it ("" for a file). Raises
    ValueError where it cannot be read."""
    known = {picture.id: picture for picture in player.pictures()}
    if image in known:
        height, width = known[image].frame.shape[:2]
        return CroppedPicture(known[image].frame, width, height, (0, 0, width, height)), known[image].prompt
    path = Path(image).expanduser()
    if not path.is_file():
        raise ValueError(f"--image: there is no file {path}, and no picture of that id: {', '.join(known)}")
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind not in PICTURES:
        raise ValueError(f"--image: {path} is no PNG, JPEG or WebP by its name")
    about = player.about
    return read_picture(path.read_bytes(), kind, about.height, about.width, megapixels), ""
