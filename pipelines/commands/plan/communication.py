"""Computes the bytes that one rank sends in a training step: gradients that are reduced, and weights that are gathered.

Collectives are counted as rings, which send the least. With N bytes in all and R ranks, an all-gather and a
reduce-scatter each send (R - 1) / R x N bytes per rank, and an all-reduce both.

    ZeRO   gradients                          weights
    0      all-reduce, once a step            none: every rank updates all of them
    1      reduce-scatter, once a step        all-gather, once a step
    2      reduce-scatter, each micro-step    all-gather, once a step
    3      reduce-scatter, each micro-step    all-gather, for each pass of each micro-step

A pass is one forward or one backward pass through all layers; a layer that is recomputed in the backward pass is not
gathered again. DeepSpeed keeps weights between two passes that follow closely, so that ZeRO 3 gathers less than this
(tests/unit/stages/train/test_gathers.py). Sources: Rajbhandari et al. 2020 (ZeRO), section 7, and DeepSpeed 0.19.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """The bytes that one rank sends in one step. gradients: for their reduction. weights: for gathering them."""

    gradients: float
    weights: float

    @property
    def total(self) -> float:
        return self.gradients + self.weights


@dataclass(frozen=True)
class Passes:
    """How a step uses a model. micro_steps: number of accumulated micro-steps. each: passes through all layers in one
    micro-step, forward and backward."""

    micro_steps: int
    each: float


def training_traffic(
    parameters: int, ranks: int, stage: int, passes: Passes, weight_bytes: int, gradient_bytes: int = 4
) -> Traffic:
    """Returns the traffic of a model that is trained under a ZeRO stage (ComputeConfig.stage_of, at least 2 in bf16).

    weight_bytes, gradient_bytes: of one element, as it is gathered and as it is reduced.
    """
    share = (ranks - 1) / ranks
    reductions = 2 if stage == 0 else passes.micro_steps if stage > 1 else 1
    gathers = (0.0, 1.0, 1.0, passes.micro_steps * passes.each)[stage]
    return Traffic(share * parameters * gradient_bytes * reductions, share * parameters * weight_bytes * gathers)


def frozen_traffic(parameters: int, ranks: int, passes: Passes, weight_bytes: int) -> Traffic:
    """Returns the traffic of a frozen model that is sharded over the ranks (dmd.teacher_placement=shard)."""
    return Traffic(0.0, training_traffic(parameters, ranks, 3, passes, weight_bytes, 0).weights)
