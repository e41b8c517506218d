"""The teacher's curriculum, and the base before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch
from safetensors.torch import save_file

from msmodel.batch import Batch
from msmodel.dit import WanDiT
from msmodel.io.backbones import load_backbone
from msmodel.io.weights import save_weights
from stages.train import base, teacher
from stages.train.conditioning import without_any_tracks
from stages.train.method import RngStreams
from stages.train.publish import fresh, initial_dit, open_loader
from stages.train.teacher import LoaderThenLoader
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import FakeLoader, clips, decode
from tests.unit.stages.train.methods import AUGMENT, alive, seeing, small, teacher_config, train_base, train_teacher
from tests.unit.stages.train.shards import shard_set
from tests.unit.stages.train.test_resume import DyingContext, Stopped


def test_phases_and_total():
    cfg = teacher_config(group_steps=2, phase1_steps=3, phase2_steps=4)
    assert [cfg.phase(s) for s in range(cfg.total_steps)] == ["groups"] * 2 + ["clips"] * 3 + ["masked"] * 4


def snapshots(tmp_path, **changes):
    """Parameters after phase 1 and at the end, of the raw weights (no averaging)."""
    model = small()
    one = train_teacher(FakeContext(tmp_path / "a"), model, ema_decay=0.0, phase2_steps=0, **changes)
    two = train_teacher(FakeContext(tmp_path / "b"), model, ema_decay=0.0, phase2_steps=2, **changes)
    return dict(one.named_parameters()), dict(two.named_parameters())


def test_the_track_head_is_frozen_in_phase_2_and_the_rest_is_not(tmp_path):
    before, after = snapshots(tmp_path, weight_decay=0.1)
    for name in before:
        same = torch.equal(before[name], after[name])
        assert same == name.startswith("track_head."), name


def test_the_track_head_learns_in_phase_1(tmp_path):
    model = small()
    start = alive(WanDiT, model).track_head.weight
    end = train_teacher(FakeContext(tmp_path), model, ema_decay=0.0, phase2_steps=0).track_head.weight
    assert not torch.equal(start, end)


def test_learning_rates_of_the_phases():
    model = small()
    cfg = teacher_config(group_steps=1, phase1_steps=1, phase2_steps=1, lr=1e-3, phase2_lr=1e-5)
    dit = alive(WanDiT, model)
    probe = teacher.Probe(clips(model, 2), model, cfg.augment, decode, 0)
    method = teacher.TeacherMethod(dit, model, cfg, probe)
    rates = [[method.lr("dit", group, step) for group in ("body", "head")] for step in range(3)]
    assert rates == [[1e-3, 1e-3], [1e-3, 1e-3], [1e-5, 0.0]]


def test_masking_reaches_the_model_in_phase_2_only(tmp_path, monkeypatch):
    asked = []
    whole = teacher.training_conditioning

    def watched(batch, augment, model, rng, masked):
        asked.append(masked)
        return whole(batch, augment, model, rng, masked)

    monkeypatch.setattr(teacher, "training_conditioning", watched)
    train_teacher(FakeContext(tmp_path), small(), group_steps=1, phase1_steps=2, phase2_steps=2)
    assert asked == [False, False, False, True, True]


def test_the_gap_is_measured_on_fixed_inputs_and_is_zero_for_a_model_blind_to_tracks():
    model = small()
    cfg = teacher_config()
    probe = teacher.Probe(clips(model, 2), model, cfg.augment, decode, 0)
    seeing, blind = alive(WanDiT, model), alive(WanDiT, model)
    blind.track_slice.zero_()
    assert probe.gaps(seeing) == probe.gaps(seeing)
    assert probe.gaps(seeing)["gap/t095"] != 0
    gaps = {n: v for n, v in probe.gaps(blind).items() if n.startswith("gap/")}
    assert gaps == {"gap/t095": 0.0, "gap/t080": 0.0, "gap/group_t095": 0.0, "gap/group_t080": 0.0}


def test_contact_sheets_come_with_whole_clips_not_with_groups(tmp_path):
    ctx = FakeContext(tmp_path)
    train_teacher(ctx, small(), group_steps=2, phase1_steps=2, phase2_steps=0, validate_steps=1)
    assert [step for key, step in ctx.images] == [2, 3, 4]  # after 2 pair steps the next step is a whole clip's
    picture = ctx.images["teacher", 4]
    assert picture.shape == (3 * 4, 6 * 4, 3)  # rows: real, with tracks, without


def shown(batch: Batch) -> Batch:
    """Latents that are a picture of the tracks: 1 where a track is, -1 elsewhere. Six tracks, always visible."""
    xy, seen = batch.xy_px[:, :, :6] / 2, torch.ones_like(batch.visible[:, :, :6])
    cell = (xy / 4).floor().long()
    pixel = torch.full((xy.shape[0], 13, 4, 4), -1.0)
    for clip, frame, track in torch.cartesian_prod(torch.arange(xy.shape[0]), torch.arange(13), torch.arange(6)):
        column, row = cell[clip, frame, track]
        if 0 <= column < 4 and 0 <= row < 4:
            pixel[clip, frame, row, column] = 1.0
    latents = pixel[:, [0, *range(1, 13, 2)], None].transpose(1, 2).expand_as(batch.latents)
    return replace(batch, latents=latents, xy_px=xy, visible=seen)


class Shown(FakeLoader):
    def __iter__(self) -> Iterator[Batch]:
        return map(shown, super().__iter__())


@pytest.mark.slow
def test_a_teacher_learns_to_use_tracks_on_a_task_that_needs_them(tmp_path):
    model, ctx = small(), FakeContext(tmp_path)
    changes = {"phase1_steps": 60, "batch": 8, "lr": 5e-3, "validate_steps": 1000, "picture_clips": 0, "log_steps": 40}
    augment = replace(AUGMENT, tracks_low=6, tracks_high=6, text_dropout=0.0)
    cfg = teacher_config(group_steps=0, phase2_steps=0, augment=augment, **changes)
    heldout = shown(clips(model, 8, 99))
    dit = fresh(WanDiT, model, 0)
    metrics = teacher.fit(teacher.TeacherRun(model, cfg), dit, Shown(model, batch=8), heldout, decode, ctx)
    assert metrics["gap/t080"] > 0.002  # exactly 0 for a model that is blind to tracks


def test_base_gives_a_backbone_that_a_teacher_starts_as(tmp_path):
    model = small()
    dit = train_base(FakeContext(tmp_path), model)
    assert isinstance(dit, WanDiT)
    save_weights(base.backbone(dit), tmp_path / "base", {})
    start = fresh(WanDiT, model, 5)
    load_backbone(start, tmp_path / "base")
    batch = clips(model, 2)
    cond = without_any_tracks(batch, model)
    t = torch.tensor([0.3, 0.9])
    assert torch.equal(start(batch.latents, t, cond), dit(batch.latents, t, cond))
    tracks = torch.randn_like(cond.tracks)
    assert torch.equal(start(batch.latents, t, replace(cond, tracks=tracks)), dit(batch.latents, t, cond))


def test_base_leaves_the_track_head_alone(tmp_path):
    model = small()
    dit = train_base(FakeContext(tmp_path), model, weight_decay=0.5)
    assert torch.equal(dit.track_head.weight, fresh(WanDiT, model, 0).track_head.weight)


def test_config_problems():
    bad = teacher_config(weighting="none", picture_clips=9, group_steps=-1)
    assert [p.split(":")[0] for p in bad.problems()] == [
        "teacher.group_steps",
        "teacher.weighting",
        "teacher.picture_clips",
    ]


def test_missing_embedded_or_local_weights_are_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no safetensors weights"):
        initial_dit(small(), str(tmp_path), None, 0)
    dit, report = initial_dit(small(), "random", None, 0)
    assert report is None and not dit.track_slice.any()


@pytest.mark.slow
def test_weights_that_are_not_understood_are_refused_unless_asked_for(tmp_path):
    dit = alive(WanDiT, small())
    save_file(dit.state_dict() | {"odd": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not understood: odd"):
        initial_dit(small(), str(tmp_path), None, 0)
    _, report = initial_dit(small(), str(tmp_path), None, 0, strict=False)
    assert report.unused == ("odd",)


def method_of(**changes) -> teacher.TeacherMethod:
    model = small()
    cfg = teacher_config(picture_clips=0, **changes)
    dit = alive(WanDiT, model, 1)
    return teacher.TeacherMethod(dit, model, cfg, teacher.Probe(clips(model, 2, 99), model, AUGMENT, decode, 0))


def test_a_teacher_that_ignores_tracks_is_reported_from_the_middle_on(tmp_path):
    m = method_of(phase1_steps=10, group_steps=0, phase2_steps=0)
    ignores, uses = {teacher.ALARM: 0.0}, {teacher.ALARM: 0.01}
    assert m.alarms(4, ignores) == ()
    assert "ignores them" in m.alarms(5, ignores)[0]
    assert m.alarms(10, uses) == ()
    ctx = FakeContext(tmp_path)
    model = small()
    deaf = fresh(WanDiT, model, 0)  # the track slice is zero
    heldout = clips(model, 2, 99)
    cfg = teacher.TeacherRun(
        model, teacher_config(picture_clips=0, lr=0.0, phase1_steps=2, group_steps=0, phase2_steps=0)
    )
    teacher.fit(cfg, deaf, FakeLoader(model), heldout, decode, ctx)
    assert any("ignores them" in line for line in ctx.logged)


def test_a_share_of_the_steps_sees_clean_context_and_groups_do_not(monkeypatch):
    taken = []
    monkeypatch.setattr(teacher, "context_loss", lambda *args: taken.append(1) or torch.zeros(()))
    for share, expected in ((0.0, 0), (1.0, 6), (0.5, 3)):
        taken.clear()
        m = method_of(phase1_steps=4, group_steps=2, phase2_steps=2, context_share=share)
        for step in range(m.cfg.total_steps):
            m.loss("dit", clips(m.model, 2), RngStreams(0, step))
        assert abs(len(taken) - expected) <= (1 if share == 0.5 else 0), share


@pytest.mark.parametrize("context_share", [0.0, 1.0])
def test_every_phase_reads_image_tokens(context_share):
    """Zeros in their place, or those of another clip, give another loss."""
    model = seeing()
    cfg = teacher_config(group_steps=1, phase1_steps=1, phase2_steps=1, context_share=context_share)
    dit, batch = alive(WanDiT, model), clips(model, 2)
    method = teacher.TeacherMethod(dit, model, cfg, teacher.Probe(clips(model, 2, 9), model, cfg.augment, decode, 0))
    assert batch.image_tokens is not None
    for step in range(3):
        given = [batch.image_tokens, torch.zeros_like(batch.image_tokens), batch.image_tokens.flip(0)]
        values = {method.loss("dit", replace(batch, image_tokens=c), RngStreams(0, step)).value.item() for c in given}
        assert len(values) == 3
    method.loss("dit", batch, RngStreams(0, 1)).value.backward()
    assert dit.condition_embedder.image_embedder.norm2.weight.grad.any()


MODEL = small()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> teacher.TwoSetInputs:
    folder = tmp_path_factory.mktemp("sets")
    first, then = (shard_set(folder / p, MODEL, shards, prefix=p) for p, shards in (("real", 3), ("made", 2)))
    return teacher.TwoSetInputs(first, shard_set(folder / "held", MODEL, 1, split="heldout"), phase2=then)


def ids(loader, count: int) -> list[tuple[str, ...]]:
    return [b.clip_ids for b in islice(loader, count)]


def test_phase_2_sees_its_own_clips_alone(inputs, tmp_path):
    cfg = teacher_config(group_steps=1, phase1_steps=2, phase2_steps=3, global_batch=4)  # two micro-steps of two clips
    seen = ids(teacher.open_phases(cfg, inputs, FakeContext(tmp_path)), 12)
    assert [{i[:4] for i in batch} for batch in seen] == [{"real"}] * 6 + [{"made"}] * 6
    first, then = (open_loader((s,), 2, inputs.loader, FakeContext(tmp_path), 2) for s in (inputs.train, inputs.phase2))
    assert seen == ids(first, 6) + ids(then, 6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_position_is_exact_before_at_and_after_the_change_on_any_number_of_ranks(inputs, tmp_path, steps):
    cfg = teacher_config(group_steps=0, phase1_steps=2, phase2_steps=3, batch=1, global_batch=2)

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


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])  # the save after step 2 lies in phase 2, or at its beginning
def test_four_steps_equal_two_and_two_across_the_phases(inputs, tmp_path, steps):
    cfg = teacher_config(group_steps=0, phase1_steps=steps, phase2_steps=4 - steps, save_steps=2, ema_decay=0.0)

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
    assert any("resumed after step 2" in line for line in again.logged)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_what_a_loader_left_out_is_counted_over_both(inputs, tmp_path):
    loader = teacher.open_phases(teacher_config(), inputs, FakeContext(tmp_path))
    loader.first._skipped, loader.then._skipped = {"a": ""}, {"b": "", "c": ""}
    assert loader.metrics() == {"loader/skipped_shards": 3.0}
