"""Bytes that a rank sends in a step, by ZeRO stage."""

from __future__ import annotations

import pytest

from pipelines.commands.plan.communication import Passes, frozen_traffic, training_traffic

N, RANKS = 8 * 10**9, 8  # so that 7 billion elements are sent in a ring
STEP = Passes(micro_steps=16, each=2)


@pytest.mark.parametrize(
    ("stage", "gradients", "weights"),
    [
        (0, 2 * 4 * 7, 0),
        (1, 4 * 7, 2 * 7),
        (2, 16 * 4 * 7, 2 * 7),
        (3, 16 * 4 * 7, 16 * 2 * 2 * 7),
    ],
)
def test_gigabytes_of_a_step_in_bfloat16_with_float32_gradients(stage, gradients, weights):
    traffic = training_traffic(N, RANKS, stage, STEP, weight_bytes=2)
    assert (traffic.gradients / 1e9, traffic.weights / 1e9) == pytest.approx((gradients, weights))
    assert traffic.total == traffic.gradients + traffic.weights


@pytest.mark.parametrize("stage", range(4))
def test_one_rank_sends_nothing(stage):
    assert training_traffic(N, 1, stage, STEP, weight_bytes=2).total == 0


def test_a_sharded_teacher_is_gathered_for_its_three_scores_and_never_reduced():
    traffic = frozen_traffic(N, RANKS, Passes(micro_steps=1, each=3), weight_bytes=2)
    assert (traffic.gradients, traffic.weights) == (0, pytest.approx(3 * 2 * 7e9))
