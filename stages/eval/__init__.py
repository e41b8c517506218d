"""Evaluation: how well motion is followed, picture quality, speed, and rollouts beyond the training horizon.

Stages with their run configs, inputs and results. pipelines/evaluate.py connects them; every run takes (config, inputs,
ctx):

    SELECT    once      SelectRun(model, eval.select), SelectInputs(heldout) -> Selection
              plan(selection, eval.select.batch, teacher, student) -> [EvalItem]
    GENERATE  per_item  GenerateRun(model, eval.generate), EvalItem -> Generated
    MEASURE   per_item  MeasureRun(model, eval.measure), Generated -> Measured
    SPEED     once      SpeedRun(model, eval.speed), SpeedInputs(selection, teacher, student, ...) -> Figures
    LONG_RUN  once      LongRunRun(model, eval.measure, eval.long_run), LongRunInputs(selection, student) -> Figures
    REPORT    once      ReportRun(preset, model, eval), ReportInputs(...) -> Report

For ablations and timings:

    SWEEP     once per setting  SweepRun(...), SweepInputs(selection, student) -> Figures
    BENCH     once      BenchRun(model, bench), None -> Figures
    SWEEP_REPORT  once  SweepReportRun(...), SweepReportInputs(points, guided) -> Report

For recorded sessions, in stages/play/replay.py:

    REPLAY    once      ReplayRun(model, eval.measure), ReplayInputs(folder, digest, student) -> Figures

A model that has not been trained is None: its figures are null in report.json, with the reason under `null_reasons`.
Items of real clips hold no checkpoint, so their features are measured once, whatever is trained. SPEED and LONG_RUN
need an otherwise idle machine. RECORDS are the records defined here, for the codec.
"""

from __future__ import annotations

from stages.eval.bench import BENCH, BenchRun
from stages.eval.config import (
    EvalConfig,
    GenerateRun,
    LongRunRun,
    MeasureRun,
    ReplayRun,
    ReportRun,
    SelectRun,
    SpeedRun,
)
from stages.eval.generate import GENERATE
from stages.eval.items import EvalClip, EvalItem, Figures, Generated, Measured, Selection, guided_items, plan
from stages.eval.long_run import LONG_RUN, LongRunInputs
from stages.eval.measure import MEASURE, measure_stage
from stages.eval.report import REPORT
from stages.eval.select import SELECT, SelectInputs
from stages.eval.speed import SPEED, SpeedInputs
from stages.eval.summary import ReportInputs
from stages.eval.sweep import (
    SWEEP,
    SWEEP_REPORT,
    Guided,
    SweepInputs,
    SweepReportInputs,
    SweepReportRun,
    read_weights,
    sweep_run,
)

RECORDS = (EvalClip, Selection, EvalItem, Generated, Measured, Figures)

__all__ = [
    "BENCH",
    "GENERATE",
    "LONG_RUN",
    "MEASURE",
    "RECORDS",
    "REPORT",
    "SELECT",
    "SPEED",
    "SWEEP",
    "SWEEP_REPORT",
    "BenchRun",
    "EvalConfig",
    "Figures",
    "GenerateRun",
    "Guided",
    "LongRunInputs",
    "LongRunRun",
    "MeasureRun",
    "ReplayRun",
    "ReportInputs",
    "ReportRun",
    "SelectInputs",
    "SelectRun",
    "SpeedInputs",
    "SpeedRun",
    "SweepInputs",
    "SweepReportInputs",
    "SweepReportRun",
    "guided_items",
    "measure_stage",
    "plan",
    "read_weights",
    "sweep_run",
]
