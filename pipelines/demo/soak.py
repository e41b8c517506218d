"""python -m pipelines.demo.soak [--chunks 400] [--preset nano] [--runs runs]: does the player keep its pace and memory?

Plays one stream as fast as it goes, one point dragged around, and prints a JSON object: frames a second, latency of a
chunk, milliseconds to the first frame, resident memory after a tenth of the chunks and at the end, bytes of the cache, and
the slope of the latency with its 95% interval. What is timed is the chunk from its controls to decoded frames, and the
clean pass. As a machine wanders by more than the slope that is looked for, each chunk is taken over that of a fork of the
young stream at the same moment, as LONG_RUN does; the slope of the seconds alone stands beside it.
"""

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
WARM_UP = 12  # chunks: more than any cache holds
PERIOD = 40  # chunks that a round of the dragged point takes


def soak(player: ModelPlayer, count: int, record: bool) -> dict[str, Any]:
    """Figures of `count` chunks after those that fill the cache."""
    began = time.perf_counter()
    performance = player.open(Start(player.pictures()[0].frame, player.pictures()[0].prompt), record)
    performance.next_chunk(circling(0))
    first = time.perf_counter() - began
    try:
        for index in range(1, WARM_UP):
            performance.settle()
            performance.next_chunk(circling(index))
        performance.settle()
        young = performance.fork()
        seconds: list[float] = []
        beside: list[float] = []
        memory, frames = [], 0
        for index in range(WARM_UP, WARM_UP + count):
            turns = [(performance, seconds), (young.fork(), beside)]
            for one, taken in turns if index % 2 else reversed(turns):
                began = time.perf_counter()
                played = one.next_chunk(circling(index if one is performance else WARM_UP))
                one.settle()
                taken.append(time.perf_counter() - began)
                frames += len(played.frames) * (one is performance)
            memory.append(resident_bytes())
        return figures(seconds, beside, memory) | {
            "frames": frames,
            "fps": frames / sum(seconds),
            "first_frame_ms": first * 1000,
            "cache_bytes": performance.cache_bytes,
            "threads": torch.get_num_threads(),
            "recorded": record,
        }
    finally:
        performance.close()


def figures(seconds: list[float], beside: list[float], memory: list[int]) -> dict[str, Any]:
    """Of the chunks of the growing stream, those of the young one at the same moments, and resident bytes after each."""
    slope = latency_slope([a / b for a, b in zip(seconds, beside, strict=True)])
    alone = latency_slope(seconds)
    early = memory[len(memory) // 10]
    return {
        "chunks": len(seconds),
        "latency_ms": asdict(latency(seconds)),
        "slope_pct_per_100_chunks": slope.pct_per_100_chunks,
        "slope_ci": [slope.low, slope.high],
        "slope_alone_pct_per_100_chunks": alone.pct_per_100_chunks,
        "slope_alone_ci": [alone.low, alone.high],
        "resident_mb": [early / 1e6, memory[-1] / 1e6],
        "growth_pct": 100 * (memory[-1] - early) / early,
    }


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
            player.warm_up()
            player.setting = replace(player.setting, root=Path(folder))  # nothing is left in the run
            print(json.dumps(soak(player, options.chunks, not options.no_record), indent=1))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
