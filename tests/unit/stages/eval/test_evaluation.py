"""The whole evaluation on a tiny world, stage by stage, and the contract of report.json."""

import json
import math
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from stages.contracts import StageError
from stages.eval import (
    EvalConfig,
    GenerateRun,
    LongRunInputs,
    LongRunRun,
    MeasureRun,
    ReportInputs,
    ReportRun,
    SelectRun,
    SpeedInputs,
    SpeedRun,
    generate,
    i3d,
    long_run,
    measure,
    plan,
    report,
    speed,
)
from stages.eval import select as selecting
from stages.eval.counterfactual import KINDS
from stages.eval.items import Generated, Measured, Selection, read_tracks, read_videos
from stages.eval.report import flat
from stages.eval.streaming import NoDecoder, clip_stream
from stages.records import Checkpoint, ShardSet
from tests.fakes import FakeContext
from tests.unit.stages.eval.world import FakeI3D, eval_config, make_checkpoint, make_vae, model_config, stored

MODEL_FIELDS = {
    "epe", "epe_no_tracks", "epe_counterfactual", "psnr", "ssim", "perceptual", "fvd_i3d", "kvd_i3d", "fps", "steps",
}  # fmt: skip
STUDENT_FIELDS = MODEL_FIELDS | {"chunk_latency_ms", "ttff_ms", "fps_with_vae", "fps_with_tiny_vae", "peak_memory_mb"}


@dataclass
class World:
    model: ModelConfig
    cfg: EvalConfig
    ctx: FakeContext
    teacher: Checkpoint
    student: Checkpoint
    adapted: Checkpoint
    selection: Selection
    generated: list[Generated]
    measured: list[Measured]

    def report_inputs(self, **kwargs) -> ReportInputs:
        shards = tuple(ShardSet("f", split, ("s",), 10, 5, 5, f"digest-{split}", "c") for split in ("train", "heldout"))
        inputs = ReportInputs(self.selection, shards, tuple(self.generated), tuple(self.measured), git_sha="abc123")
        return replace(inputs, **kwargs)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    patch = pytest.MonkeyPatch()
    patch.setattr(i3d, "load_i3d", FakeI3D)
    folder = tmp_path_factory.mktemp("eval")
    make_vae(folder)
    model, cfg, ctx = model_config(folder), eval_config(), FakeContext(folder, seed=7)
    teacher, student, adapted = (make_checkpoint(name, folder, model) for name in ("teacher", "student", "adapted"))
    selection = selecting.select(SelectRun(model, cfg.select), stored(model), "held-out", ctx.within("select"))
    generated, measured = [], []
    for item in plan(selection, cfg.select.batch, teacher, student, adapted):
        generated.append(generate.run(GenerateRun(model, cfg.generate), item, ctx.within("g-" + item.name)))
        measured.append(measure.run(MeasureRun(model, cfg.measure), generated[-1], ctx.within("m-" + item.name)))
    patch.undo()
    return World(model, cfg, ctx, teacher, student, adapted, selection, generated, measured)


@pytest.fixture(scope="module")
def full_report(world) -> tuple[dict, Path, FakeContext]:
    ctx, w = world.ctx.within("report"), world
    speeds = speed.run(
        SpeedRun(w.model, w.cfg.speed),
        SpeedInputs(w.selection, w.teacher, w.student),
        w.ctx.within("speed"),
    )
    long = long_run.run(
        LongRunRun(w.model, w.cfg.measure, w.cfg.long_run), LongRunInputs(w.selection, w.student), w.ctx.within("long")
    )
    seconds = {"data": 1.0, "teacher": 2.0, "distill": 3.0, "eval": 4.0}
    inputs = w.report_inputs(
        teacher=w.teacher, student=w.student, adapted=w.adapted, speed=speeds, long_run=long, seconds=seconds
    )
    out = report.run(ReportRun("debug", w.model, w.cfg), inputs, ctx)
    return json.loads(Path(out.json).read_text()), Path(out.html), ctx


@pytest.mark.slow
def test_selection_takes_scenes_in_turn_and_keeps_spare_clips(world):
    for kind in ("rendered", "real"):
        chosen = [c for c in world.selection.clips if c.kind == kind and not c.spare]
        spare = [c for c in world.selection.clips if c.kind == kind and c.spare]
        assert len(chosen) == 3 and len(spare) == 2
        assert len({c.clip_id[-1] for c in chosen} & {c.clip_id[-1] for c in spare}) == 0
        assert [len(c.tracks) for c in chosen] == [1 + len(KINDS), 1, 1]


@pytest.mark.slow
def test_swap_borrows_from_another_scene(world):
    clip = next(c for c in world.selection.clips if len(c.tracks) > 1)
    own, other = (read_tracks(clip.track_file(v))[0] for v in ("tracks", "swap"))
    assert own.shape[0] == other.shape[0] and not (own.shape == other.shape and np.allclose(own, other))


@pytest.mark.slow
def test_selection_of_nothing_is_an_error(world):
    with pytest.raises(StageError, match="empty"):
        selecting.select(SelectRun(world.model, world.cfg.select), [], "x", world.ctx)


