"""make eval: measures quality, speed and long rollouts.

Every report stays in the folder of its step, RUNS/PRESET/eval_report/KEY. RUNS/PRESET/report holds copies of the report
that was requested last: report.json, report.html and overview.png, the first two with the key, the date and the place
of the settings. With eval.replay a recorded session is replayed instead (commands/replay.py).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from infra.files import git_sha
from pipelines.commands.replay import replay
from pipelines.data import data
from pipelines.distill import distill
from pipelines.run import Run
from pipelines.teacher import teacher
from stages import eval as ev
from stages.records import Report

STAGES = (ev.SELECT, ev.GENERATE, ev.MEASURE, ev.SPEED, ev.LONG_RUN, ev.REPORT)


def evaluate_or_replay(run: Run) -> Report | ev.Figures:
    """Replays a recorded session if eval.replay names one, else evaluates."""
    return replay(run) if run.cfg.eval.replay else evaluate(run)


def evaluate(run: Run) -> Report:
    """Generates held-out clips with their own and with counterfactual motions, measures them and returns the report."""
    shards, teacher_checkpoint, made = data(run), teacher(run), distill(run)
    with run.making("eval"):
        cfg, model = run.cfg.eval, run.cfg.model
        selection = run.step(ev.SELECT, ev.SelectRun(model, cfg.select), ev.SelectInputs(shards.heldout))
        plan = ev.plan(selection, cfg.select.batch, teacher_checkpoint, made.student, made.adapted)
        generated, _ = run.items(ev.GENERATE, ev.GenerateRun(model, cfg.generate), plan)
        measured, _ = run.items(ev.measure_stage(cfg.measure), ev.MeasureRun(model, cfg.measure), generated)
        speed = run.step(
            ev.SPEED,
            ev.SpeedRun(model, cfg.speed),
            ev.SpeedInputs(selection, teacher_checkpoint, made.student, made.tiny_vae),
        )
        long_run = run.step(
            ev.LONG_RUN, ev.LongRunRun(model, cfg.measure, cfg.long_run), ev.LongRunInputs(selection, made.student)
        )
        inputs = ev.ReportInputs(
            selection=selection,
            dataset=(shards.train, shards.heldout),
            generated=generated,
            measured=measured,
            speed=speed,
            long_run=long_run,
            teacher=teacher_checkpoint,
            student=made.student,
            adapted=made.adapted,
            tiny_vae=made.tiny_vae,
            git_sha=git_sha(),
            seconds=run.seconds(),
        )
        # The commit and the run times are not part of the key: they make no report stale.
        key = replace(inputs, git_sha="", seconds={})
        report = run.step(ev.REPORT, ev.ReportRun(run.cfg.preset, model, cfg), inputs, key_inputs=key)
        return publish(report, run.store.root / "report")


def publish(report: Report, folder: Path) -> Report:
    """Copies the report to the folder where scripts expect it, over the previous copies.

    The reports before stay in their steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for file in (Path(report.json), Path(report.html), Path(report.overview)):
        aside = folder / f".{file.name}"
        shutil.copyfile(file, aside)
        aside.replace(folder / file.name)
        copies.append(str(folder / file.name))
    return Report(str(folder), *copies)
