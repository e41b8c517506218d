"""What goes on from CUT to TRACK to ENCODE: gated, and the same whatever else there is."""

from stages.data.gates import GateConfig, dropped_by_gates, picture_gates, to_encode, to_track
from stages.records import Clip, Rejected

GATES = GateConfig(min_brightness=0.1, min_visible_share=0.3)


def clip(scene: str, number: int, segment: int = 0, **quality: float) -> Clip:
    name = f"{scene}-{segment}-{number:02d}"
    return Clip(name, f"/c/{name}", scene, "train", "real", "", scene, "MIT", segment=segment, quality=quality)


def test_a_dropped_clip_changes_no_group_but_its_own():
    clips = [clip("a", i, brightness=0.5) for i in range(20)]
    dark = [*clips[:3], clip("a", 3, brightness=0.01), *clips[4:]]
    whole, gated = to_track(clips, GATES), to_track(dark, GATES)
    assert [len(g) for g in whole] == [16, 4]
    assert [len(g) for g in gated] == [15, 4]
    assert gated[1] == whole[1]
    assert [len(g) for g in to_track(dark, None)] == [16, 4]


def test_groups_of_some_items_do_not_depend_on_the_others():
    a = [clip("a", i, s, brightness=0.5) for s in range(2) for i in range(3)]
    b = [Rejected("b.mp4", "cut", "too short"), clip("b", 0, brightness=0.5)]
    together = to_track([*b, *a], GATES)
    assert sorted(together, key=repr) == sorted([*to_track(a, GATES), *to_track(b, GATES)], key=repr)
    assert len(together) == 3


def test_a_group_that_loses_all_is_gone_and_reported():
    lost = [clip("a", i, brightness=0.5, visible_share=0.1) for i in range(2)]
    assert to_encode(lost, GATES) == []
    assert len(to_track(lost, GATES)) == 1  # what TRACK finds is not judged before it
    dark = clip("a", 5, brightness=0.0)
    clips, rejected = dropped_by_gates([*lost, dark], GATES, picture_gates)
    assert clips == [dark]
    assert [(r.name, r.stage) for r in rejected] == [(dark.clip_id, "gates")]
    assert "min_brightness" in rejected[0].reason