def test_few_tracks_are_always_the_same_ones():
    xy, visible = np.random.default_rng(0).uniform(size=(4, 50, 2)), np.ones((4, 50), bool)
    visible[0, :10] = False
    a, b = (selecting.few_tracks(xy, visible, 12, "clip")[0] for _ in range(2))
    assert a.shape[1] == 12 and (a == b).all()
    assert selecting.few_tracks(xy, visible, 100, "clip")[0].shape[1] == 40


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_generation_depends_on_seed_and_clip_not_on_batching(world, model):
    """A clip's video is the same alone as in a batch."""
    item = next(g.item for g in world.generated if g.item.model == model and len(g.item.clips) == 2)
    together = read_videos(next(g.file for g in world.generated if g.item == item))
    alone = replace(item, name="alone", clips=item.clips[1:])
    again = generate.run(GenerateRun(world.model, world.cfg.generate), alone, world.ctx.within(f"alone-{model}"))
    difference = read_videos(again.file)[0].astype(int) - together[1].astype(int)
    assert np.abs(difference).max() <= 1


def test_vae_round_trip_and_real_are_what_their_names_state(world):
    real = next(g for g in world.generated if g.item.model == "real" and g.item.variant == "tracks")
    trip = next(g for g in world.generated if g.item.model == "vae" and g.item.clips == real.item.clips)
    assert not (read_videos(real.file) == read_videos(trip.file)).all()
    figures = next(json.loads(Path(m.file).read_text()) for m in world.measured if m.item == real.item)
    assert all(f["epe"]["epe"] < 1.0 for f in figures.values())  # exact tracks, so only the tracker's own error


def test_what_is_asked_for_matters_and_only_that(world):
    """Same clip, noise and text: other tracks or none give another video, and frame order follows item.clips."""
    of = {(g.item.model, g.item.variant): read_videos(g.file)[0] for g in world.generated if g.name.endswith("000")}
    for model in ("teacher", "student"):
        for variant in ("no_tracks", *KINDS):
            assert np.abs(of[model, "tracks"].astype(int) - of[model, variant].astype(int)).mean() > 0.5, (
                model,
                variant,
            )
    net = CausalDiT(world.model).eval()  # fresh: the track slice of the patch embedding is zero
    clips = [c for c in world.selection.clips if not c.spare][:1]
    noise = generate.clip_noise(clips, world.model, 7, world.ctx.device)
    conds = [generate.conditioning(clips, v, world.model, 7, world.ctx.device) for v in ("tracks", "no_tracks", "swap")]
    rolls = [generate.student_rollout(net, c, noise, torch.Generator().manual_seed(0)) for c in conds]
    assert torch.equal(rolls[0], rolls[1]) and torch.equal(rolls[0], rolls[2])
    assert conds[1].text.abs().sum() > 0 and conds[1].tracks.abs().sum() == 0


