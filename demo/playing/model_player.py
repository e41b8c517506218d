"""Plays a student for the demo: a stream that follows the controls and is recorded meanwhile."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.settings import Config
from demo.playing import pictures
from demo.playing.player import About, Picture, PlayedChunk, Start
from demo.playing.recorder import Recorder, clear_abandoned, recording_file
from demo.playing.student import ChosenStudent, choose
from infra.context import free_device
from infra.files import git_sha
from msmodel.io.weights import inference_dtype
from msmodel.steering.steering import WEBCAM, Controls, Steering
from msmodel.tracks import ID_RANGE
from stages.play.live import LiveTracker
from stages.play.playing import Playable, load_playable
from stages.play.recordings import FORMAT, Recording, digest_of, found
from stages.play.transfer import TransferLimits, motion_of_clip
from stages.trackers import TrackerConfig, shared_tracker

log = logging.getLogger(__name__)

WARM_UP_CHUNKS = 3  # one of each kind: the first, one with a sink, one with a sink and a window
SLOTS_PER_CELL = 2  # tracks of a stream for each cell of the grid; camera motion needs one and a half


@dataclass(frozen=True)
class PlayerSetup:
    """What a player needs besides the model: the provenance of its recordings, their folder (root) and longest duration
    (minutes), and the tracker for clips and webcams."""

    preset: str
    student: str
    decoder_digest: str
    git_sha: str
    root: Path
    minutes: float
    tracker: TrackerConfig


class ModelPlayer:
    """A loaded student (demo.playing.player.Player)."""

    def __init__(self, playable: Playable, about: About, setup: PlayerSetup, pictures: Sequence[Picture]) -> None:
        self.about, self.playable, self.setup, self._pictures = about, playable, setup, list(pictures)
        self._warned: set[str] = set()

    def pictures(self) -> Sequence[Picture]:
        return self._pictures

    def warm_up(self) -> None:
        """Plays a few chunks, so that the first frame of the first stream comes as soon as that of any other."""
        performance = self.open(Start(np.zeros((self.about.height, self.about.width, 3), np.uint8)), record=False)
        for _ in range(WARM_UP_CHUNKS):
            performance.next_chunk(Controls())
            performance.settle()
        performance.close()

    def open(self, start: Start, record: bool = True) -> ModelPerformance:
        """Starts a stream. record: False where it will not be saved. Raises ValueError for a frame of another size or an
        invalid
        smoothing."""
        return ModelPerformance(self, start, record)

    def motion_of(self, clip: bytes) -> tuple[np.ndarray, np.ndarray]:
        about, model = self.about, self.playable.student.cfg
        tracker = shared_tracker(self.setup.tracker, str(self.playable.device))
        with tempfile.NamedTemporaryFile(prefix="motion-") as file:
            file.write(clip)
            file.flush()
            return motion_of_clip(file.name, model.clip, about.grid, tracker, TransferLimits())

    def recordings(self) -> Sequence[dict[str, Any]]:
        root = self.setup.root
        return [
            recording.summary() | {"folder": str(root / recording.id)} for recording in found(root, self._warn_once)
        ]

    def _warn_once(self, line: str) -> None:
        """Logs a warning once, although the gallery asks again and again."""
        if line not in self._warned:
            log.warning(line)
        self._warned.add(line)

    def recording_file(self, id: str, name: str) -> Path:
        return recording_file(self.setup.root, id, name)


class ModelPerformance:
    """One stream (demo.playing.player.Performance)."""

    def __init__(self, player: ModelPlayer, start: Start, record: bool) -> None:
        about, self._player, self._start, self._record = player.about, player, start, record
        size = (about.height, about.width)
        self._steering = Steering(size, about.fps, start.smoothing, player.playable.points, about.grid, start.depth)
        self._live: LiveTracker | None = None
        self._controls = Controls()
        self._asked = (np.zeros((0, 0, 2), np.float32), np.zeros((0, 0), bool))
        self._prompt = start.prompt
        self._session = player.playable.open(start.frame, start.prompt, start.seed, self._steer)
        self._recorder = self._new_recorder()
        self._notice_sent = ""

    def next_chunk(self, controls: Controls) -> PlayedChunk:
        """Makes the next chunk. Raises ValueError for more points than tracks, or for a motion that was not added; the
        stream can
        go on afterwards."""
        if controls.transfer == WEBCAM != self._controls.transfer:
            self._reset_live()
        self._controls = controls
        chunk = self._session.next_chunk(concurrently=True)
        notice = self._recorder.ended if self._recorder and self._recorder.ended != self._notice_sent else ""
        self._notice_sent = self._notice_sent or notice
        frames = chunk.frames.numpy()
        played = PlayedChunk(
            chunk.index, controls.revision, frames, *self._asked, chunk.seconds_dit, chunk.seconds_decode, notice
        )
        if self._recorder:
            self._recorder.add(played)
        return played

    def settle(self) -> None:
        self._session.settle()

    def set_prompt(self, prompt: str) -> None:
        self._session.set_text(self._player.playable.text(prompt))
        self._prompt = prompt
        if self._recorder:
            self._recorder.prompt(self._session.index, prompt)

    def refresh_sink(self) -> None:
        self._session.refresh_sink()
        if self._recorder:
            self._recorder.refreshed(self._session.index)

    def reset(self) -> None:
        """Goes back to chunk 0. The current prompt stays."""
        self._session.reset()
        self._steering.reset()
        self._reset_live()
        if self._recorder:
            self._recorder.close()
        self._recorder, self._notice_sent = self._new_recorder(), ""

    def add_motion(self, name: str, xy_px: np.ndarray, visible: np.ndarray) -> None:
        self._steering.add_motion(name, xy_px, visible)

    def add_webcam_frame(self, frame: np.ndarray) -> None:
        if self._live is None:
            clip = self._player.playable.student.cfg.clip
            self._live = LiveTracker(clip, self._player.about.grid, self._player.setup.tracker)
        self._steering.see(*self._live.add_frame(frame))

    def save(self, title: str) -> Path:
        if self._recorder is None:
            raise ValueError("this stream is not recorded, so it cannot be saved")
        return self._recorder.save(title)

    @property
    def cache_bytes(self) -> int:
        return self._session.cache_bytes

    def fork(self) -> ModelPerformance:
        """Returns an independent performance that goes on from here and is not recorded."""
        other = copy.copy(self)
        other._steering, other._session = self._steering.fork(), self._session.fork()
        other._session.controls, other._recorder = other._steer, None
        return other

    def close(self) -> None:
        if self._recorder:
            self._recorder.close()
        del self._session, self._steering

    def _steer(self, index: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Returns the tracks of the next frames; the session calls it for every chunk."""
        self._asked = self._steering.tracks(self._controls, first, count)
        return torch.from_numpy(self._asked[0]), torch.from_numpy(self._asked[1])

    def _reset_live(self) -> None:
        """Puts the webcam's points back on the grid, where those of a clip begin."""
        if self._live is not None:
            self._steering.see(*self._live.reset())

    def _new_recorder(self) -> Recorder | None:
        if not self._record:
            return None
        playable, about, setup, start = self._player.playable, self._player.about, self._player.setup, self._start
        begun = Recording(
            format=FORMAT,
            id="",
            title="",
            saved="",
            preset=setup.preset,
            git_sha=setup.git_sha,
            student=setup.student,
            digest=playable.digest,
            decoder=playable.decoder,
            decoder_digest=setup.decoder_digest,
            seed=start.seed,
            picture=digest_of(start.frame),
            prompts=((0, self._prompt),),
            refreshes=(),
            hand=asdict(start.smoothing),
            points=playable.points,
            threads=torch.get_num_threads(),
            device=about.device,
            torch=torch.__version__,
            height=about.height,
            width=about.width,
            fps=about.fps,
            lengths=(),
            frames_sha256=(),
        )
        return Recorder(setup.root, begun, start.frame, setup.minutes)


