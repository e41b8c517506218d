"""One shard an item: planned in a fixed order, whole or not there."""

import errno
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest

from stages.contracts import StageError
from stages.data import pack, shard
from stages.data.gates import GateConfig
from stages.data.pack import PackRun, PartsInputs
from stages.data.shard import ShardFile, ShardRun, plan_shards
from stages.data.shards import list_samples, read_index
from tests.fakes import FakeContext
from tests.unit.stages.data.fakes import CLIP, finished_clip, packed


@contextmanager
def disk_holds(size: int):
    """Files of this process cannot grow beyond `size` bytes: writing on fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_shard_and_passes_on_the_error(tmp_path):
    clips = [finished_clip(tmp_path / "clips", i, "train") for i in range(4)]
    [plan] = plan_shards(clips, "train", 4)
    work = tmp_path / "work"
    work.mkdir()
    with disk_holds(20_000), pytest.raises(OSError) as error:
        shard.run(ShardRun(lossless_frames=True), plan, FakeContext(work))
    assert error.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert list(work.iterdir()) == []
    made = shard.run(ShardRun(lossless_frames=True), plan, FakeContext(work))  # there is room again
    assert made.bytes > 20_000
    assert [p.name for p in work.iterdir()] == ["shard-000000.tar"]


def test_plans_depend_on_the_clips_alone(tmp_path):
    clips = [finished_clip(tmp_path, i, "train") for i in range(5)] + [finished_clip(tmp_path, 9, "heldout")]
    plans = plan_shards(clips, "train", 2)
    assert [len(p.clips) for p in plans] == [2, 2, 1]
    assert plans == plan_shards(list(reversed(clips)), "train", 2)
    assert [p.name for p in plans] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert plan_shards(clips, "heldout", 2)[0].clips == (clips[-1],)


def test_where_clips_are_generated_synthetic_ones_have_shards_and_a_set_of_their_own(tmp_path):
    kinds = ["real", "generated", "rendered"] * 3
    clips = [finished_clip(tmp_path / "clips", i, "train", kind) for i, kind in enumerate(kinds)]
    clips.append(finished_clip(tmp_path / "clips", 99, "heldout", "real"))
    plans = [p for split in pack.SPLITS for p in plan_shards(clips, split, 2)]
    assert [[c.kind != "real" for c in p.clips] for p in plans] == [[False] * 2, [False], *[[True] * 2] * 3, [False]]
    train, heldout = packed(clips, tmp_path / "pack", clips_per_shard=2)
    assert (train.clips, train.real, train.rendered) == (9, 3, 3)
    files = tuple(
        ShardFile(f"{of.folder}/{s.path.name}", s.path.name, of.split, s.sha256, s.bytes, s.kinds, (), s.tracks, ())
        for of in (train, heldout)
        for s in read_index(of)
    )
    parts = pack.run_parts(PackRun(CLIP, GateConfig()), PartsInputs(files, ""), FakeContext(tmp_path / "own"))
    assert [(s.split, s.clips, s.real, s.rendered) for s in parts] == [
        ("train_real", 3, 3, 0),
        ("train_synthetic", 6, 0, 3),
    ]
    for made, kinds in zip(parts, ({"real"}, {"generated", "rendered"}), strict=True):
        wanted = {c.clip_id for c in clips if c.kind in kinds and c.split == "train"}
        assert {s.key for s in list_samples(made)} == wanted
    card = (tmp_path / "pack" / "README.md").read_text()
    assert "| split | real | rendered | generated |\n|---|---|---|---|\n| train | 3 | 3 | 3 |" in card
    assert "| licence | real and generated clips |\n|---|---|\n| MIT | 7 |" in card


def test_the_index_tells_trackers_with_their_thresholds(tmp_path):
    text = "lucas_kanade v (Apache-2.0), max_back_px=0.25"
    clips = [
        replace(finished_clip(tmp_path, i, "train"), tracker=t) for i, t in enumerate((text, "ground_truth", text))
    ]
    made = shard.run(ShardRun(False), plan_shards(clips, "train", 3)[0], FakeContext(tmp_path))
    assert made.trackers == ("ground_truth", text)
    assert sorted(made.clip_ids) == sorted(c.clip_id for c in clips)


def test_what_cannot_be_packed_is_reported_before_anything_is(tmp_path):
    clips = [finished_clip(tmp_path, i, "train") for i in range(2)]
    with pytest.raises(StageError, match="no heldout clip"):
        pack.require_splits(clips)
    with pytest.raises(StageError, match="same id"):
        pack.require_splits([clips[0], clips[0]])
