"""python -m pipelines.demo.soak [--chunks 400] [--preset nano] [--runs runs]: does the player keep its pace and its memory?

Plays one stream as fast as it goes, one point dragged around, and prints a JSON object: frames a second, latency of a
chunk with its slope and the slope's 95% interval, milliseconds to the first frame, resident memory after a tenth of the
chunks and at the end, and bytes of the cache. What is timed is what a user waits for: from the controls to the decoded
frames, and the clean pass."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msmodel.steering import Controls
from stages.eval.timing import latency, latency_slope

from ..config import load
from .model_player import ModelPlayer, load_player
from .player import Start

POINT = np.array([1])
FREE = np.array([False])
PERIOD = 40  # chunks that a round of the dragged point takes


def soak(player: ModelPlayer, count: int, record: bool) -> dict[str, Any]:
    """Figures of `count` chunks after those that fill the cache."""
    began = time.perf_counter()
    performance = player.open(Start(player.pictures()[0].frame, player.pictures()[0].prompt), record)
    performance.next_chunk(circling(0))
    first = time.perf_counter() - began
    student = player.playable.student.cfg.student
    try:
        for index in range(1, 1 + student.sink + student.window):
            performance.settle()
            performance.next_chunk(circling(index))
        performance.settle()
        seconds, frames, memory = [], 0, []
        for index in range(count):
            began = time.perf_counter()
            frames += len(performance.next_chunk(circling(index)).frames)
            performance.settle()
            seconds.append(time.perf_counter() - began)
            memory.append(resident_bytes())
        slope = latency_slope(seconds)
        early = memory[count // 10]
        return {
            "chunks": count,
            "frames": frames,
            "fps": frames / sum(seconds),
            "latency_ms": asdict(latency(seconds)),
            "slope_pct_per_100_chunks": slope.pct_per_100_chunks,
            "slope_ci": [slope.low, slope.high],
            "first_frame_ms": first * 1000,
            "resident_mb": [early / 1e6, memory[-1] / 1e6],
            "growth_pct": 100 * (memory[-1] - early) / early,
            "cache_bytes": performance.cache_bytes,
            "threads": torch.get_num_threads(),
            "recorded": record,
        }
    finally:
        performance.close()


def circling(index: int) -> Controls:
    """One point on a circle."""
    angle = 2 * np.pi * index / PERIOD
    xy = np.array([[0.5 + 0.2 * np.cos(angle), 0.5 + 0.2 * np.sin(angle)]], np.float32)
    return Controls(revision=index, ids=POINT, xy=xy, pinned=FREE)


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m pipelines.demo.soak", description=__doc__)
    parser.add_argument("--chunks", type=int, default=400)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--no-record", action="store_true", help="play without recording")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            cfg = load(options.preset, runs=options.runs)
            player = load_player(cfg, lambda line: print(line, file=sys.stderr))
            player.setting = replace(player.setting, root=Path(folder))  # nothing is left in the run
            print(json.dumps(soak(player, options.chunks, not options.no_record), indent=1))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
