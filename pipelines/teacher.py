"""make teacher: the backbone learns to follow tracks."""

from __future__ import annotations

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
        return run.step(TEACHER, cfg, inputs, key_inputs=(inputs, start))
