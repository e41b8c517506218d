"""The bench at a tiny size: every pair is timed, the shifting cache computes the same, the twin is diffusers' model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from msmodel.cache import ChunkCache
from msmodel.causal import CausalDiT
from msmodel.rollout import rollout
from stages.eval import bench
from tests.fakes import FakeContext
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config


@pytest.mark.slow
@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_every_pair_and_part_is_timed(image, tmp_path):
    ctx = FakeContext(tmp_path, seed=7)
    made = bench.run(bench.BenchRun(tiny_config(image), bench.BenchConfig(rounds=2, tracks=5, tiny_width=2)), None, ctx)
    found = json.loads(Path(made.file).read_text())
    assert len(found["pairs"]) == 6 and len(found["parts"]) == 3
    assert all(v > 0 for pair in found["pairs"].values() for v in pair.values())
    assert all(v > 0 for v in found["parts"].values())
    assert ctx.metrics.keys() == found["pairs"].keys() | {f"{name}_ms" for name in found["parts"]}
    assert any(line.startswith("recomputed_over_cached: ") for line in ctx.logged)


def test_a_ratio_is_of_the_first_to_the_second():
    """Taking turns on one clock."""
    spent = iter([1.0, 5.0, 2.0, 10.0, 3.0, 15.0])
    clock = [0.0]

    def work() -> None:
        clock[0] += next(spent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "now", lambda device: clock[0])
        found = bench.paired(work, work, 2, torch.device("cpu"))
    assert found == {"a_ms": 2500.0, "b_ms": 12500.0, "ratio": pytest.approx(0.2)}


@torch.no_grad()
def test_the_shifting_cache_differs_in_cost_only():
    student = randomise(CausalDiT(tiny_config(sink=1, window=2)).double())
    cond, noise = (
        conditioning(student.cfg, 1, 14, dtype=torch.float64),
        gaussian(student.cfg, 1, 14, dtype=torch.float64),
    )
    made = []
    for kind in (ChunkCache, bench.ShiftingCache):
        student.cache_type = kind
        made.append(rollout(student, cond, noise, (1.0, 0.5), student.cfg.student, torch.Generator().manual_seed(0)))
    assert torch.equal(*made)
