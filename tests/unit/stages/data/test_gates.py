from dataclasses import replace

import numpy as np
import pytest

from stages.data import duplicates as duplicates_module
from stages.data.config import DataConfig
from stages.data.duplicates import duplicates
from stages.data.gates import GATES, GateConfig, apply_gates, judge, picture_gates, report, track_gates
from stages.records import Clip

GOOD = {"brightness": 0.4, "sharpness": 800.0, "letterbox": 0.0, "overlay": 0.0}
TRACKED = {**GOOD, "moving_share": 0.5, "moving_px": 3.0, "visible_share": 0.8, "back_px": 0.1, "confidence": 0.9}
ALL_ON = GateConfig(0.1, 0.9, 100.0, 0.1, 0.2, 0.2, 1.0, 0.3, 0.5, 6)


def clip(number: int, **changes) -> Clip:
    base = Clip(f"clip-{number:06d}", "", f"video-{number}", "train", "real", "", "a.mp4", "MIT", quality=TRACKED)
    return replace(base, **changes)


def with_figures(number: int, **figures: float) -> Clip:
    return clip(number, quality={**TRACKED, **figures})


@pytest.mark.parametrize(
    ("figure", "value", "setting", "before_tracking"),
    [
        ("brightness", 0.05, "min_brightness 0.1", True),
        ("brightness", 0.95, "max_brightness 0.9", True),
        ("sharpness", 20.0, "min_sharpness 100", True),
        ("letterbox", 0.25, "max_letterbox 0.1", True),
        ("overlay", 0.5, "max_overlay 0.2", True),
        ("moving_share", 0.1, "min_moving_share 0.2", False),
        ("moving_px", 0.5, "min_moving_px 1", False),
        ("visible_share", 0.2, "min_visible_share 0.3", False),
        ("back_px", 0.75, "max_back_px 0.5", False),
    ],
)
def test_each_gate_drops_and_says_why(figure, value, setting, before_tracking):
    bad = with_figures(1, **{figure: value})
    (reason,) = judge(bad, ALL_ON)
    assert f"{value:g}" in reason
    assert setting in reason
    assert (picture_gates(bad, ALL_ON) == [reason]) is before_tracking
    assert (track_gates(bad, ALL_ON) == [reason]) is not before_tracking
    assert judge(replace(bad, kind="rendered"), ALL_ON) == []


def test_a_figure_that_is_not_there_passes_and_a_gate_can_be_off():
    assert judge(clip(1, quality=GOOD), ALL_ON) == []
    off = GateConfig(0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1)
    worst = {"brightness": 0, "sharpness": 0, "letterbox": 1, "overlay": 1, "visible_share": 0, "back_px": 99}
    assert off.problems() == []
    assert judge(with_figures(1, **worst), off) == []
    assert all(gate.off(off) for gate in GATES)


def test_all_reasons_of_a_clip_are_reported():
    kept, (rejected,) = apply_gates([with_figures(1, brightness=0.01, letterbox=0.5), clip(2)], GateConfig())
    assert [c.clip_id for c in kept] == ["clip-000002"]
    assert (rejected.name, rejected.stage) == ("clip-000001", "gates")
    assert "too dark" in rejected.reason
    assert "black bars" in rejected.reason


def test_bad_thresholds_are_reported_with_the_data():
    bad = GateConfig(min_brightness=0.99, max_letterbox=1.5, min_moving_px=-1, max_duplicate_bits=40)
    reported = " ".join(replace(DataConfig(), gates=bad).problems())
    for name in ("min_brightness", "max_letterbox", "min_moving_px", "max_duplicate_bits"):
        assert f"data.gates.{name}" in reported
    assert GateConfig(min_sharpness=float("nan")).problems()


def random_hash(generator: np.random.Generator) -> int:
    return int.from_bytes(generator.bytes(24))


def flipped(value: int, bits: int, generator: np.random.Generator) -> int:
    for at in generator.choice(192, bits, replace=False):
        value ^= 1 << int(at)
    return value


def planted(count: int, seed: int) -> list[Clip]:
    """Clips with random hashes; one in four is near an earlier one, some beyond the threshold, some of the same scene."""
    generator = np.random.default_rng(seed)
    values, out = [], []
    for i in range(count):
        value = random_hash(generator)
        if i and i % 4 == 0:
            value = flipped(values[int(generator.integers(i))], int(generator.integers(0, 10)), generator)
        values.append(value)
        split = "heldout" if generator.random() < 0.2 else "train"
        out.append(clip(i, phash=f"{value:048x}", split=split, scene=f"video-{generator.integers(count // 2)}"))
    return out


