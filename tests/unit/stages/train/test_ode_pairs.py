"""Trajectories: states on the student's timesteps, resumable file by file, read back as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from msmodel import flow, guidance
from msmodel.dit import WanDiT
from stages.contracts import StageError
from stages.records import OdePairs
from stages.train.conditioning import condition, draw_tracks
from stages.train.method import RngStreams
from stages.train.ode_pairs import TRAIN, PairLoader, make_pairs, pair_path, read_pairs, trajectories
from stages.train.sampling import Guidance, sample_teacher
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import FakeLoader, clips
from tests.unit.stages.train.methods import alive, frozen, ode_run, pairs_in, saying, seeing, small


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_states_lie_on_the_students_timesteps(image):
    """Integrating on from a stored state, from the time it is said to have, gives the stored endpoint."""
    model = small(image)
    cfg, dit, batch = ode_run(model), frozen(alive(WanDiT, model)), clips(model, 2)
    rng = RngStreams(0, 0)
    states, endpoint, _, cond = trajectories(dit, batch, cfg, rng)
    times = flow.student_timesteps(3, model.dit.shift)
    grid = flow.solver_times(6, model.dit.shift)
    assert states.shape[1] == 3
    assert states[:, 0].std() == pytest.approx(1.0, abs=0.1)  # t = 1: noise
    later = slice(int(model.image_alone), None)
    for k, start in enumerate(times):
        x = states[:, k]
        for t, after in zip(grid[2 * k : -1], grid[2 * k + 1 :], strict=True):
            assert t <= start
            at = torch.full((2,), t)
            x = x + (after - t) * guidance.joint(dit, x, at, cond, 3.0, 1.5)
        assert torch.allclose(x[:, :, later], endpoint[:, :, later], atol=1e-5)
    if model.image_alone:
        assert torch.equal(endpoint[:, :, 0], cond.image[:, :, 0])


def test_guidance_matters_and_only_first_frame_text_and_tracks_are_used():
    model = small()
    cfg, dit, batch = ode_run(model), frozen(alive(WanDiT, model)), clips(model, 2)
    _, endpoint, _, _ = trajectories(dit, batch, cfg, RngStreams(0, 0))
    other = replace(batch, latents=torch.randn_like(batch.latents))
    assert torch.equal(endpoint, trajectories(dit, other, cfg, RngStreams(0, 0))[1])
    weak = replace(cfg, guidance=Guidance(text=1.0, track=0.0))
    assert not torch.allclose(endpoint, trajectories(dit, batch, weak, RngStreams(0, 0))[1])


def test_trajectories_are_guided_away_from_the_text_that_is_configured():
    dit, endpoints = frozen(alive(WanDiT, small())), []
    for null in ("zeros", "empty", "negative"):
        model = saying(null)
        endpoints.append(trajectories(dit, clips(model, 2), ode_run(model), RngStreams(0, 0))[1])
    assert all(not torch.allclose(a, b, atol=1e-5) for a, b in zip(endpoints, endpoints[1:], strict=False))


def test_a_file_gives_back_states_and_track_map(tmp_path):
    model = small()
    cfg, dit = ode_run(model), frozen(alive(WanDiT, model))
    make_pairs(dit, FakeLoader(model), TRAIN, 2, tmp_path, cfg, FakeContext(tmp_path))
    back = read_pairs([pair_path(tmp_path, TRAIN, i) for i in range(2)], model)
    batch, rng = clips(model, 2, seed=1), RngStreams(3, 0)
    states, endpoint, _, _ = trajectories(dit, batch, cfg, rng)
    cond = condition(batch, draw_tracks(batch, cfg.ode.augment, model, rng), model)
    assert torch.allclose(back.states, states, atol=5e-3)
    assert torch.allclose(back.endpoint, endpoint, atol=5e-3)
    assert torch.allclose(back.cond.tracks, cond.tracks, atol=1e-3)
    assert torch.equal(back.cond.tracks != 0, cond.tracks.half().float() != 0)


def test_existing_files_are_not_made_again_and_missing_ones_come_out_the_same(tmp_path):
    model = small()
    cfg, dit = ode_run(model), frozen(alive(WanDiT, model))

    def make():
        make_pairs(dit, FakeLoader(model), TRAIN, 3, tmp_path, cfg, FakeContext(tmp_path))

    make()
    paths = sorted(tmp_path.glob("pairs-*.safetensors"))
    assert [p.name for p in paths] == [f"pairs-{i:06d}.safetensors" for i in range(3)]
    whole, kept = paths[2].read_bytes(), paths[0].stat().st_mtime_ns
    paths[2].unlink()
    make()
    assert paths[2].read_bytes() == whole
    assert paths[0].stat().st_mtime_ns == kept


def test_two_ranks_share_the_work_without_overlap(tmp_path):
    model = small()
    cfg, dit = ode_run(model), frozen(alive(WanDiT, model))
    for rank in range(2):
        before = len(list(tmp_path.glob("pairs-*")))
        ctx = FakeContext(tmp_path, rank=rank, world_size=2)
        make_pairs(dit, FakeLoader(model), TRAIN, 5, tmp_path, cfg, ctx)
        assert before == 3 * rank  # rank 0 makes 0, 1 and 4
    assert len(list(tmp_path.glob("pairs-*"))) == 5


def test_an_untrained_teacher_that_explodes_is_reported(tmp_path):
    model = small()
    dit = frozen(alive(WanDiT, model))
    dit.proj_out.weight.data.fill_(float("inf"))
    with pytest.raises(StageError, match="not finite"):
        make_pairs(dit, FakeLoader(model), TRAIN, 2, tmp_path, ode_run(model), FakeContext(tmp_path))


def test_solver_steps_must_hold_the_students_timesteps():
    cfg = ode_run(small())
    assert cfg.problems() == []
    bad = replace(cfg, ode=replace(cfg.ode, solver_steps=50))
    assert "not a multiple of student.steps (3)" in bad.problems()[0]


def test_loader_covers_each_epoch_once_shares_it_and_resumes(tmp_path):
    model = small()
    pairs = pairs_in(tmp_path, model)
    ends = {float(read_pairs([pair_path(tmp_path, TRAIN, i)], model).endpoint.sum()): i for i in range(4)}

    def seen(loader, batches):
        it = iter(loader)
        return [[ends[float(e.sum())] for e in next(it).endpoint] for _ in range(batches)]

    def flat(lists):
        return [i for some in lists for i in some]

    def new(**place):
        return PairLoader(pairs, 1, model, seed=0, **({"rank": 0, "world_size": 1} | place))

    order = seen(new(), 8)
    assert sorted(flat(order[:4])) == sorted(flat(order[4:])) == [0, 1, 2, 3]
    assert order[:4] != order[4:]
    ranks = [seen(new(rank=r, world_size=2), 2) for r in range(2)]
    assert sorted(flat(ranks[0] + ranks[1])) == [0, 1, 2, 3]
    late = new()
    late.load_state_dict({"taken": 3})
    assert seen(late, 3) == order[3:6]


def test_too_few_pairs_for_the_batch_is_an_error_before_training():
    with pytest.raises(StageError, match=r"raise ode\.pairs"):
        PairLoader(OdePairs("", 4, (1.0,), ""), 8, small(), 0, 0, 1)


def test_sampling_restores_the_given_image():
    model = small("first_latent")
    dit, batch = frozen(alive(WanDiT, model)), clips(model, 1)
    cond = condition(batch, draw_tracks(batch, ode_run(model).ode.augment, model, RngStreams(0, 0)), model)
    x = sample_teacher(dit, cond, torch.randn_like(batch.latents), 2, None, model)
    assert torch.equal(x[:, :, 0], batch.image[:, :, 0])


def test_a_file_gives_back_image_tokens_and_one_without_them_is_a_clear_error(tmp_path):
    model = seeing()
    cfg, dit, batch = ode_run(model), frozen(alive(WanDiT, model)), clips(model, 2, seed=1)
    make_pairs(dit, FakeLoader(model), TRAIN, 2, tmp_path, cfg, FakeContext(tmp_path))
    paths = [pair_path(tmp_path, TRAIN, i) for i in range(2)]
    back = read_pairs(paths, model)
    assert back.cond.image_tokens is not None and batch.image_tokens is not None
    assert torch.equal(back.cond.image_tokens, batch.image_tokens.half().float())
    blind = replace(batch, image_tokens=torch.zeros_like(batch.image_tokens))
    ends = [trajectories(dit, b, cfg, RngStreams(3, 0))[1] for b in (batch, blind)]
    assert torch.allclose(back.endpoint, ends[0], atol=5e-3) and not torch.allclose(ends[0], ends[1], atol=5e-3)
    assert read_pairs(paths, small()).cond.image_tokens is None
    (tmp_path / "blind").mkdir()
    make_pairs(frozen(alive(WanDiT, small())), FakeLoader(small()), TRAIN, 1, tmp_path / "blind", ode_run(small()),
               FakeContext(tmp_path))  # fmt: skip
    with pytest.raises(ValueError, match=r"dit\.clip_dim=20, but this data holds no CLIP tokens"):
        read_pairs([pair_path(tmp_path / "blind", TRAIN, 0)], model)
