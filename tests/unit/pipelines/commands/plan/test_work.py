"""What a step is made of: the outcomes of its random decisions, and how often each module is updated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.settings import load
from pipelines.commands.plan import steps
from pipelines.commands.plan.loads import case, losses
from pipelines.commands.plan.steps import Choice


@pytest.mark.slow
def test_the_work_of_dmd_is_the_mean_over_its_exit_steps():
    cfg = load("debug", ["clip.frames=9", "student.steps=3", "ode.solver_steps=6", "dmd.batch=2"])
    given = case(cfg, "dmd", gpu=False)
    for module, mean in losses(given).items():
        each = [steps._loss_at(given, module, Choice(1.0, 0, ((e + 0.5) / 3,))) for e in range(3)]
        assert mean.flops == pytest.approx(sum(cost.flops for cost in each) / 3, rel=1e-9)
        assert mean.peak == pytest.approx(max(cost.peak for cost in each), rel=0.01)


@pytest.mark.slow
def test_five_critic_updates_come_for_one_of_the_generator():
    given = case(load("debug", ["dmd.ratio=5"]), "dmd", gpu=False)
    assert steps.updates(given) == {"generator": 0.2, "critic": 1.0}
    adversarial = case(load("debug", ["tiny_vae.adversarial_weight=0.1"]), "tiny_vae", gpu=False)
    assert steps.updates(adversarial) == {"decoder": 1.0, "discriminator": 1.0}
    assert steps.parameters_of(adversarial) > steps.parameters_of(case(load("debug"), "tiny_vae", gpu=False))


@pytest.mark.slow
def test_the_outcomes_of_a_teachers_step_are_its_phases():
    cfg = load("debug", ["clip.frames=9"])
    own = replace(cfg.teacher, group_steps=1, phase1_steps=2, phase2_steps=1, context_share=0.5)
    given = replace(case(cfg, "teacher", gpu=False), own=own)
    shares = [choice.share for choice in steps.choices(given)]
    assert shares == [0.375, 0.375, 0.125, 0.125]
    costs = [steps._loss_at(given, "dit", choice).flops for choice in steps.choices(given)]
    assert costs[1] < costs[0]  # a chunk with its context is shorter than the clip
    assert costs[2] < costs[3]  # two frames, and the largest group
    mean = sum(share * flops for share, flops in zip(shares, costs, strict=True))
    assert steps.mean_loss(given, "dit").flops == pytest.approx(mean)
