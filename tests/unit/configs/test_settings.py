"""The configuration: presets are sound, overrides follow Hydra's grammar, every mistake comes in one message."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from configs.checks import problems_of
from configs.settings import RENAMED, Config, ConfigError, _known, as_yaml, changed, load, preset_names
from stages.train.tiny_vae import TINY_VAE


@pytest.fixture(scope="module")
def debug() -> Config:
    return load("debug")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["nano", "debug", "wan21-1.3b", "wan22-5b"])
def test_presets_are_sound(preset):
    assert problems_of(load(preset)) == []
    assert preset in preset_names()


@pytest.mark.slow
def test_nano_is_what_was_decided():
    model = load("nano").model
    assert (model.latent_frames, model.latent_height, model.latent_width) == (15, 10, 16)
    assert (model.tokens_per_frame, model.tokens, model.chunks, model.in_channels) == (160, 2400, 5, 54)


def test_wan_presets_have_the_papers_layouts():
    small, large = load("wan21-1.3b").model, load("wan22-5b").model
    assert (small.latent_frames, small.chunks, small.in_channels) == (21, 7, 52)
    assert (large.latent_frames, large.chunks, large.image_alone) == (31, 10, True)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "variants"), [("wan21-1.3b", 0), ("wan22-5b", 0), ("nano", 3)])
def test_full_presets_make_no_further_clips_under_an_unchanged_caption(preset, variants):
    assert len(load(preset).data.variants) == variants


def test_overrides_set_nested_fields_with_their_types():
    cfg = load(
        "nano", ["teacher.phase1_steps=7", "student.window=2", "dmd.betas=[0.1,0.2]", "data.variants=[fast]", "seed=3"]
    )
    assert (cfg.teacher.phase1_steps, cfg.student.window, cfg.seed) == (7, 2, 3)
    assert cfg.dmd.betas == (0.1, 0.2)
    assert cfg.data.variants == ("fast",)
    assert isinstance(cfg.dit.patch, tuple)
    nested = load("nano", ["eval.measure={raster_height: 96, raster_width: 160}"])
    assert nested.eval.measure.raster == (96, 160)


@pytest.mark.slow
def test_changed_settings_are_those_of_the_preset_and_the_command_line():
    found = changed(load("nano", ["student.window=2"]))
    assert found["student.window"] == 2
    assert found["clip.width"] == 64
    assert "demo.port" not in found


def test_every_mistake_comes_in_one_message():
    wrong = ["adapt.stps=3", "student.window=-1", "teacher.phase1_steps=abc", "window=3", "+x=1", "dit=3", "runs=x"]
    with pytest.raises(ConfigError) as error:
        load("wan21-1.3b", [*wrong, "student.chunk=2", "adapt.sinks=[2,1]", "nonsense"])
    text = str(error.value)
    for part in (
        "adapt.stps=3: unknown key; did you mean adapt.steps",
        "student.window: -1 is below zero",
        "teacher.phase1_steps=abc: Value 'abc'",
        "window=3: unknown key; did you mean student.window",
        "+x=1: only key=value",
        "dit=3: dit is a group of settings",
        "runs=x: set it with --runs",
        "student.chunk: 2 does not divide the horizon of 21 latent frames",
        "adapt.sinks: [2, 1] is not a range",
        "nonsense: not key=value",
    ):
        assert part in text
    assert len(error.value.problems) == 10


def test_a_preset_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ConfigError, match=r"preset: 'nona' does not exist; there are debug, nano"):
        load("nona")


def test_a_key_that_a_preset_file_misspells_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("teacher: {lrr: 1}\nclip: {frames: 1.5}\n")
    monkeypatch.setattr("configs.settings.PRESETS", tmp_path)
    with pytest.raises(ConfigError) as error:
        load("mine")
    assert "configs/preset/mine.yaml: teacher.lrr: unknown key; did you mean teacher.lr" in str(error.value)
    assert "configs/preset/mine.yaml: clip.frames: Value '1.5'" in str(error.value)


def test_an_old_name_is_refused_with_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr("configs.settings.RENAMED", {"teacher.turns": "teacher.steps", "learner": "teacher"})
    (tmp_path / "mine.yaml").write_text("teacher: {turns: 7}\nlearner: {lr: 1}\n")
    monkeypatch.setattr("configs.settings.PRESETS", tmp_path)
    with pytest.raises(ConfigError) as error:
        load("mine", ["teacher.turns=3", "learner.batch=2", "learner={batch: 2}", "teacher.stps=1"])
    assert error.value.problems == [
        "configs/preset/mine.yaml: teacher.turns is now called teacher.steps",
        "configs/preset/mine.yaml: learner.lr is now called teacher.lr",
        "teacher.turns=3: teacher.turns is now called teacher.steps",
        "learner.batch=2: learner.batch is now called teacher.batch",
        "learner={batch: 2}: learner is now called teacher",
        error.value.problems[-1],
    ]
    assert "teacher.stps=1: unknown key" in error.value.problems[-1]


def test_new_names_are_known_and_old_ones_are_not():
    known = dict(_known(Config, ""))
    assert all(new in known and old not in known for old, new in RENAMED.items())


@pytest.mark.slow
def test_muon_and_sharded_weights_exclude_each_other_before_anything_starts():
    with pytest.raises(ConfigError, match=r"teacher\.optimizer: muon needs whole weights") as error:
        load("nano", ["compute.zero_stage=1"])
    assert all("optimizer: muon" in p for p in error.value.problems)
    assert load(
        "nano",
        [
            "compute.zero_stage=1",
            *(f"{g}.optimizer=adamw" for g in ("base", "phase1", "phase1_context", "teacher", "adapt", "dmd")),
        ],
    )


@pytest.mark.slow
def test_lists_of_a_wrong_length_and_patches_over_time_are_reported_before_anything_starts():
    with pytest.raises(ConfigError) as error:
        load("nano", ["dit.patch=[1,2]", "adapt.sinks=[0]", "teacher.betas=0.9", "data.variants=[fast]"])
    assert [p.split(":")[0] for p in error.value.problems] == [
        "dit.patch=[1,2]",
        "adapt.sinks=[0]",
        "teacher.betas=0.9",
    ]
    assert "is not a list of 3 values" in error.value.problems[0]
    with pytest.raises(ConfigError, match=r"dit\.patch: \[2, 1, 1\] folds latent frames"):
        load("nano", ["dit.patch=[2,1,1]"])


@pytest.mark.slow
def test_the_embedded_text_encoder_is_for_nano_only():
    with pytest.raises(
        ConfigError, match=r"text\.source: embedded:minilm stands in for umT5 at nano only, and dit\.dim=1536"
    ):
        load("wan21-1.3b", ["text.source=embedded:minilm", "text.dim=384"])
    assert load("nano", ["vae.source=/my/own/vae"])


@pytest.mark.slow
def test_the_rgb_ablation_is_a_setting():
    small, large = (load(p, ["dit.track_encoding=rgb_vae"]).model for p in ("wan21-1.3b", "wan22-5b"))
    assert (small.track_channels, small.in_channels, large.track_channels, large.in_channels) == (16, 52, 48, 96)
    with pytest.raises(ConfigError, match=r"dit\.track_offsets: belongs to the track head"):
        load("nano", ["dit.track_encoding=rgb_vae"])


@pytest.mark.slow
def test_the_image_encoder_and_the_branch_that_reads_it_go_together(tmp_path):
    seeing = ["dit.clip_dim=1280", "image_encoder.source=Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"]
    assert load("wan21-1.3b", seeing).model.image_encoder.source.startswith("Wan-AI/")
    with pytest.raises(ConfigError, match=r"image_encoder\.source: is empty, and dit\.clip_dim=1280"):
        load("wan21-1.3b", seeing[:1])
    with pytest.raises(ConfigError, match=r"image_encoder\.source: nobody would read the tokens"):
        load("wan21-1.3b", seeing[1:])
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        load("wan21-1.3b", [seeing[0], f"image_encoder.source={tmp_path}"])
    with pytest.raises(ConfigError, match=r"dit\.clip_dim: 1280 must be 0.*where dit\.image is channels"):
        load("wan22-5b", seeing)


@pytest.mark.slow
def test_zero_sizes_are_reported_not_raised():
    with pytest.raises(ConfigError, match="is zero"):
        load("nano", ["vae.stride_s=0"])


def test_every_leaf_has_a_type_that_an_override_can_set():
    """A field that OmegaConf cannot type would silently take anything."""
    for key, group in _known(Config, ""):
        if group:
            continue
        kind: typing.Any = Config
        for part in key.split("."):
            kind = typing.get_type_hints(kind)[part]
        assert kind in (int, float, str, bool) or typing.get_origin(kind) is tuple, f"{key}: {kind}"


def test_presets_state_only_what_differs_from_the_defaults():
    from omegaconf import OmegaConf

    from configs.settings import PRESETS, _leaves

    for preset in preset_names():
        for key, value in _leaves(OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml")), ""):
            default: typing.Any = Config()
            for part in key.split("."):
                default = getattr(default, part)
            stated = tuple(value) if isinstance(value, list) else value
            assert stated != default, f"{preset}.yaml: {key} states its default"


@pytest.mark.slow
def test_the_resolved_config_reads_back():
    text = as_yaml(load("debug"))
    assert "preset: debug" in text
    assert dataclasses.is_dataclass(Config)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 8, 32, 64])
@pytest.mark.parametrize("preset", ["wan21-1.3b", "wan22-5b"])
def test_wan_presets_make_the_papers_batches_on_any_number_of_gpus(preset, workers):
    cfg = load(preset, [f"compute.workers={workers}"])
    for training, clips in ((cfg.teacher, 128), (cfg.adapt, 128), (cfg.dmd, 64)):
        assert training.batch * training.micro_steps(workers) * workers == clips
    tiny = cfg.sized(TINY_VAE).resources.most
    assert tiny == min(workers, 8) and cfg.tiny_vae.batch * cfg.tiny_vae.micro_steps(tiny) * tiny == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"track_encoding": "rgb_vae"}, "the track head, which dit.track_encoding=rgb_vae has not"),
        ({"image": "first_latent"}, "its mask channels, which dit.image=first_latent has not"),
        ({"track_offsets": True, "track_channels": 4}, "dit.track_channels=4 leave none for the ids"),
        ({"track_channels": 40}, "slow rotary channels; 40 + 1 are needed"),
    ],
)
def test_a_matching_head_that_the_model_cannot_have_is_reported_at_load(debug, changes, reported):
    other = dataclasses.replace(debug, dit=dataclasses.replace(debug.dit, **changes))
    assert problems_of(other) == []
    matching = dataclasses.replace(debug.teacher, track_init="matching")
    assert problems_of(dataclasses.replace(debug, teacher=matching)) == []
    (problem,) = problems_of(dataclasses.replace(other, teacher=matching))
    assert problem.startswith("teacher.track_init: matching: ") and reported in problem
    assert problem.endswith("; set teacher.track_init=zero")


def test_a_global_batch_that_the_workers_cannot_make_is_reported_before_anything_starts():
    with pytest.raises(ConfigError) as error:
        load("wan22-5b", ["compute.workers=24"])
    groups = [p.split(":")[0] for p in error.value.problems]
    assert groups == ["teacher.global_batch", "adapt.global_batch", "dmd.global_batch"]
    assert "compute.workers=1, 2, 4, 8, 16, 32, 64" in error.value.problems[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        (["compute.offload=optimizer"], "compute.offload: optimizer needs compute.zero_stage=1 or more"),
        (["compute.offload=all", "compute.zero_stage=2"], "compute.offload: all needs compute.zero_stage=3 or more"),
        (["compute.offload=all", "compute.zero_stage=3", "compute.engine=torch"], "needs compute.engine=deepspeed"),
        (["compute.offload=disk"], "compute.offload: 'disk' is not one of none, optimizer, all"),
        (["compute.ema=disk"], "compute.ema: 'disk' is not one of device, cpu"),
        (["compute.precision=fp16"], "compute.precision: 'fp16' is not one of auto, bf16, fp32"),
        (["compute.zero_stage=4"], "compute.zero_stage: 4 is not one of 0, 1, 2, 3"),
        (["compute.checkpoints=saves"], "compute.checkpoints: 'saves' is no address"),
        (["dmd.teacher_placement=disk"], "dmd.teacher_placement: 'disk' is not one of device, shard, offload"),
        (
            ["dmd.teacher_placement=shard", "compute.engine=torch"],
            "dmd.teacher_placement: shard needs compute.engine=deepspeed",
        ),
    ],
)
def test_where_training_keeps_what_is_checked(settings, reported):
    with pytest.raises(ConfigError) as error:
        load("debug", settings)
    assert len(error.value.problems) == 1
    assert reported in error.value.problems[0]
