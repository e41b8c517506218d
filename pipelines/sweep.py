"""make sweep: the paper's ablations from one trained model.

It writes sweep.json, sweep.html and sweep.png to RUNS/PRESET/eval_sweep_report/KEY, and copies of the newest to
RUNS/PRESET/sweep.
"""

from __future__ import annotations

from dataclasses import replace

from infra.files import git_sha
from pipelines.data import data
from pipelines.distill import distill
from pipelines.evaluate import publish
from pipelines.run import Run
from pipelines.teacher import teacher
from stages import eval as ev
from stages.records import Report

STAGES = (ev.SELECT, ev.SWEEP, ev.GENERATE, ev.MEASURE, ev.SWEEP_REPORT)


def sweep(run: Run) -> Report:
    """Measures the student under every setting and the teacher under every guidance, and returns the report.

    Every setting of the student is a step of its own, and so a run of its own in MLflow.
    """
    shards, teacher_checkpoint, made = data(run), teacher(run), distill(run)
    with run.making("sweep"):
        cfg, model, own = run.cfg.eval, run.cfg.model, run.cfg.sweep
        selection = run.step(ev.SELECT, ev.SelectRun(model, cfg.select), ev.SelectInputs(shards.heldout))
        points = tuple(
            run.step(
                ev.SWEEP,
                ev.sweep_run(model, cfg.measure, own, name),
                ev.SweepInputs(selection, made.student),
                label=name,
            )
            for name in own.settings
        )
        items = ev.guided_items(selection, own.guidance_clips, cfg.select.batch, teacher_checkpoint)
        guided = []
        for weights in own.guidance:
            setting = replace(cfg.generate, guidance=ev.read_weights(weights))
            generated, _ = run.items(ev.GENERATE, ev.GenerateRun(model, setting), items)
            measured, _ = run.items(ev.measure_stage(cfg.measure), ev.MeasureRun(model, cfg.measure), generated)
            guided.append(ev.Guided(weights, measured))
        inputs = ev.SweepReportInputs(points, tuple(guided), git_sha())
        page = ev.SweepReportRun(run.cfg.preset, cfg.generate.steps, own.horizons, cfg.measure.raster)
        report = run.step(ev.SWEEP_REPORT, page, inputs, key_inputs=replace(inputs, git_sha=""))
        return publish(report, run.store.root / "sweep")
