"""ZeRO 3 gathers a model's weights once a pass, knows the order of the calls, and trains as one process does: two
processes, the real methods."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from msmodel.causal import CausalDiT
from tests.unit.stages.train.methods import alive
from tests.unit.stages.train.ranks import MODEL, Task, perform, prepare, run

STEADY = 4  # steps after which the order of calls has been recorded, before and after a generator's update
RECOMPUTED = {"checkpoint_layers": True, "keep_attention": True}
TASKS = [
    Task("teacher", "teacher", 7, compute={"zero_stage": 3}, changes=RECOMPUTED),
    Task("adapt", "adapt", 5, compute={"zero_stage": 3}, changes=RECOMPUTED),
    Task("dmd", "dmd", 8, compute={"zero_stage": 3}, changes=RECOMPUTED | {"teacher_placement": "shard"}),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gathers")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def losses(root):
    return run(TASKS, root, world=2)


@pytest.fixture(scope="module")
def steps(root, losses):
    """By training, and by step: what each sharded module gathered, in whole models, and how often its order changed."""
    whole = sum(p.numel() for p in alive(CausalDiT, MODEL).parameters())
    found = {}
    for name, trained in losses.items():
        marks = json.loads((root / name / "gathers.json").read_text())
        assert len(marks) == len(trained)
        both = [[column(a, b, "elements"), column(a, b, "invalidated")] for a, b in pairwise(marks)][STEADY - 1 :]
        found[name] = [[(n / whole, times) for n, times in zip(*step, strict=True)] for step in both]
    return found


def column(before: dict, after: dict, name: str) -> list[int]:
    """What one step added, for each sharded module."""
    return [now - then for now, then in zip(after[name], before[name], strict=True)]


@pytest.mark.slow
def test_a_teacher_is_gathered_once_for_each_of_its_two_passes(steps):
    for (gathered, changed), *others in steps["teacher"]:
        assert not others
        assert 0 < gathered < 1.3 * 2
        assert changed == 0


@pytest.mark.slow
def test_in_dmd_the_teacher_is_gathered_for_three_scores_and_the_critic_for_its_passes(steps):
    """The generator runs chunk by chunk, up to an exit step that is sampled: it is not gathered at all."""
    for step, ((teacher, changed), (critic, changed_too)) in enumerate(steps["dmd"], start=STEADY):
        updated = step % 2  # the generator, in every second step
        assert teacher <= 1.3 * 3 * updated
        assert bool(teacher) == updated
        assert 0 < critic < 1.3 * (2 + updated)
        assert changed == changed_too == 0


@pytest.mark.slow
def test_in_adaptation_no_weights_are_gathered_chunk_by_chunk(steps):
    assert all(step == [] for step in steps["adapt"])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_losses_are_those_of_one_process(task, root, losses):
    alone = perform(replace(task, name=f"{task.name}-alone", compute={}), root)
    assert len(alone) == task.steps
    for (step, values), (_, expected) in zip(losses[task.name], alone, strict=True):
        assert values == pytest.approx(expected, abs=1e-5), step
