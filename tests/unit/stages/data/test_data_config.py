from dataclasses import replace

from msmodel.config import ImageEncoderConfig, ModelConfig
from stages.data.config import DataConfig
from stages.data.configs import run_configs
from stages.trackers import TrackerConfig


def test_defaults_are_sound_and_every_problem_is_reported_at_once():
    assert DataConfig().problems() == []
    bad = replace(
        DataConfig(),
        motions=0,
        clip_overlap=1.0,
        heldout_share=0.0,
        variants=("warp",),
        tracker=TrackerConfig("magic"),
        max_side_px=8,
        min_aspect=6.0,
        segment_seconds=0.0,
    )
    reported = " ".join(bad.problems())
    for name in (
        "data.motions",
        "data.clip_overlap",
        "data.heldout_share",
        "data.variants",
        "data.tracker.name",
        "data.max_side_px",
        "data.min_aspect",
        "data.segment_seconds",
    ):
        assert name in reported


def test_a_stage_config_holds_only_what_the_stage_reads():
    """A new tracker must not make cutting or rendering stale; the number of scenes no stage at all."""
    before, model = DataConfig(), ModelConfig()
    one, two = run_configs(before, model), run_configs(replace(before, tracker=TrackerConfig("lucas_kanade")), model)
    assert one.track != two.track
    assert (one.cut, one.render, one.encode, one.pack) == (two.cut, two.render, two.encode, two.pack)
    assert run_configs(replace(before, train_scenes=9), model) == one
    seeing = replace(model, dit=replace(model.dit, clip_dim=1280), image_encoder=ImageEncoderConfig("a/b", "crop"))
    three = run_configs(before, seeing, image_digest="x")
    assert (three.cut, three.track, three.shard) == (one.cut, one.track, one.shard)
    assert (three.encode.image_encoder, three.encode.clip_dim, three.encode.image_digest) == (
        seeing.image_encoder,
        1280,
        "x",
    )
