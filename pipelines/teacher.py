"""make teacher: the backbone learns to follow tracks."""

from __future__ import annotations

from dataclasses import replace

from stages.data.shards import require_shards
from stages.records import Checkpoint
from stages.train.teacher import TEACHER, TeacherInputs, TeacherRun

from .data import data
from .stamps import weights_stamp
from .wiring import Run, without_student

STAGES = (TEACHER,)


def teacher(run: Run) -> Checkpoint:
    """Shards -> teacher."""
    shards = data(run)
    with run.making("teacher"):
        cfg = TeacherRun(
            without_student(run.cfg, "chunk"), run.cfg.teacher
        )  # of the student, masking sees the chunk only
        inputs = TeacherInputs(shards.train, shards.heldout)
        start = weights_stamp(run.cfg.teacher.init, "dit")
        require_shards(shards.train, run.cfg.ranks(TEACHER), run.cfg.loader.workers)
        return run.step(TEACHER, cfg, replace(inputs, loader=run.cfg.loader), key_inputs=(inputs, start))
