"""Stage REPLAY (once): generates a recorded session again from its files, and compares every chunk bit for bit.

Tracks are read from the recording, so input smoothing, camera and point tracker need not run again. EPE is measured on the new
frames, in windows of one horizon (as LONG_RUN does), so that memory does not grow with the recording.

Legend: T frames, n tracks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.contracts import Context, Resources, Stage, StageError
from stages.data.contact_sheets import contact_sheet
from stages.eval.config import ReplayRun
from stages.eval.epe import Tracker, TrackError, average, retrack
from stages.eval.items import Figures, folder_file
from stages.eval.measure import retracker
from stages.play.playing import Playable, load_playable, torch_threads
from stages.play.recordings import DRAWN, VIDEO, Recording, digest_of, read_asked, read_first, read_recording
from stages.play.video_writer import TrailPainter, VideoWriter, enlarged
from stages.records import Checkpoint

SHOWN = 6  # frames of the contact sheet


@dataclass(frozen=True)
class ReplayInputs:
    """Inputs of REPLAY. folder: of the recording; digest: of its files (replay_digest). tiny_vae: needed if it decoded the
    frames."""

    folder: str
    digest: str
    student: Checkpoint
    tiny_vae: Checkpoint | None = None


@dataclass(frozen=True)
class Piece:
    """Holds one replayed chunk. wanted: the recorded digest of its frames. seconds: for generating and decoding."""

    index: int
    wanted: str
    frames: np.ndarray
    xy_px: np.ndarray
    visible: np.ndarray
    seconds: float


def run(cfg: ReplayRun, inputs: ReplayInputs, ctx: Context) -> Figures:
    """Writes replay.json, video.mp4 and drawn.mp4. Raises StageError if the recording is from other weights, or damaged."""
    folder = Path(inputs.folder)
    recording = read_recording(folder)
    check_weights(recording, inputs)
    with torch_threads(recording.threads):
        playable = load_playable(
            inputs.student, inputs.tiny_vae, recording.decoder, recording.points, ctx.device, ctx.dtype
        )
        out = compared(cfg, recording, played(playable, recording, folder), ctx)
    out |= about(recording, ctx)
    if not out["identical"]:
        ctx.log(
            f"replay: chunk {out['first_difference']} is the first of {out['chunks']} that differs" + elsewhere(out)
        )
    else:
        ctx.log(f"replay: all {out['chunks']} chunks are identical, bit for bit")
    ctx.emit(0, {name: float(out[name]) for name in ("identical", "fps", "frames") if out[name] is not None})
    if out["epe"]["epe"] is not None:
        ctx.emit(0, {"epe": out["epe"]["epe"]})
    file = folder_file(ctx.workdir, "replay.json")
    Path(file).write_text(json.dumps(out, indent=1))
    for path in (Path(file), ctx.workdir / VIDEO, ctx.workdir / DRAWN):
        ctx.artifact(path, "replay")
    return Figures("replay", file, str(ctx.workdir / DRAWN))


def check_weights(recording: Recording, inputs: ReplayInputs) -> None:
    """Raises StageError if the recording was made with other weights: its frames would differ without meaning."""
    if inputs.student.digest != recording.digest:
        raise StageError(
            f"the recording {recording.id} was played by the student {recording.student} ({recording.digest[:12]}), "
            f"and this is {inputs.student.folder} ({inputs.student.digest[:12]})"
        )
    tiny = inputs.tiny_vae.digest if inputs.tiny_vae else "none"
    if recording.decoder == "tiny" and tiny != recording.decoder_digest:
        raise StageError(
            f"the recording {recording.id} was decoded by the tiny VAE {recording.decoder_digest[:12]}, "
            f"and this run's is {tiny[:12]}"
        )


def played(playable: Playable, recording: Recording, folder: Path) -> Iterator[Piece]:
    """Yields the replayed chunks; prompts and sink refreshes come before the same chunks as in the recording."""
    xy_px, visible = read_asked(folder, recording)
    asked = torch.from_numpy(xy_px), torch.from_numpy(visible)
    prompts, refreshes = dict(recording.prompts), set(recording.refreshes)

    def controls(index: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        return asked[0][first : first + count], asked[1][first : first + count]

    session = playable.open(read_first(folder, recording), recording.prompt, recording.seed, controls)
    first = 0
    for index, wanted in enumerate(recording.frames_sha256):
        if index and index in prompts:
            session.set_text(playable.text(prompts[index]))
        if index in refreshes:
            session.refresh_sink()
        began = time.perf_counter()
        frames = session.next_chunk().frames.numpy()
        session.settle()
        here = slice(first, first + len(frames))
        yield Piece(index, wanted, frames, xy_px[here], visible[here], time.perf_counter() - began)
        first += len(frames)


def compared(cfg: ReplayRun, recording: Recording, pieces: Iterator[Piece], ctx: Context) -> dict[str, Any]:
    """Writes the videos; returns identical, first_difference (a chunk or None), chunks, frames, fps and epe."""
    writers = {name: VideoWriter(ctx.workdir, Path(name).stem, recording.fps) for name in (VIDEO, DRAWN)}
    trails, windows = TrailPainter(), Windows(cfg, retracker(cfg.measure, recording.height, ctx))
    every = max(1, (recording.frames - 1) // (SHOWN - 1))
    differ, seconds, count = [], 0.0, 0
    shown: list[np.ndarray] = []
    try:
        with ctx.progress("replay", len(recording.lengths)) as progress:
            for piece in pieces:
                drawn = trails.draw(piece.frames, piece.xy_px, piece.visible)
                writers[VIDEO].push(enlarged(piece.frames))
                writers[DRAWN].push(drawn)
                shown += [frame for t, frame in enumerate(drawn, count) if t % every == 0]
                windows.add(piece)
                if digest_of(piece.frames) != piece.wanted:
                    differ.append(piece.index)
                seconds, count = seconds + piece.seconds, count + len(piece.frames)
                progress.advance()
        for name, writer in writers.items():
            writer.finish(ctx.workdir / name)
    finally:
        for writer in writers.values():
            writer.discard()
    ctx.image("replay", contact_sheet([np.stack(shown)], min(SHOWN, len(shown))))
    return {
        "identical": not differ,
        "first_difference": differ[0] if differ else None,
        "chunks": len(recording.lengths),
        "frames": count,
        "fps": count / seconds,
        "epe": windows.figures(),
    }


class Windows:
    """Measures EPE over windows of one horizon, each tracked again from the points that are visible at its start."""

    def __init__(self, cfg: ReplayRun, tracker: Tracker) -> None:
        self._cfg, self._tracker = cfg, tracker
        self._held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._errors: list[TrackError] = []

    def add(self, piece: Piece) -> None:
        self._held.append((piece.frames, piece.xy_px, piece.visible))
        if sum(len(frames) for frames, _, _ in self._held) >= self._cfg.model.clip.frames:
            self._measure()

    def figures(self) -> dict[str, Any]:
        """Returns the fields of TrackError, as means over the windows (None if nothing was visible), and their number."""
        if sum(len(frames) for frames, _, _ in self._held) > 1:
            self._measure()
        mean = asdict(average(self._errors)) if self._errors else {"epe": float("nan")}
        return {name: value if np.isfinite(value) else None for name, value in mean.items()} | {
            "windows": len(self._errors)
        }

    def _measure(self) -> None:
        frames, xy_px, visible = (np.concatenate(part) for part in zip(*self._held, strict=True))
        m, self._held = self._cfg.measure, []
        self._errors.append(retrack(frames, xy_px, visible, m.raster, self._tracker, m.moving_px))


def about(recording: Recording, ctx: Context) -> dict[str, Any]:
    here = torch.cuda.get_device_name(ctx.device) if ctx.device.type == "cuda" else "cpu"
    return {
        "recording": recording.id,
        "title": recording.title,
        "student": recording.student,
        "digest": recording.digest,
        "threads": recording.threads,
        "recorded_on": {"device": recording.device, "torch": recording.torch, "git_sha": recording.git_sha},
        "played_on": {"device": here, "torch": torch.__version__},
    }


def elsewhere(out: dict[str, Any]) -> str:
    """Returns what differs between the machines, which may explain other frames; "" if nothing."""
    then, now = out["recorded_on"], out["played_on"]
    other = [f"{name} {then[name]}, now {now[name]}" for name in now if then[name] != now[name]]
    return f" (recorded on {'; '.join(other)})" if other else ""


REPLAY = Stage("eval_replay", version=1, how="once", run=run, resources=Resources(cpus=2, threads=2))
