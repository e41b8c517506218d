"""Records a stream while it plays. A thread passes frames to encoders and tracks to a file; memory holds hashes only.

Unsaved files lie in RUNS/PRESET/recordings/.PID-XXXX.playing. `save` makes a complete recording of them; the stream can go on
and be saved again."""

from __future__ import annotations

import logging
import os
import queue
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from demo.playing.player import PlayedChunk
from stages.data.files import slug
from stages.play.recordings import DRAWN, FILES, VIDEO, Recording, digest_of, write_about, write_first, write_tracks
from stages.play.video_writer import TrailPainter, VideoWriter, enlarged

log = logging.getLogger(__name__)
WAITING = 4  # chunks between the stream and the encoders; a faster stream waits
TITLE = 80  # characters, at most
ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
PLAYING = re.compile(r"\.(\d+)-[0-9a-f]+\.(playing|saving)")


class Recorder:
    """One recording in progress. begun: the recording as it is before the first chunk, without title, lengths and digests.

    A full disk or the limit of `minutes` ends the recording, not the stream; `ended` then holds the reason.
    """

    def __init__(self, root: Path, begun: Recording, frame: np.ndarray, minutes: float) -> None:
        self._root, self._begun, self._frame = root, begun, frame
        self._most_frames = round(minutes * 60 * begun.fps)
        self._minutes = minutes
        self._folder = root / f".{os.getpid()}-{secrets.token_hex(4)}.playing"
        self.ended, self._failed = "", False
        self._prompts, self._refreshes = list(begun.prompts), list(begun.refreshes)
        self._frames = 0
        self._digests: list[str] = []
        self._shapes: list[tuple[int, int]] = []  # frames and tracks of each chunk
        self._videos = {name: VideoWriter(self._folder, name.split(".")[0], begun.fps) for name in (VIDEO, DRAWN)}
        self._trails = TrailPainter()
        self._queue: queue.Queue[PlayedChunk | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def add(self, played: PlayedChunk) -> None:
        """Records the next chunk, whose arrays must not be changed afterwards."""
        if self.ended:
            return
        if self._frames + len(played.frames) > self._most_frames:
            limit = f"{self._minutes:g} minutes (demo.record_minutes)"
            self.ended = f"the recording ended after {limit}; what was recorded until then can be saved"
            return
        self._frames += len(played.frames)
        self._queue.put(played)

    def prompt(self, chunk: int, text: str) -> None:
        """Notes that the prompt changes with `chunk`."""
        self._prompts = [(at, old) for at, old in self._prompts if at != chunk] + [(chunk, text)]

    def refreshed(self, chunk: int) -> None:
        """Notes that the sink was refreshed before `chunk`."""
        self._refreshes = sorted({*self._refreshes, chunk})

    def save(self, title: str) -> Path:
        """Saves what was recorded so far, and returns the folder. Raises ValueError where nothing was played, or it cannot be
        written."""
        self._queue.join()
        if self._failed:
            raise ValueError(self.ended)
        if not self._digests:
            raise ValueError("nothing was played yet, so there is nothing to save")
        clean = " ".join("".join(c if c.isprintable() else " " for c in title).split())[:TITLE]
        now = datetime.now(UTC)
        name = f"{now:%Y%m%d-%H%M%S}-{slug(clean, 24)}-{secrets.token_hex(2)}"
        aside = self._root / f".{os.getpid()}-{secrets.token_hex(4)}.saving"
        try:
            aside.mkdir()
            self._write(
                aside, replace(self._begun, id=name, title=clean or name, saved=now.isoformat(timespec="milliseconds"))
            )
            final = self._root / name
            aside.rename(final)
        except OSError as error:
            raise ValueError(f"the recording cannot be saved: {error}: free some space in {self._root}") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return final

    def close(self) -> None:
        """Stops the thread and the encoders, and removes what was not saved."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._discard()

    def _write(self, folder: Path, recording: Recording) -> None:
        chunks = len(self._shapes)
        write_first(folder, self._frame)
        write_tracks(folder, *self._tracks(), recording.fps, self._frame.shape[:2])
        for name, video in self._videos.items():
            video.finish(folder / name)
        write_about(
            folder,
            replace(
                recording,
                prompts=tuple(sorted((at, text) for at, text in self._prompts if at < chunks)),
                refreshes=tuple(at for at in self._refreshes if at < chunks),
                lengths=tuple(frames for frames, _ in self._shapes),
                frames_sha256=tuple(self._digests),
                ended=self.ended,
            ),
        )

    def _tracks(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tracks of all chunks: xy_px T n 2, visible T n. Chunks with fewer tracks than others are padded with
        invisible
        ones."""
        most, rows = max(n for _, n in self._shapes), sum(frames for frames, _ in self._shapes)
        xy_px, visible = np.zeros((rows, most, 2), np.float32), np.zeros((rows, most), bool)
        first = 0
        with open(self._folder / "tracks", "rb") as f:
            for frames, n in self._shapes:
                rows_here = slice(first, first + frames)
                xy_px[rows_here, :n] = np.frombuffer(f.read(frames * n * 8), np.float32).reshape(frames, n, 2)
                visible[rows_here, :n] = np.frombuffer(f.read(frames * n), bool).reshape(frames, n)
                first += frames
        return xy_px, visible

    def _work(self) -> None:
        """Runs in the thread: writes one chunk after another. An error of the disk ends the recording."""
        while (played := self._queue.get()) is not None:
            try:
                if not self._failed:
                    self._keep(played)
            except OSError as error:
                self._fail(f"the recording ended: {error}: is the disk full?")
            except Exception as error:  # the stream must not wait for a thread that has died
                log.exception("the recorder failed")
                self._fail(f"the recording failed ({error!r}): see the server's log")
            finally:
                self._queue.task_done()

    def _fail(self, why: str) -> None:
        self.ended, self._failed = why, True
        self._discard()

    def _keep(self, played: PlayedChunk) -> None:
        if not self._shapes:
            self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "tracks", "ab") as f:
            f.write(np.asarray(played.xy_px, np.float32).tobytes())
            f.write(np.asarray(played.visible, bool).tobytes())
        self._videos[VIDEO].push(enlarged(played.frames))
        self._videos[DRAWN].push(self._trails.draw(played.frames, played.xy_px, played.visible))
        self._digests.append(digest_of(played.frames))
        self._shapes.append(played.visible.shape)

    def _discard(self) -> None:
        for video in self._videos.values():
            video.discard()
        shutil.rmtree(self._folder, ignore_errors=True)


def clear_abandoned(root: Path, log: Callable[[str], None]) -> None:
    """Removes the unsaved files of processes that were killed."""
    for folder in root.glob(".*"):
        owner = PLAYING.fullmatch(folder.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            log(f"removed {folder}: its process was killed while it recorded")
            shutil.rmtree(folder, ignore_errors=True)


def recording_file(root: Path, id: str, name: str) -> Path:
    """Returns the path of a recording's file. Raises ValueError for an invalid name, or a file that does not exist."""
    path = root / id / name
    if not ID.fullmatch(id) or name not in FILES or not path.is_file():
        raise ValueError(f"there is no {name[:40]!r} of a recording {id[:80]!r}")
    return path
