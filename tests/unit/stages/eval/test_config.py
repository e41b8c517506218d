from dataclasses import replace

from stages.eval.config import EvalConfig, LongRunConfig, SelectConfig
from stages.eval.counterfactual import Motions


def test_defaults_are_sound():
    assert EvalConfig().problems() == []


def test_every_mistake_is_named_at_once():
    cfg = EvalConfig(
        select=SelectConfig(
            clips=1, counterfactual_clips=3, counterfactuals=("spin",), motions=Motions(pan=2.0, zoom=1.0)
        ),
    )
    cfg = replace(cfg, generate=replace(cfg.generate, steps=0), long_run=replace(cfg.long_run, horizons=1))
    found = "\n".join(cfg.problems())
    for name in (
        "select.clips",
        "counterfactual_clips",
        "spin",
        "motions.pan",
        "motions.zoom",
        "generate.steps",
        "horizons",
    ):
        assert name in found, name


def test_a_cache_that_is_none_is_refused():
    cfg = EvalConfig(long_run=LongRunConfig(other_caches=("s0w6", "c3s0w1")))
    assert [p for p in cfg.problems() if "other_caches" in p] == [
        "eval.long_run.other_caches: 'c3s0w1' is no sink and window: write sXwY"
    ]
