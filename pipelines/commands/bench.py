"""make bench: paired timings of the model at the preset's size, with random weights. Leaves bench.json and a run in MLflow."""

from __future__ import annotations

from pipelines.run import Run
from stages import eval as ev

STAGES = (ev.BENCH,)


def bench(run: Run) -> ev.Figures:
    """Needs neither data nor a trained model."""
    with run.making("bench"):
        return run.step(ev.BENCH, ev.BenchRun(run.cfg.model, run.cfg.bench), None)
