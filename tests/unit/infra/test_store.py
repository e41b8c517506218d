"""Keys, manifests, locks, records as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from infra.codec import Codec
from infra.files import FolderLock, write_atomic
from infra.store import Failure, Store, item_name
from msmodel.config import OPTION
from stages.records import Checkpoint, Clip, Rejected, ShardSet

TYPES = (Checkpoint, Clip, Rejected, ShardSet)


@dataclass(frozen=True)
class Inner:
    window: int = 1
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Settings:
    lr: float = 1e-5
    inner: Inner = Inner()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, Codec(TYPES, tmp_path))


def shards(root: Path, digest: str = "d") -> ShardSet:
    return ShardSet(str(root / "pack/1"), "train", ("a.tar", "b.tar"), 3, 2, 1, digest, str(root / "pack/1/c.parquet"))


def test_key_changes_with_everything_that_matters_and_nothing_else(store, tmp_path):
    def key(stage="teacher", version=1, cfg=Settings(), inputs=None, seed=0):
        return store.step(stage, version, cfg, inputs if inputs is not None else [shards(tmp_path)], seed).key

    others = [
        key(stage="adapt"),
        key(version=2),
        key(cfg=Settings(lr=2e-5)),
        key(cfg=Settings(inner=Inner(window=2))),
        key(cfg=Settings(inner=Inner(names=("a", "b")))),
        key(inputs=[shards(tmp_path, "other")]),
        key(inputs=[]),
        key(seed=1),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert key() == key(cfg=Settings(lr=0.00001), inputs=(shards(tmp_path),))


def test_an_option_counts_only_where_it_is_used(store):
    """A new one leaves the keys, and the records, of those who do not use it as they were."""

    @dataclass(frozen=True)
    class Newer(Settings):
        width: int = field(default=0, metadata=OPTION)
        more: Inner = field(default_factory=Inner, metadata=OPTION)

    Newer.__name__ = "Settings"
    before, off = Settings(), Newer()
    assert store.codec.digest(off) == store.codec.digest(before)
    assert store.codec.encode(off) == store.codec.encode(before)
    used = [Newer(width=4), Newer(more=Inner(2)), Newer(width=4, more=Inner(2))]
    assert len({store.codec.digest(s) for s in (off, *used)}) == 4
    assert store.codec.encode(used[0])["width"] == 4 and "more" not in store.codec.encode(used[0])
    codec = Codec((Newer, Inner), store.root)
    assert [codec.decode(codec.encode(s)) for s in (off, *used)] == [off, *used]


def test_moving_the_run_keeps_its_keys(store, tmp_path):
    other = tmp_path / "moved"
    moved = Store(other, Codec(TYPES, other))
    here = store.step("teacher", 1, Settings(), shards(tmp_path), 0)
    assert moved.step("teacher", 1, Settings(), shards(other), 0).key == here.key


def test_records_come_back_as_they_were(store, tmp_path):
    (tmp_path / "pack/1").mkdir(parents=True)
    (tmp_path / "pack/1/c.parquet").touch()
    step = store.step("pack", 1, Settings(), (), 0)
    checkpoint = Checkpoint("teacher", str(tmp_path), 3, "x", ("p",), {"epe": 2})
    assert store.load(step) is None
    store.publish(step, (shards(tmp_path), {"more": checkpoint}), 1.5, (Failure("a.mp4", "broken", True),))
    manifest = store.load(step)
    assert manifest.records == (shards(tmp_path), {"more": checkpoint})
    assert isinstance(manifest.records[0].shards, tuple)
    assert manifest.failures == (Failure("a.mp4", "broken", True),)
    assert manifest.seconds == 1.5
    assert "git_sha" in manifest.provenance


def test_manifest_without_its_files_is_stale(store, tmp_path):
    (tmp_path / "pack/1").mkdir(parents=True)
    (tmp_path / "pack/1/c.parquet").touch()
    step = store.step("pack", 1, Settings(), (), 0)
    store.publish(step, shards(tmp_path), 1.0)
    (tmp_path / "pack/1/c.parquet").unlink()
    assert store.load(step) is None


def test_publishing_what_does_not_exist_fails(store, tmp_path):
    with pytest.raises(RuntimeError, match="do not exist"):
        store.publish(store.step("pack", 1, Settings(), (), 0), shards(tmp_path), 1.0)


def test_a_record_of_a_newer_version_is_refused(store):
    with pytest.raises(ValueError, match="fields this version does not know: colour"):
        store.codec.decode({"@": "Rejected", "name": "a", "stage": "b", "reason": "c", "colour": "d"})


def test_items_share_their_folders_between_steps_of_the_same_config(store):
    few = store.step("track", 1, Settings(), [1, 2], 0)
    more = store.step("track", 1, Settings(), [1, 2, 3], 0)
    changed = store.step("track", 1, replace(Settings(), lr=1.0), [1, 2], 0)
    assert few.key != more.key
    assert store.item(few, 1, 1, 0).folder == store.item(more, 1, 1, 0).folder
    assert store.item(changed, 1, 1, 0).folder != store.item(few, 1, 1, 0).folder


def test_item_names_are_safe_folders():
    assert item_name(Rejected("../a b/ü.mp4", "s", "r")) == "mp4"
    assert item_name("../../etc/passwd") == "passwd"
    assert item_name(7) == "item"


def test_damaged_manifest_says_what_to_do(store):
    step = store.step("pack", 1, Settings(), (), 0)
    step.folder.mkdir(parents=True)
    (step.folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="delete its folder"):
        store.load(step)


def test_write_atomic_leaves_no_file_next_to_it(tmp_path):
    write_atomic(tmp_path / "a/b.json", "1")
    write_atomic(tmp_path / "a/b.json", json.dumps("ü"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]


HOLD = "import sys,time; from pathlib import Path; from infra.files import FolderLock\n"
HOLD += "with FolderLock(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(10**6)"


def test_lock_waits_for_the_living_and_outlives_the_dead(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    reported: list[str] = []

    def on_wait(owner: str) -> None:
        reported.append(owner)
        os.kill(holder.pid, signal.SIGKILL)

    with FolderLock(tmp_path, on_wait, poll_seconds=0.05):
        assert holder.wait() == -signal.SIGKILL  # not its end: it would have held the lock for good
    assert reported == [f"pid {holder.pid} on {os.uname().nodename}"]


def test_a_record_with_a_digest_counts_by_its_content_wherever_it_lies(tmp_path):
    """An unusable file more in the source makes new, equal shards: nothing that was trained on them is stale."""
    codec = Codec(TYPES, tmp_path)
    one, moved = shards(tmp_path), replace(shards(tmp_path), folder="elsewhere", catalogue="another")
    assert codec.digest((one, 1)) == codec.digest((moved, 1))
    assert codec.digest(one) != codec.digest(replace(one, digest="e"))
    assert codec.digest(one) != codec.digest(replace(one, split="heldout"))
    bare = replace(one, digest="")
    assert codec.digest(bare) != codec.digest(replace(bare, folder="elsewhere"))