def by_comparing_all(clips: list[Clip], max_bits: int) -> dict[str, str]:
    kept, out = [], {}
    for c in sorted(clips, key=lambda c: (c.split != "heldout", c.clip_id)):
        value = int(c.phash, 16)
        near = (k for k, v in kept if (v ^ value).bit_count() <= max_bits and k.scene != c.scene)
        winner = next(near, None)
        if winner is None:
            kept.append((c, value))
        else:
            out[c.clip_id] = winner.clip_id
    return out


@pytest.mark.slow
@pytest.mark.parametrize("max_bits", [0, 1, 6, 9])
def test_duplicates_are_those_that_comparing_all_finds(max_bits):
    clips = planted(2000, seed=max_bits)
    found = duplicates(list(reversed(clips)), max_bits)
    assert found == by_comparing_all(clips, max_bits)
    assert len(found) > 20


@pytest.mark.slow
def test_duplicates_of_a_large_set_are_found_by_few_comparisons(monkeypatch):
    clips = planted(10_000, seed=3)
    clips += [replace(c, clip_id=f"{c.clip_id}-{n}", scene=f"other-{n}") for n in range(3) for c in clips]
    alike, compared = duplicates_module._alike, 0

    def counted(keys):
        nonlocal compared
        for a, b in alike(keys):
            compared += len(a)
            yield a, b

    monkeypatch.setattr(duplicates_module, "_alike", counted)
    assert len(duplicates(clips, 6)) >= 30_000
    assert compared < 1e6  # comparing all 40,000 would be 8e8 pairs


def test_held_out_wins_variants_go_along_and_plain_pictures_are_not_compared():
    generator = np.random.default_rng(0)
    value = f"{random_hash(generator):048x}"
    a = clip(1, phash=value)
    variant = replace(a, clip_id="clip-000001-fast", recipe="fast", phash=value)
    held = clip(2, phash=value, split="heldout")
    same_video = clip(3, phash=value, split="heldout", scene=held.scene)
    render = clip(4, phash=value, kind="rendered")
    blank = [clip(5, phash="0" * 48), clip(6, phash="0" * 48), clip(7), clip(8)]
    clips = [a, variant, held, same_video, render, *blank]
    kept, rejected = apply_gates(clips, GateConfig())
    assert {r.name: r.reason for r in rejected} == dict.fromkeys(
        ("clip-000001", "clip-000001-fast"), "duplicate of clip-000002 of another video, within max_duplicate_bits 6"
    )
    assert kept == [held, same_video, render, *blank]
    assert apply_gates(clips, GateConfig(max_duplicate_bits=-1)) == (clips, [])
    assert apply_gates(kept, GateConfig()) == (kept, [])


def test_a_clip_that_is_dropped_anyway_takes_no_other_with_it():
    value = f"{random_hash(np.random.default_rng(0)):048x}"
    dark = replace(with_figures(1, brightness=0.0), phash=value)
    kept, rejected = apply_gates([dark, clip(2, phash=value)], GateConfig())
    assert [c.clip_id for c in kept] == ["clip-000002"]
    assert len(rejected) == 1


def test_a_hash_of_another_length_is_named():
    with pytest.raises(ValueError, match="'abc'"):
        duplicates([clip(1, phash="abc")], 6)


def test_the_report_tells_what_each_gate_would_drop():
    value = f"{random_hash(np.random.default_rng(0)):048x}"
    clips = [with_figures(i, brightness=0.1 * i) for i in range(1, 9)]
    clips += [with_figures(20, brightness=0.01), with_figures(21, brightness=0.01, letterbox=0.5)]
    clips += [clip(30, phash=value), clip(31, phash=value), clip(40, kind="rendered", quality={})]
    lines = report(clips, GateConfig())
    rows = {line.split()[0]: line.split() for line in lines}
    assert rows["min_brightness"][1:6] == ["brightness", "0.04", "2", "1", "16.7%"]
    assert rows["max_letterbox"][3:5] == ["1", "0"]
    assert rows["min_sharpness"][2:4] == ["off", "0"]
    assert rows["max_duplicate_bits"][1:7] == ["phash", "6", "of", "192", "1", "1"]
    assert lines[-1].startswith("all gates together drop 3 of 12 real clips")
    assert len(report([], GateConfig())) == len(lines)
