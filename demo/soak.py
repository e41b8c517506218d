"""python -m demo.soak [--chunks 400] [--preset nano] [--runs runs]: measures whether the player keeps its speed and memory.

Plays one stream as fast as it goes, with one point dragged in a circle, and prints a JSON object: frames a second, latency of a
chunk, milliseconds to the first frame, resident memory after a tenth of the chunks and at the end, bytes of the cache, and
the slope of the latency with its 95% interval. A chunk is timed from its controls to decoded frames, with the clean pass. The
speed of a machine varies by more than the slope that is measured, so as many chunks again are each divided by a chunk of a
fork that does not age, made at the same moment, as LONG_RUN does; the slope of the seconds alone is printed too.
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

from configs.settings import load
from demo.playing.model_player import ModelPerformance, ModelPlayer, load_player
from demo.playing.player import Start
from msmodel.steering.steering import Controls
from stages.eval.timing import latency, latency_slope

POINT = np.array([1])
FREE = np.array([False])
WARM_UP = 12  # chunks: more than any cache holds
PERIOD = 40  # chunks that a round of the dragged point takes


def soak(player: ModelPlayer, count: int, record: bool) -> dict[str, Any]:
    """Returns the measurements of `count` chunks, after those that fill the cache."""
    began = time.perf_counter()
    performance = player.open(Start(player.pictures()[0].frame, player.pictures()[0].prompt), record)
    performance.next_chunk(circling(0))
    first = time.perf_counter() - began
    try:
        for index in range(1, WARM_UP):
            performance.settle()
            performance.next_chunk(circling(index))
        performance.settle()
        seconds: list[float] = []
        memory, frames, at = [], 0, WARM_UP
        for at in range(WARM_UP, WARM_UP + count):
            taken, made = timed(performance, at)
            seconds.append(taken)
            frames += made
            memory.append(resident_bytes())
        young = performance.fork()
        ratios = []
        for index in range(at + 1, at + 1 + count):
            pair = [performance, young.fork()]
            one, other = (timed(turn, index)[0] for turn in (pair if index % 2 else pair[::-1]))
            ratios.append(one / other if index % 2 else other / one)
        return figures(seconds, ratios, memory) | {
            "frames": frames,
            "fps": frames / sum(seconds),
            "first_frame_ms": first * 1000,
            "cache_bytes": performance.cache_bytes,
            "threads": torch.get_num_threads(),
            "recorded": record,
        }
    finally:
        performance.close()


def timed(performance: ModelPerformance, index: int) -> tuple[float, int]:
    """Returns the seconds of a chunk with its clean pass, and its number of frames."""
    began = time.perf_counter()
    played = performance.next_chunk(circling(index))
    performance.settle()
    return time.perf_counter() - began, len(played.frames)


def figures(seconds: list[float], ratios: list[float], memory: list[int]) -> dict[str, Any]:
    """Summarises the measurements. seconds, memory: of the stream's chunks, and resident bytes after each. ratios: seconds of
    later chunks over those of a fork at the same moments."""
    slope = latency_slope(ratios)
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
    """Returns controls with one point dragged in a circle."""
    angle = 2 * np.pi * index / PERIOD
    xy = np.array([[0.5 + 0.2 * np.cos(angle), 0.5 + 0.2 * np.sin(angle)]], np.float32)
    return Controls(revision=index, ids=POINT, xy=xy, pinned=FREE)


def resident_bytes() -> int:
    """Returns this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m demo.soak", description=__doc__)
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
            player.setup = replace(player.setup, root=Path(folder))  # nothing is left in the run
            print(json.dumps(soak(player, options.chunks, not options.no_record), indent=1))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
