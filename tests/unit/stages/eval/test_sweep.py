"""The sweep: names of settings, absolute positions, figures of a setting, the table and the plot."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from msmodel.config import StudentConfig
from msmodel.io.weights import load_student
from msmodel.rollout import rollout
from stages.eval import i3d, sweep
from stages.eval import select as selecting
from stages.eval.config import GenerateRun, MeasureRun, SelectRun, read_setting
from stages.eval.generate import run as generate
from stages.eval.items import guided_items
from stages.eval.long_run import with_positions
from stages.eval.measure import run as measure
from tests.fakes import FakeContext
from tests.unit.msmodel.models import conditioning, gaussian
from tests.unit.stages.eval.world import FakeI3D, eval_config, make_checkpoint, make_vae, model_config, stored

OWN = StudentConfig(chunk=3, sink=1, window=1, steps=3)
CFG = sweep.SweepConfig(settings=("c1s1w1", "c1s0w2ak1"), guidance=("3/1.5",), clips=1, horizons=2, chunks=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    make_vae(folder)
    model, cfg, ctx = model_config(folder), eval_config(), FakeContext(folder, seed=7)
    teacher, student = (make_checkpoint(name, folder, model) for name in ("teacher", "student"))
    selection = selecting.select(SelectRun(model, cfg.select), stored(model), "held-out", ctx.within("select"))
    return model, cfg, ctx, teacher, student, selection


@pytest.fixture(scope="module")
def points(world):
    model, cfg, ctx, _, student, selection = world
    inputs = sweep.SweepInputs(selection, student)
    return tuple(
        sweep.run(sweep.sweep_run(model, cfg.measure, CFG, name), inputs, ctx.within(name)) for name in CFG.settings
    )


def test_names_state_the_whole_setting():
    assert read_setting("c3s1w1", OWN) == (OWN, False)
    assert read_setting("c1s0w6ak2", OWN) == (StudentConfig(chunk=1, sink=0, window=6, steps=2), True)


def test_bad_names_are_all_listed():
    bad = sweep.SweepConfig(settings=("c3s1", "c3s1w1k0", "c3s1w1"), guidance=("3", "0/0", "3/1.5"), horizons=1)
    problems = bad.problems()
    assert [p.split(":")[0] for p in problems] == [
        "sweep.horizons", "sweep.settings", "sweep.settings", "sweep.guidance", "sweep.guidance",
    ]  # fmt: skip
    assert "cXsYwZ" in problems[1] and "text/track" in problems[3]
    assert CFG.problems() == sweep.SweepConfig().problems() == []


@torch.no_grad()
def test_absolute_positions_matter_exactly_where_there_is_a_sink_and_the_cache_rolls(world):
    """Attention sees differences of positions only: without a sink they are the same, with one they grow endlessly."""
    model, _, _, _, checkpoint, _ = world
    student = load_student(checkpoint.folder).double()
    absolute = with_positions(student, True)
    cond, noise = conditioning(model, 1, 8, dtype=torch.float64), gaussian(model, 1, 8, dtype=torch.float64)
    for sink, first_other in ((0, 8), (1, 3)):
        cfg = replace(model.student, chunk=1, sink=sink, window=1)
        one, other = (
            rollout(net, cond, noise, (1.0, 0.5), cfg, torch.Generator().manual_seed(0)) for net in (student, absolute)
        )
        away = (one - other).abs().amax(dim=(0, 1, 3, 4))
        assert away[:first_other].max() < 1e-10
        assert (away[first_other:] > 1e-6).all()


@pytest.mark.slow
def test_a_setting_is_measured_over_its_horizons(world, points):
    model = world[0]
    found = json.loads(Path(points[0].file).read_text())
    assert found["setting"] == points[0].name == "c1s1w1"
    assert len(found["drift"]["epe"]["values"]) == 2
    assert found["fps"] == pytest.approx(1000 * model.vae.stride_t / found["latency_ms"]["mean"], rel=1e-6)
    row = sweep.row(found)
    assert all(row[name] > 0 for name in ("epe", "perceptual", "latency_ms", "fps"))
    other = json.loads(Path(points[1].file).read_text())
    assert other["drift"]["perceptual"]["values"] != found["drift"]["perceptual"]["values"]


def test_another_setting_in_the_list_makes_no_result_stale(world):
    model, cfg, *_ = world
    more = replace(CFG, settings=(*CFG.settings, "c1s2w2"))
    assert sweep.sweep_run(model, cfg.measure, CFG, "c1s1w1") == sweep.sweep_run(model, cfg.measure, more, "c1s1w1")


@pytest.mark.slow
def test_report_holds_every_setting_once(world, points, monkeypatch):
    model, cfg, ctx, teacher, _, selection = world
    setting = replace(cfg.generate, guidance=sweep.read_weights("3/1.5"))
    items = guided_items(selection, 1, cfg.select.batch, teacher)
    assert {i.kind for i in items} == {"rendered", "real"} and all(len(i.clips) == 1 for i in items)
    monkeypatch.setattr(i3d, "load_i3d", FakeI3D)
    measured = []
    for item in items:
        made = generate(GenerateRun(model, setting), item, ctx.within("g-" + item.name))
        measured.append(measure(MeasureRun(model, cfg.measure), made, ctx.within("m-" + item.name)))
    page = sweep.SweepReportRun("debug", cfg.generate.steps, CFG.horizons, cfg.measure.raster)
    inputs = sweep.SweepReportInputs(points, (sweep.Guided("3/1.5", tuple(measured)),), "abc")
    out = sweep.run_report(page, inputs, ctx.within("report"))
    report = json.loads(Path(out.json).read_text())
    assert list(report["students"]) == list(CFG.settings) and list(report["guidance"]) == ["3/1.5"]
    assert report["guidance"]["3/1.5"]["real_epe"] > 0
    text = Path(out.html).read_text()
    assert "c1s0w2ak1" in text and "3/1.5" in text and "http" not in text.split("base64")[0]
    assert Path(out.overview).read_bytes().startswith(b"\x89PNG")
    assert asdict(out)["folder"] == str(ctx.within("report").workdir)
