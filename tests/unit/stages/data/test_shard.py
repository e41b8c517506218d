"""One shard an item: planned in a fixed order, whole or not there."""

import errno
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest

from stages.data import pack, shard
from stages.data.shard import ShardRun, plan_shards
from stages.spec import StageError
from tests.unit.stages.data.fakes import FakeContext, finished_clip


@contextmanager
def disk_holds(size: int):
    """Files of this process cannot grow beyond `size` bytes: writing on fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_shard_and_passes_on_what_it_said(tmp_path):
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


def test_the_index_tells_trackers_with_their_thresholds(tmp_path):
    text = "lucas_kanade v (Apache-2.0), max_back_px=0.25"
    clips = [
        replace(finished_clip(tmp_path, i, "train"), tracker=t) for i, t in enumerate((text, "ground_truth", text))
    ]
    made = shard.run(ShardRun(False), plan_shards(clips, "train", 3)[0], FakeContext(tmp_path))
    assert made.trackers == ("ground_truth", text)
    assert sorted(made.clip_ids) == sorted(c.clip_id for c in clips)


def test_what_cannot_be_packed_is_told_before_anything_is(tmp_path):
    clips = [finished_clip(tmp_path, i, "train") for i in range(2)]
    with pytest.raises(StageError, match="no heldout clip"):
        pack.require_splits(clips)
    with pytest.raises(StageError, match="same id"):
        pack.require_splits([clips[0], clips[0]])
