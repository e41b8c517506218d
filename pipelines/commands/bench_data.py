"""make bench-data: measures the speed of the data stages in clips per second, and their memory, on one machine.

Two variants are timed in alternating rounds and compared by their ratios. Before every timing the workers are started
and have imported their modules, which takes Ray about ten seconds whatever the work. There are three figures. workers:
TRACK with one and with two workers. graph: CUT, TRACK and ENCODE as one graph of two workers, compared with a plain
loop over the same functions in one process that may use both cores. memory_mb: `make data` with few and with many
clips.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infra.codec import Codec
from infra.context import ItemContext
from infra.executor import Executor, StageTask
from infra.files import git_sha, write_atomic
from infra.memory import peak_mb
from infra.progress import SilentConsole
from infra.ray_session import set_threads
from infra.store import Store
from msmodel.config import ClipConfig
from pipelines import data
from pipelines.run import RECORDS, Run
from stages.contracts import StageSpec
from stages.data import ingest
from stages.data.cut import CUT, Segment, segments
from stages.data.encode import ENCODE
from stages.data.files import write_mp4
from stages.data.gates import to_encode, to_track
from stages.data.sources import find_candidates
from stages.data.track import track_stage
from stages.records import Video

STAGES: tuple[Any, ...] = ()
CORES = 2
CLIPS_PER_VIDEO = 10
VIDEO_SIZE = (640, 400)  # px
WARM_SECONDS = 2.0


def bench_data(run: Run) -> dict[str, Any]:
    """Runs the benchmark and returns its figures. Prints them and writes them to
    RUNS/PRESET/bench_data/bench_data.json."""
    cfg = run.cfg.bench_data
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        videos = {n: write_videos(folder / f"videos-{n}", n, run.cfg.clip) for n in (cfg.clips, *cfg.memory_clips)}
        parts = segments([_probe(run, video, folder) for video in sorted(videos[cfg.clips].iterdir())], run.cfg.data)
        bench = _Bench(run, folder)
        bench.graph(parts)  # warm-up: Ray, its workers and their models
        figures: dict[str, Any] = {"workers": bench.workers(parts), "graph": bench.against_loop(parts)}
        run.executor.stop()
        few, many = (_memory(run, videos[n], folder / f"runs-{n}") for n in cfg.memory_clips)
    counts = [str(n) for n in cfg.memory_clips]
    figures["memory_mb"] = dict(zip(counts, (few, many), strict=True)) | {"ratio": round(many / few, 3)}
    figures |= {"preset": run.cfg.preset, "git_sha": git_sha()}
    text = json.dumps(figures, indent=1)
    write_atomic(run.store.root / "bench_data" / "bench_data.json", text)
    print(text)
    return figures


def write_videos(folder: Path, clips: int, clip: ClipConfig) -> Path:
    """Writes videos of a panning texture, one random texture per video, and returns the folder.

    Each video is long enough for CLIPS_A_FILM clips of the preset's length.
    """
    folder.mkdir()
    for number in range(max(1, clips // CLIPS_PER_VIDEO)):
        noise = np.random.default_rng(number).integers(0, 256, (30, 60, 3)).astype(np.uint8)
        texture = cv2.resize(noise, (VIDEO_SIZE[0] * 2, VIDEO_SIZE[1]), interpolation=cv2.INTER_CUBIC)
        count = CLIPS_PER_VIDEO * clip.frames + 1
        turn = [round((1 - math.cos(2 * math.pi * t / 120)) * VIDEO_SIZE[0] / 2) for t in range(count)]
        write_mp4(
            folder / f"video-{number:03d}.mp4", np.stack([texture[:, s : s + VIDEO_SIZE[0]] for s in turn]), clip.fps
        )
    return folder


def _probe(run: Run, video: Path, folder: Path) -> Video:
    [candidate], _ = find_candidates(str(video))
    return ingest.run(data.stage_configs(run).ingest, candidate, ItemContext(workdir=folder, seed=0, sources=folder))


class _Bench:
    """Runs and times the variants. Every execution has a new store, so that no result is reused; Ray stays
    connected."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder, self.count = run, folder, 0
        stage = data.stage_configs(run)
        self.cut = StageSpec(CUT, stage.cut, tuple)
        self.track = StageSpec(track_stage(run.cfg.data.tracker), stage.track, partial(to_track, gates=None))
        self.encode = StageSpec(ENCODE, stage.encode, partial(to_encode, gates=None))

    def workers(self, parts: Sequence[Segment]) -> dict[str, Any]:
        """Returns the figures of TRACK on the same clips with one and with two workers."""
        groups = [g for part in parts for g in self.track.items_of(self.call(self.cut, part))]
        return self.paired(
            sum(len(g) for g in groups), lambda: self.tracked(groups, 1), lambda: self.tracked(groups, CORES)
        )

    def against_loop(self, parts: Sequence[Segment]) -> dict[str, Any]:
        """Returns the figures of the plain loop and of the graph on the same segments."""
        clips = self.loop(parts)  # warm-up of this process
        return self.paired(clips, lambda: self.loop(parts), lambda: self.graph(parts))

    def paired(self, clips: int, first: Callable[[], Any], second: Callable[[], Any]) -> dict[str, Any]:
        """Times both variants in alternating rounds. Returns the number of clips, the seconds of each round, and the
        median of the rounds' ratios first / second: the speedup of the second variant."""
        rounds = []
        for _ in range(self.run.cfg.bench_data.rounds):
            rounds.append((self.seconds(first), self.seconds(second)))
            self.run.log(f"{clips} clips: {rounds[-1][0]:.1f} s and {rounds[-1][1]:.1f} s")
        ratio = statistics.median(a / b for a, b in rounds)
        return {"clips": clips, "seconds": [[round(s, 2) for s in pair] for pair in rounds], "ratio": round(ratio, 3)}

    def seconds(self, work: Callable[[], Any]) -> float:
        """Returns the seconds that `work` takes. Starts missing workers before, because Ray ends workers that were idle
        for a second."""
        ray = self.run.executor.session.start()
        ray.get([ray.remote(_import_all).remote() for _ in range(CORES)])
        started = time.monotonic()
        work()
        return time.monotonic() - started

    def executor(self, workers: int) -> Executor:
        """Returns an executor with a new store and at most `workers` workers of one thread."""
        self.count += 1
        root = self.folder / f"store-{self.count}" / self.run.cfg.preset
        compute = replace(self.run.cfg.compute, item_workers=workers, threads=1)
        executor = Executor(Store(root, Codec(RECORDS, root)), compute, SilentConsole())
        executor.session = self.run.executor.session
        return executor

    def graph(self, parts: Sequence[Segment]) -> None:
        """Runs CUT, TRACK and ENCODE as one graph."""
        self.executor(CORES).stream((self.cut, self.track, self.encode), parts, 0)

    def tracked(self, groups: Sequence[Any], workers: int) -> None:
        """Runs TRACK alone with this number of workers."""
        executor, spec = self.executor(workers), self.track
        step = executor.store.step(spec.stage.name, spec.stage.version, spec.config, groups, 0)
        executor.run(StageTask(spec.stage, spec.config, groups, step, 0), None, {})

    def loop(self, parts: Sequence[Segment]) -> int:
        """Runs the same functions one after the other in this process, which may use both cores. Returns the number of
        clips."""
        set_threads(CORES)
        made = 0
        for part in parts:
            for clips in self.track.items_of(self.call(self.cut, part)):
                for tracked in self.encode.items_of(self.call(self.track, clips)):
                    made += len(self.call(self.encode, tracked))
        return made

    def call(self, spec: StageSpec, item: Any) -> Any:
        """Returns the records of one item, made by the stage in this process in a new folder."""
        self.count += 1
        work = self.folder / f"loop-{self.count}"
        work.mkdir()
        return spec.stage.run(spec.config, item, ItemContext(workdir=work, seed=0, sources=work / "sources"))


def _import_all() -> None:
    """Prepares a Ray worker: importing this module imports what its first item needs. It waits WARM_SECONDS, so that
    Ray also starts the other worker."""
    set_threads(1)
    time.sleep(WARM_SECONDS)


def _memory(run: Run, videos: Path, runs: Path) -> float:
    """Returns the peak memory in MB of the command `data` on the videos in a folder."""
    words = [sys.executable, "-m", "pipelines", "data", "--preset", run.cfg.preset, "--src", str(videos)]
    settings = ["data.train_scenes=0", "data.heldout_scenes=0", "data.variants=[]"]
    return peak_mb([*words, "--runs", str(runs), *settings])