def test_the_rgb_ablation_is_generated_and_streamed_from_the_same_latents(world):
    model = replace(world.model, dit=replace(world.model.dit, track_encoding="rgb_vae"))
    clip, device = next(c for c in world.selection.clips if not c.spare), world.ctx.device
    asked, other, none = (
        generate.conditioning([clip], v, model, 7, device).tracks for v in ("tracks", "swap", "no_tracks")
    )
    assert asked.shape[1] == model.vae.z_channels
    assert not torch.equal(asked, other) and not none.any()
    session = clip_stream(CausalDiT(model).eval(), clip, model, 7, device).session(NoDecoder(), torch.Generator())
    streamed = [session._conditioning(i, i + 1).tracks for i in range(model.latent_frames)]
    torch.testing.assert_close(torch.cat(streamed, dim=2), asked, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_report_keeps_its_contract(full_report):
    r, _, ctx = full_report
    step = "/".join(ctx.workdir.parts[-2:])
    assert (r["version"]["step"], r["version"]["settings"]) == (step, f"{step}/manifest.json")
    assert {"preset", "git_sha", "seed", "dataset", "rendered", "real", "long_run", "seconds"} <= r.keys()
    assert (r["preset"], r["git_sha"], r["seed"]) == ("debug", "abc123", 7)
    assert r["dataset"]["clips"] == 20 and r["dataset"]["digest"]
    for kind in ("rendered", "real"):
        assert r[kind]["teacher"].keys() >= MODEL_FIELDS and r[kind]["student"].keys() >= STUDENT_FIELDS
        for model in ("teacher", "student"):
            assert set(r[kind][model]["epe_counterfactual"]) == set(KINDS)
        assert set(r[kind]["student"]["chunk_latency_ms"]) == {"mean", "std", "p50", "p95"}
        assert r[kind]["ratios"].keys() >= {
            "student_fps_over_teacher", "student_epe_over_teacher", "teacher_epe_over_no_tracks",
        }  # fmt: skip
        assert r[kind]["noise_floor"].keys() >= {"epe_retracked", "epe_vae_roundtrip", "fvd_real_vs_real"}
        assert r[kind]["teacher"]["steps"] == 2 and r[kind]["student"]["steps"] == 2
    assert r["long_run"].keys() >= {
        "frames", "horizon_multiple", "latency_slope_pct_per_100_chunks", "latency_slope_ci", "drift",
    }  # fmt: skip
    assert set(r["long_run"]["drift"]) == {"c1s1w1", "c1s0w1", "c1s0w6"}
    assert r["seconds"] == {"data": 1.0, "teacher": 2.0, "distill": 3.0, "eval": 4.0}


@pytest.mark.slow
def test_every_null_of_the_contract_has_a_reason(full_report):
    r, _, _ = full_report
    nulls = [
        f"{kind}.{model}.{name}"
        for kind in ("rendered", "real")
        for model, names in (("teacher", MODEL_FIELDS), ("student", STUDENT_FIELDS))
        for name in names
        if r[kind][model][name] is None
    ]
    assert set(nulls) == {f"{k}.student.fps_with_tiny_vae" for k in ("rendered", "real")}
    assert set(nulls) <= set(r["null_reasons"])
    assert all(math.isfinite(v) for v in flat(r).values())


@pytest.mark.slow
def test_the_student_before_dmd_stands_next_to_it(full_report):
    r, page, _ = full_report
    for kind in ("rendered", "real"):
        assert r[kind]["adapted"].keys() == {"epe", "psnr", "ssim", "perceptual", "fvd_i3d", "kvd_i3d"}
        assert all(v is not None for v in r[kind]["adapted"].values())
        assert r[kind]["adapted"]["epe"] != r[kind]["student"]["epe"]
    assert page.read_text().count("student before DMD") == 4
    assert r["provenance"]["checkpoints"]["adapted"]["digest"] == "digest-of-adapted"


def test_ratios_are_ratios(full_report):
    r, _, _ = full_report
    kind = r["rendered"]
    ratios = kind["ratios"]
    assert ratios["student_epe_over_teacher"] == pytest.approx(kind["student"]["epe"] / kind["teacher"]["epe"])
    assert ratios["student_fps_over_teacher"] == pytest.approx(kind["student"]["fps"] / kind["teacher"]["fps"])
    assert ratios["teacher_epe_over_no_tracks"] == pytest.approx(
        kind["teacher"]["epe"] / kind["teacher"]["epe_no_tracks"]
    )


def test_the_tracker_gets_figures_pictures_and_files(full_report):
    r, _, ctx = full_report
    assert ctx.metrics["real/student/epe"] == r["real"]["student"]["epe"]
    assert {"eval/long_run", "eval/overview"} <= ctx.pictures.keys() and len(ctx.pictures) == 4
    names = {p.name for p in ctx.artifacts}
    assert {"report.json", "report.html", "long_run.mp4"} <= names
    assert sum(name.endswith(".mp4") for name in names) == 3


def test_long_run_windows_and_frames(full_report, world):
    r, _, _ = full_report
    run = r["long_run"]
    assert run["frames"] == 1 + (2 * 7 - 1) * 2 and run["horizon_multiple"] == 2
    assert len(run["drift"]["c1s1w1"]["epe"]["values"]) == run["frames"] // 13
    assert run["reference"]["perceptual"]["values"][0] == 0
    with_sink, without = (run["drift"][s]["perceptual"]["values"] for s in ("c1s1w1", "c1s0w1"))
    assert with_sink != without  # the sink is attended to, so leaving it out changes the video
    assert len(run["latency_slope_ci"]) == len(run["latency_slope_alone_ci"]) == 2 and run["latency_chunks"] == 6


def test_without_trained_models_the_report_says_why(world):
    real_only = [m for m in world.measured if m.item.model in ("real", "vae") and m.item.kind == "rendered"]
    inputs = world.report_inputs(generated=(), measured=tuple(real_only))
    out = report.run(ReportRun("debug", world.model, world.cfg), inputs, world.ctx.within("bare"))
    r = json.loads(Path(out.json).read_text())
    assert r["rendered"]["teacher"]["epe"] is None and r["real"]["clips"] == 0
    assert "no teacher" in r["null_reasons"]["rendered.teacher.epe"]
    assert "no student" in r["null_reasons"]["long_run"]
    assert r["rendered"]["noise_floor"]["epe_retracked"] < 1.0
    assert "NaN" not in Path(out.json).read_text()


def test_the_page_fetches_nothing(full_report):
    _, page, _ = full_report
    text = re.sub(r"data:[a-z]+/[a-z0-9+]+;base64,[A-Za-z0-9+/=]+", "data:", page.read_text())
    assert not re.findall(r"(?:https?:)?//\w", text)
    assert not re.findall(r"""(?:src|href|poster)="(?!data:)""", text)
    assert text.count("<video") == 3 and "<script" not in text


CHROMIUM = Path("/usr/bin/chromium")


@pytest.mark.slow
def test_the_page_opens_in_a_browser(full_report, tmp_path):
    """Checks the page in headless Chromium where there is one; else that it is well-formed enough to parse."""
    _, page, _ = full_report
    if not CHROMIUM.exists():
        from html.parser import HTMLParser

        HTMLParser().feed(page.read_text())
        return
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    dom = subprocess.run(
        [*command, "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert "What the paper found" in dom and dom.count("<table") >= 6
