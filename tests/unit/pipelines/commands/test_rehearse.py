"""The rehearsal's small presets, its models and what it reports; tests/smoke/test_rehearsal.py runs it."""

from __future__ import annotations

import argparse

import pytest

from configs.settings import changed, load
from msmodel.config import VAEConfig
from msmodel.dit import WanDiT
from msmodel.io.backbones import load_backbone
from msmodel.text import load_text_encoder
from msmodel.vae import load_vae
from pipelines.commands.options import UsageError
from pipelines.commands.rehearse import command, sizes, weights

FULL = ("wan21-1.3b", "wan22-5b")


@pytest.fixture(scope="module", params=FULL)
def prepared(request, tmp_path_factory):
    cfg = load(request.param)
    return cfg, command.prepare(cfg, [], tmp_path_factory.mktemp("rehearsal") / "here")


def small(rehearsal: command.Rehearsal):
    return load(rehearsal.preset, sizes.as_words(rehearsal.settings))


@pytest.mark.slow
def test_the_small_preset_has_the_layout_of_the_full_one(prepared):
    cfg, rehearsal = prepared
    got = small(rehearsal)
    assert (got.model.in_channels, got.model.image_alone) == (cfg.model.in_channels, cfg.model.image_alone)
    assert (got.student, got.guidance, got.dmd.ratio) == (cfg.student, cfg.guidance, cfg.dmd.ratio)
    assert (got.compute.zero_stage, got.compute.offload) == (cfg.compute.zero_stage, cfg.compute.offload)
    assert got.dmd.teacher_placement == cfg.dmd.teacher_placement
    assert got.model.latent_frames == int(cfg.model.image_alone) + 9
    for name in ("teacher", "adapt", "dmd", "tiny_vae"):
        assert vars(got)[name].micro_steps(2) == 2
        assert vars(got)[name].batch == vars(cfg)[name].batch
        assert vars(got)[name].checkpoint_layers == vars(cfg)[name].checkpoint_layers


@pytest.mark.slow
def test_its_models_are_read_by_the_code_that_reads_released_ones(prepared):
    cfg, rehearsal = prepared
    got = small(rehearsal)
    assert type(load_vae(got.vae).net).__name__ == "AutoencoderKLWan"
    assert load_text_encoder(got.text).encode(["a car"]).shape == (1, got.text.length, got.text.dim)
    report = load_backbone(WanDiT(got.model), got.teacher.init)
    assert report.new == ("track_head.bias", "track_head.weight") and not report.unused
    fun = cfg.teacher.init.startswith("alibaba-pai/")
    assert (report.spelling, bool(report.folded)) == (("original Wan", True) if fun else ("diffusers", False))


@pytest.mark.slow
def test_what_it_leaves_out_is_reported(prepared):
    """Every setting of the full preset that the small one changes is named."""
    cfg, rehearsal = prepared
    text = "\n".join(command.missing(cfg, rehearsal))
    before, after = changed(cfg), changed(small(rehearsal))
    differing = {key for key in before | after if before.get(key) != after.get(key)}
    assert [key for key in sorted(differing) if key not in text] == []
    assert "flash-attn" in text and "NCCL" in text and cfg.vae.source in text


@pytest.mark.slow
def test_a_given_setting_and_tracker_folder_are_kept(tmp_path):
    (tmp_path / "co-tracker").mkdir()
    given = [f"data.tracker.hub={tmp_path / 'co-tracker'}", "dmd.ratio=2"]
    rehearsal = command.prepare(load("wan21-1.3b", given), given, tmp_path / "here")
    assert not {"data.tracker.hub", "dmd.ratio"} & set(rehearsal.settings)
    assert rehearsal.command("run")[-2:] == given
    assert not (tmp_path / "here" / "tracker").exists()


def test_a_preset_that_runs_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"nano runs on a CPU as it is .*PRESET=nano"):
        command.prepare(load("nano"), [], tmp_path)


def test_an_unknown_class_of_vae_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"z_channels=8 stride_t=4 stride_s=8 is the layout of no known class"):
        weights.write_vae(tmp_path, VAEConfig("someone/vae", z_channels=8, stride_t=4, stride_s=8))
    with pytest.raises(UsageError, match="rehearse: vae: z_channels=8"):
        command.prepare(load("wan21-1.3b", ["vae.z_channels=8"]), ["vae.z_channels=8"], tmp_path / "here")


def test_a_command_that_fails_ends_it_with_status_one(tmp_path, monkeypatch, capsys):
    options = argparse.Namespace(preset="wan21-1.3b", runs=str(tmp_path), settings=[])
    fake = command.Rehearsal("wan21-1.3b", tmp_path, {}, [])
    monkeypatch.setattr(command, "prepare", lambda *_: fake)
    monkeypatch.setattr(command, "kill_in_training", lambda *_: None)
    monkeypatch.setattr(command.Rehearsal, "command", lambda self, *words: ["false"])
    assert command.execute(options) == 1
    assert "rehearsal of wan21-1.3b: failed" in capsys.readouterr().err


def test_it_kills_the_first_command_and_all_its_processes(tmp_path):
    """As soon as the teacher has saved."""
    save = tmp_path / "teacher" / "key" / "saves" / "step-00000001"
    command.kill_in_training(["sh", "-c", f"mkdir -p {save}; sleep 600 & wait; touch {tmp_path}/ended"], tmp_path)
    assert save.exists() and not (tmp_path / "ended").exists()