def load_player(cfg: Config, log: Callable[[str], None] = print) -> ModelPlayer:
    """Loads the student that the settings choose. Raises ValueError where there is none, or its weights cannot be read."""
    chosen, device = choose(cfg, log), free_device()
    points = min(ID_RANGE, SLOTS_PER_CELL * cfg.data.grid_rows * cfg.data.grid_cols)
    dtype = inference_dtype(device, cfg.compute.precision)
    playable = load_playable(chosen.student, chosen.tiny_vae, cfg.demo.decoder, points, device, dtype)
    player = make_player(cfg, playable, chosen)
    clear_abandoned(player.setup.root, log)
    return player


def make_player(cfg: Config, playable: Playable, chosen: ChosenStudent) -> ModelPlayer:
    """Builds the player of a loaded student."""
    model, device = playable.student.cfg, playable.device
    stride = model.vae.stride_t
    about = About(
        preset=cfg.preset,
        student=chosen.name,
        digest=playable.digest,
        height=model.clip.height,
        width=model.clip.width,
        fps=model.clip.fps,
        first_frames=1 + (int(model.image_alone) + model.student.chunk - 1) * stride,
        chunk_frames=model.student.chunk * stride,
        max_points=min(playable.points, cfg.data.grid_rows * cfg.data.grid_cols),
        grid=(cfg.data.grid_rows, cfg.data.grid_cols),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )
    tiny = chosen.tiny_vae.digest if playable.decoder == "tiny" and chosen.tiny_vae else ""
    demo, tracker = cfg.demo, cfg.data.tracker
    setup = PlayerSetup(cfg.preset, chosen.name, tiny, git_sha(), cfg.root / "recordings", demo.record_minutes, tracker)
    return ModelPlayer(playable, about, setup, pictures.pictures(cfg, (about.height, about.width)))
