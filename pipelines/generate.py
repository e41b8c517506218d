"""python -m pipelines generate --image FILE (--motion NAME | --tracks FILE) [--prompt TEXT] [--seconds 10] [--seed 0]
--out FILE.mp4

The demo without a page: a clip of any length from one picture, steered by an authored motion or by tracks from a file.
Leaves FILE.mp4 with the tracks drawn over it, FILE-plain.mp4 without, and FILE.png, a strip.
"""

from __future__ import annotations

import argparse
import mimetypes
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msmodel.steering import Camera, Controls
from msmodel.steering import Path as DrawnPath
from stages.data.files import load_npz, write_png
from stages.data.pictures import contact_sheet
from stages.eval.epe import to_raster
from stages.eval.films import Film, Trails, enlarged

from .config import Config
from .demo.model_player import ModelPerformance, ModelPlayer, load_player
from .demo.player import About, Played, Start
from .demo.uploads import PICTURES, read_picture

STRIP = 8  # frames of it
DRAGGED = ((0.0, 0.0), (-0.05, 0.0), (0.05, 0.0), (0.0, -0.08), (0.0, 0.08))  # a drag's points about the first, shares
CAMERAS: dict[
    str, tuple[tuple[str, ...], tuple[float, ...]]
] = {  # motion -> fields of Camera, and what they are unless told
    "pan": (("pan_x", "pan_y"), (0.1, 0.0)),
    "zoom": (("zoom",), (0.25,)),
    "rotate": (("rotate",), (10.0,)),
    "orbit": (("orbit",), (10.0,)),
}
DRAG = (0.5, 0.5, 0.8, 0.5)
MOTIONS = (
    "pan[:X[,Y]] widths and heights a second, zoom[:DOUBLINGS a second], rotate[:DEGREES a second], "
    "orbit[:DEGREES a second], drag[:X0,Y0,X1,Y1] shares of the frame, still"
)


@dataclass(frozen=True)
class Job:
    """What is asked for. tracks: a file, or motion: one of MOTIONS."""

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
        """ValueError with all mistakes."""
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


def generate(cfg: Config, job: Job, say: Callable[[str], None] = print) -> list[Path]:
    """Writes the films and the strip: their paths. ValueError for what cannot be read or asked for, OSError for a full disk."""
    job.check()
    authored(job.motion or "still", 1.0)  # a mistake is said before a model is loaded
    player = load_player(cfg, say)
    frame, caption = first_frame(job.image, player, cfg.demo.max_megapixels)
    start = Start(frame, job.prompt or caption, job.seed)
    return film(player, start, job, say)


def film(player: ModelPlayer, start: Start, job: Job, say: Callable[[str], None]) -> list[Path]:
    out = Path(job.out).expanduser().resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    about, plain = player.about, out.with_name(f"{out.stem}-plain.mp4")
    wanted = max(1, round(job.seconds * about.fps))
    drawn, undrawn, trails = Film(out.parent, out.stem, about.fps), Film(out.parent, plain.stem, about.fps), Trails()
    strip: list[np.ndarray] = []
    at = set(np.linspace(0, wanted - 1, STRIP).round().astype(int).tolist())
    try:
        for first, frames, xy_px, visible in chunks(player, start, job, wanted, say):
            pictures = trails.draw(frames, xy_px, visible)
            drawn.push(pictures)
            undrawn.push(enlarged(frames))
            strip += [picture for t, picture in enumerate(pictures, first) if t in at]
        drawn.finish(out)
        undrawn.finish(plain)
    finally:
        drawn.discard()
        undrawn.discard()
    write_png(out.with_suffix(".png"), contact_sheet([np.stack(strip)], len(strip)))
    made = [out, plain, out.with_suffix(".png")]
    say("\n".join(str(path) for path in made))
    return made


def chunks(
    player: ModelPlayer, start: Start, job: Job, wanted: int, say: Callable[[str], None]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(first frame, frames, xy_px, visible) of every chunk; the last one is cut at `wanted` frames in all."""
    performance = player.open(start, record=False)
    controls = asked(performance, player.about, job)
    done, told, seconds = 0, 0, 0.0
    try:
        while done < wanted:
            played: Played = performance.next_chunk(controls)
            performance.settle()
            n = min(len(played.frames), wanted - done)
            yield done, played.frames[:n], played.xy_px[:n], played.visible[:n]
            done, seconds = done + n, seconds + played.seconds_dit + played.seconds_decode
            if done * 10 // wanted > told or done == wanted:
                told = done * 10 // wanted
                say(f"{done} of {wanted} frames, {done / seconds:.0f} a second")
    finally:
        performance.close()


def asked(performance: ModelPerformance, about: About, job: Job) -> Controls:
    """The controls that hold throughout."""
    if not job.tracks:
        return authored(job.motion, job.seconds)
    xy_px, visible = read_tracks(Path(job.tracks).expanduser(), (about.height, about.width), about.fps)
    performance.add_motion("file", xy_px, visible)
    return Controls(transfer="file")


def authored(motion: str, seconds: float) -> Controls:
    """Controls of one of MOTIONS. ValueError for any other."""
    name, _, text = motion.partition(":")
    if name == "still" and not text:
        return Controls(camera=Camera())
    if name == "drag":
        x0, y0, x1, y1 = amounts(motion, text, DRAG)
        members = np.array([[x0 + dx, y0 + dy] for dx, dy in DRAGGED], np.float32)
        return Controls(paths=(DrawnPath(1, members, np.array([[x0, y0], [x1, y1]], np.float32), seconds),))
    if name not in CAMERAS:
        raise ValueError(f"--motion: {motion!r} is none of {MOTIONS}")
    fields, defaults = CAMERAS[name]
    return Controls(camera=Camera(**dict(zip(fields, amounts(motion, text, defaults), strict=True))))


def amounts(motion: str, text: str, defaults: tuple[float, ...]) -> list[float]:
    """Numbers after the colon; those left out are the defaults."""
    try:
        given = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        given = [float("nan")]
    if len(given) > len(defaults) or not np.isfinite(given).all():
        raise ValueError(f"--motion: {motion!r} must have at most {len(defaults)} numbers: {MOTIONS}")
    return [*given, *defaults[len(given) :]]


def first_frame(image: str, player: ModelPlayer, megapixels: float) -> tuple[np.ndarray, str]:
    """H W 3 uint8 at clip size, centre-cropped, and a prompt for it ("" for a file). ValueError where it cannot be read."""
    known = {picture.id: picture for picture in player.pictures()}
    if image in known:
        return known[image].frame, known[image].prompt
    path = Path(image).expanduser()
    if not path.is_file():
        raise ValueError(f"--image: there is no file {path}, and no picture of that id: {', '.join(known)}")
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind not in PICTURES:
        raise ValueError(f"--image: {path} is no PNG, JPEG or WebP by its name")
    about = player.about
    return read_picture(path.read_bytes(), kind, about.height, about.width, megapixels).frame, ""


def read_tracks(path: Path, size: tuple[int, int], fps: float) -> tuple[np.ndarray, np.ndarray]:
    """xy_px T n 2, visible T n at the clip's size (height, width)."""
    try:
        arrays = load_npz(path)
        xy_px, visible, from_size = arrays["xy_px"], arrays["visible"].astype(bool), arrays["size"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"--tracks: {path} is no npz with xy_px, visible, fps and size ({error})") from None
    return to_raster(xy_px, (int(from_size[0]), int(from_size[1])), size), visible
