"""Two sets of clips in one training: phase 2 sees its own alone, and resuming is exact on both sides of the change."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from msmodel.dit import WanDiT
from stages.train import teacher
from stages.train.phases import LoaderThenLoader
from stages.train.publish import open_loader
from tests.unit.stages.train.fakes import (
    FakeContext,
    clips,
    decode,
)
from tests.unit.stages.train.methods import (
    alive,
    small,
    teacher_config,
)
from tests.unit.stages.train.shards import shard_set
from tests.unit.stages.train.test_resume import (
    DyingContext,
    Stopped,
)

MODEL = small()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> teacher.TwoSetInputs:
    folder = tmp_path_factory.mktemp("sets")
    first, then = (shard_set(folder / p, MODEL, shards, prefix=p) for p, shards in (("real", 3), ("made", 2)))
    return teacher.TwoSetInputs(first, shard_set(folder / "held", MODEL, 1, split="heldout"), phase2=then)


def ids(loader, count: int) -> list[tuple[str, ...]]:
    return [b.clip_ids for b in islice(loader, count)]


def test_phase_2_sees_its_own_clips_alone(inputs, tmp_path):
    cfg = teacher_config(group_steps=1, steps=2, phase2_steps=3, global_batch=4)  # two micro-steps of two clips
    seen = ids(teacher.open_phases(cfg, inputs, FakeContext(tmp_path)), 12)
    assert [{i[:4] for i in batch} for batch in seen] == [{"real"}] * 6 + [{"made"}] * 6
    first, then = (open_loader((s,), 2, inputs.loader, FakeContext(tmp_path), 2) for s in (inputs.train, inputs.phase2))
    assert seen == ids(first, 6) + ids(then, 6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_position_is_exact_before_at_and_after_the_change_on_any_number_of_ranks(inputs, tmp_path, steps):
    cfg = teacher_config(group_steps=0, steps=2, phase2_steps=3, batch=1, global_batch=2)

    def opened(rank: int, ranks: int) -> LoaderThenLoader:
        loader = teacher.open_phases(cfg, inputs, replace(FakeContext(tmp_path), rank=rank, world_size=ranks))
        assert isinstance(loader, LoaderThenLoader)
        return loader

    whole = ids(opened(0, 1), 10)
    for before, after in ((1, 1), (2, 1), (1, 2)):
        begun, resumed = opened(0, before), [opened(rank, after) for rank in range(after)]
        ids(begun, 2 * steps // before)
        for loader in resumed:
            loader.load_state_dict(begun.state_dict())
        got = [ids(loader, (10 - 2 * steps) // after) for loader in resumed]
        assert [batch for turn in zip(*got, strict=True) for batch in turn] == whole[2 * steps :], (before, after)


@pytest.mark.parametrize("steps", [1, 2])  # the save after step 2 lies in phase 2, or at its beginning
def test_four_steps_equal_two_and_two_across_the_phases(inputs, tmp_path, steps):
    cfg = teacher_config(group_steps=0, steps=steps, phase2_steps=4 - steps, save_steps=2, ema_decay=0.0)

    def trained(ctx: FakeContext) -> torch.nn.Module:
        dit = alive(WanDiT, MODEL)
        loader = teacher.open_phases(cfg, inputs, ctx)
        teacher.fit(teacher.TeacherRun(MODEL, cfg), dit, loader, clips(MODEL, 2, seed=99), decode, ctx)
        return dit

    whole = trained(FakeContext(tmp_path / "whole"))
    with pytest.raises(Stopped):
        trained(DyingContext(tmp_path / "parts"))
    again = FakeContext(tmp_path / "parts")
    parts = trained(again)
    assert any("resumed after step 2" in line for line in again.said)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_what_a_loader_left_out_is_counted_over_both(inputs, tmp_path):
    loader = teacher.open_phases(teacher_config(), inputs, FakeContext(tmp_path))
    loader.first._skipped, loader.then._skipped = {"a": ""}, {"b": "", "c": ""}
    assert loader.metrics() == {"loader/skipped_shards": 3.0}
