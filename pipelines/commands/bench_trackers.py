"""make bench-trackers: compares every tracker that can run on this machine with the exact tracks of the rendered
scenes."""

from __future__ import annotations

from pipelines import data
from pipelines.run import Run
from stages.data.encode import ENCODE
from stages.data.render import RENDER
from stages.data.track import TRACK
from stages.trackers.bench import TRACKER_BENCH, TrackerBench, TrackerBenchRun

STAGES = (RENDER, TRACK, ENCODE, TRACKER_BENCH)


def bench_trackers(run: Run) -> TrackerBench:
    """Makes the missing data, measures the trackers, and returns the result. Prints the table, which is also written to
    RUNS/PRESET/tracker_bench/KEY/trackers.md."""
    with run.making("data"):
        videos, _ = data.usable_videos(run)
        clips, _ = data.rendered_clips(run, data.real_clips(run, videos))
    with run.making("bench-trackers"):
        cfg = TrackerBenchRun(run.cfg.data.tracker, run.cfg.tracker_bench)
        made: TrackerBench = run.step(TRACKER_BENCH, cfg, clips)
        with open(made.table, encoding="utf-8") as f:
            print(f.read())
        return made
