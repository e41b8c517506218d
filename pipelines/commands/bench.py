"""make bench: times variants of the model in pairs, at the preset's size with random weights. Writes bench.json and
logs an MLflow run."""

from __future__ import annotations

from pipelines.run import Run
from stages import eval as ev

STAGES = (ev.BENCH,)


def bench(run: Run) -> ev.Figures:
    """Runs the benchmark and returns its figures. It needs neither data nor a trained model."""
    with run.making("bench"):
        return run.step(ev.BENCH, ev.BenchRun(run.cfg.model, run.cfg.bench), None)
