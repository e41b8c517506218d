"""make teacher: trains the backbone to follow tracks."""

from __future__ import annotations

from dataclasses import replace

from pipelines.data import data
from pipelines.run import Run, without_student
from pipelines.stamps import weights_stamp
from stages.data.shards import require_shards
from stages.records import Checkpoint
from stages.train.teacher import TEACHER, TeacherInputs, TeacherRun, TwoSetInputs

STAGES = (TEACHER,)


def teacher(run: Run) -> Checkpoint:
    """Trains the teacher on the shards of the data and returns its checkpoint."""
    shards = data(run)
    with run.making("teacher"):
        cfg = TeacherRun(
            without_student(run.cfg, "chunk"), run.cfg.teacher
        )  # masking depends on the student's chunk only
        first, phase2 = (shards.clips(which) for which in (run.cfg.data.phase1_clips, run.cfg.data.phase2_clips))
        inputs = TeacherInputs(first, shards.heldout)
        if run.cfg.teacher.phase2_steps and phase2 != first:
            inputs = TwoSetInputs(first, shards.heldout, phase2=phase2)
        start = weights_stamp(run.cfg.teacher.init, "dit")
        for trained_on in (first, phase2):
            require_shards(trained_on, run.cfg.ranks(TEACHER), run.cfg.loader.workers)
        return run.step(TEACHER, cfg, replace(inputs, loader=run.cfg.loader), key_inputs=(inputs, start))
