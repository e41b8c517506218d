"""The loader's order, position, worker processes and policies, on shards of uneven sizes."""

from __future__ import annotations

import json
import multiprocessing
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.data import loader as loader_module
from stages.data.loader import Loader, LoaderConfig
from stages.data.order import SampleOrder, ShardAssignment
from stages.data.shards import require_shards
from stages.records import ShardSet
from tests.unit.stages.data.fakes import finished_clip
from tests.unit.stages.data.fakes import packed as pack_clips

CLIPS = 14  # in shards of 3, the last of 2
PROCESSES = LoaderConfig(workers=2)
SKIP = LoaderConfig(on_corrupt="skip")


@pytest.fixture
def quick_workers(monkeypatch):
    """Worker processes that fork from a fresh process with the loader imported, where how they start is not what is tested."""
    multiprocessing.set_forkserver_preload(["stages.data.loader"])
    monkeypatch.setattr(loader_module, "START_METHOD", "forkserver")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    train = [finished_clip(folder, i, "train", tracks=5 + i % 3) for i in range(CLIPS)]
    return [*train, *(finished_clip(folder, 50 + i, "heldout") for i in range(3))]


def packed(clips, folder: Path) -> tuple[ShardSet, ShardSet]:
    return pack_clips(clips, folder, clips_per_shard=3, lossless=False)


@pytest.fixture(scope="module")
def sets(clips, tmp_path_factory):
    return packed(clips, tmp_path_factory.mktemp("pack") / "a")


def ids(loader: Loader, batches: int) -> list[tuple[str, ...]]:
    return [b.clip_ids for b in islice(loader, batches)]


def flat(batches: list[tuple[str, ...]]) -> list[str]:
    return [i for b in batches for i in b]


def spoil(shards: ShardSet, *numbers: int) -> None:
    for number in numbers:
        path = Path(shards.folder) / shards.shards[number]
        path.write_bytes(path.read_bytes()[:-1000])


def inside(shards: ShardSet, number: int) -> set[str]:
    """Keys of a shard's clips."""
    with tarfile.open(Path(shards.folder) / shards.shards[number]) as tar:
        return {name.partition(".")[0] for name in tar.getnames()}


@pytest.mark.slow
def test_ten_random_stops_resume_to_the_identical_sequence(sets):
    expected = ids(Loader((sets[0],), 4, seed=1), 20)  # 5.7 epochs: batches straddle them
    for stop in np.random.default_rng(0).choice(np.arange(1, 15), 10, replace=False):
        before = Loader((sets[0],), 4, seed=1)
        assert ids(before, stop) == expected[:stop]
        after = Loader((sets[0],), 4, seed=1)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert ids(after, 5) == expected[stop : stop + 5]


@pytest.mark.slow
def test_worker_processes_change_nothing_and_end_with_the_iterator(sets):
    """Ten stops in the order of two workers: each goes on in this process, and the last with other workers."""
    expected = list(islice(Loader((sets[0],), 4, seed=1), 14))
    loader = Loader((sets[0],), 4, seed=1, cfg=PROCESSES)
    random = torch.get_rng_state()
    batches, states = iter(loader), []
    for here in expected[:10]:
        batch = next(batches)
        assert batch.clip_ids == here.clip_ids
        assert torch.equal(batch.latents, here.latents)
        assert torch.equal(batch.xy_px, here.xy_px)
        states.append(loader.state_dict())
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert not multiprocessing.active_children()
    assert torch.equal(torch.get_rng_state(), random)
    for stop, state in enumerate(states, start=1):
        after = Loader((sets[0],), 4, seed=1)
        after.load_state_dict(state)
        assert ids(after, 3) == [b.clip_ids for b in expected[stop : stop + 3]]
    after = Loader((sets[0],), 4, seed=1, cfg=PROCESSES)
    after.load_state_dict(states[6])
    assert ids(after, 3) == [b.clip_ids for b in expected[7:10]]


@pytest.mark.slow
def test_two_ranks_of_two_workers_see_every_clip_once_an_epoch(sets, quick_workers):
    loaders = [Loader((sets[0],), 1, 5, rank, 2, PROCESSES) for rank in range(2)]
    sizes = [loader._assignments[rank].size(0) for rank, loader in enumerate(loaders)]
    seen = [flat(ids(loader, size)) for loader, size in zip(loaders, sizes, strict=True)]
    assert sum(sizes) == CLIPS
    assert sizes[0] != sizes[1]
    assert len({*seen[0], *seen[1]}) == CLIPS


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 1, 3, 2), (2, 9, 4, 4, 1, 6) * 6])
def test_whatever_the_counts_every_clip_comes_once_an_epoch(ranks, sizes):
    places = tuple(tuple(range(n)) for n in sizes)
    everything = [(s, p) for s, n in enumerate(sizes) for p in range(n)]
    epochs: list[list[tuple[int, int]]] = [[], [], []]
    for rank in range(ranks):
        assignment = ShardAssignment(places, 3, partition=rank, partitions=ranks)
        length = sum(assignment.size(e) for e in range(3))
        order = SampleOrder(assignment, 0)
        indices = [p for n in range(0, length + 5, 5) for p in order.indices(n, 5)][:length]
        for index in indices:
            epochs[index.epoch].append((index.shard, index.place))
    assert [sorted(e) for e in epochs] == [everything] * 3
    assert epochs[0] != epochs[1] or len(sizes) == 3  # three clips may come in the same order by chance


def test_the_position_is_the_same_on_every_rank(sets):
    loaders = [Loader((sets[0],), 2, 5, rank, 2) for rank in range(2)]
    for loader in loaders:
        ids(loader, 4)
    assert loaders[0].state_dict() == loaders[1].state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "micro_steps"), [(2, 2), (4, 1), (1, 4)])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_batches_of_a_step_do_not_depend_on_how_many_ranks_make_it(
    sets, ranks, micro_steps, workers, quick_workers
):
    """4 micro-batches a step, dealt to the ranks in turn; also after a stop, on another number of ranks."""
    alone = Loader((sets[0],), 2, seed=5, micro_steps=4)
    expected = ids(alone, 12)
    cfg = LoaderConfig(workers=workers if ranks == 2 else 0)
    loaders = [Loader((sets[0],), 2, 5, r, ranks, cfg, micro_steps=micro_steps) for r in range(ranks)]
    seen = [ids(loader, 2 * micro_steps) for loader in loaders]
    assert [seen[m % ranks][m // ranks] for m in range(8)] == expected[:8]
    assert len({loader.state_dict()["batches"] for loader in loaders}) == 1
    back = Loader((sets[0],), 2, seed=5, micro_steps=4)
    back.load_state_dict(json.loads(json.dumps(loaders[0].state_dict())))
    assert ids(back, 4) == expected[8:]


def test_each_micro_batch_of_a_step_reads_shards_of_its_own(sets):
    loader = Loader((sets[0],), 1, seed=5, micro_steps=4)
    partitions = [set(), set(), set(), set()]
    for number, batch in enumerate(ids(loader, 8)):  # two clips of each partition, whose shards hold more
        partitions[number % 4] |= {n for n in range(5) if set(batch) <= inside(sets[0], n)}
    assert sum(len(partition) for partition in partitions) == len(set().union(*partitions))


def test_with_fewer_shards_than_micro_batches_these_share_partitions(sets):
    loader = Loader((sets[0],), 1, seed=5, micro_steps=14)
    assert len(loader._assignments) == 2  # of 5 shards: the largest divisor of 14
    assert len(set(flat(ids(loader, CLIPS)))) >= CLIPS - 1  # an epoch, but that one partition is longer than the other


def test_ranks_that_share_one_partition_need_neither_shards_nor_clips_of_their_own(sets):
    """As those that make held-out trajectories: 4 ranks on one shard of 3 clips."""
    seen = [ids(Loader((sets[1],), 2, 5, rank, 4, partitions=1), 2) for rank in range(4)]
    assert [seen[number % 4][number // 4] for number in range(8)] == ids(Loader((sets[1],), 2, seed=5, partitions=1), 8)
    with pytest.raises(ValueError, match=r"1 shards .* for 4 ranks"):
        Loader((sets[1],), 2, 5, 0, 4)


def test_other_ranks_go_on_at_the_start_of_the_epoch(sets):
    logged: list[str] = []
    before = Loader((sets[0],), 2, seed=5, rank=0, world_size=2)
    ids(before, 5)  # 10 clips of some 7 an epoch: both ranks are in the second
    after = Loader((sets[0],), 2, seed=5, log=logged.append)
    after.load_state_dict(before.state_dict())
    fresh = flat(ids(Loader((sets[0],), 2, seed=5), 14))
    assert flat(ids(after, 7)) == fresh[CLIPS:]
    assert logged == [
        "a step was 2 micro-batches of 2 clips and now is 1 of 2: the data continues at the start of epoch 1"
    ]
    again = Loader((sets[0],), 2, seed=5)
    again.load_state_dict(after.state_dict())
    assert ids(again, 3) == ids(after, 3)


def test_a_state_of_other_data_is_refused(sets):
    loader = Loader((sets[0],), 2, seed=1)
    with pytest.raises(ValueError, match="data changed"):
        loader.load_state_dict(Loader((sets[1],), 2, seed=1).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [LoaderConfig(), PROCESSES])
def test_a_damaged_shard_stops_with_its_name_alone(clips, tmp_path, cfg, quick_workers):
    train, _ = packed(clips, tmp_path / "x")
    spoil(train, 1)
    with pytest.raises(
        ValueError, match=r"^shard .*shard-000001\.tar has \d+ bytes, its index says \d+: copy it again"
    ):
        ids(Loader((train,), 2, 0, cfg=cfg), 7)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_skipped_shard_is_counted_reported_once_and_never_seen(clips, tmp_path, quick_workers):
    train, _ = packed(clips, tmp_path / "x")
    lost = inside(train, 1)
    spoil(train, 1)
    logged: list[str] = []
    loader = Loader((train,), 2, seed=1, cfg=SKIP, log=logged.append)
    assert loader.metrics() == {"loader/skipped_shards": 0}
    seen = ids(loader, 14)
    assert loader.metrics() == {"loader/skipped_shards": 1}
    assert len(logged) == 1
    assert "shard-000001.tar has" in logged[0]
    for epoch in (flat(seen[:7]), flat(seen[7:])):
        assert len(set(epoch)) == CLIPS - len(lost)
        assert not lost & set(epoch)
    for stop in (1, 6, 9):
        before, after = (Loader((train,), 2, seed=1, cfg=SKIP, log=logged.append) for _ in range(2))
        ids(before, stop)
        after.load_state_dict(before.state_dict())
        assert ids(after, 14 - stop) == seen[stop:]
    assert ids(Loader((train,), 2, seed=1, cfg=LoaderConfig(2, on_corrupt="skip"), log=logged.append), 14) == seen


def test_when_every_shard_is_bad_skipping_is_an_error(clips, tmp_path):
    train, _ = packed(clips, tmp_path / "x")
    spoil(train, *range(len(train.shards)))
    with pytest.raises(ValueError, match=r"none of the 5 shards can be read; the last: shard .*\.tar has"):
        ids(Loader((train,), 2, 0, cfg=SKIP, log=[].append), 1)


def test_a_shard_damaged_after_it_was_verified_is_named(clips, tmp_path):
    train, _ = packed(clips, tmp_path / "x")
    loader = iter(Loader((train,), 1, 0))
    next(loader)
    for name in train.shards:
        path = Path(train.folder) / name
        path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ValueError, match=r"shard .*\.tar"):
        next(loader)


def test_fewer_shards_than_readers_is_an_error_that_says_how_many(sets):
    with pytest.raises(ValueError, match=r"5 shards in .* for 6 ranks: pack smaller shards \(data\.clips_per_shard\)"):
        Loader((sets[0],), 1, 0, 0, 6)
    with pytest.raises(ValueError, match=r"5 shards in .* for 3 ranks x 2 loader workers"):
        require_shards(sets[0], 3, 2)
    require_shards(sets[0], 5, 0)
    require_shards(sets[0], 2, 2)


def test_settings_are_checked():
    fields = [p.split(":")[0] for p in LoaderConfig(-1, -1, 0, "ignore").problems()]
    assert fields == ["loader.workers", "loader.decode_workers", "loader.prefetch", "loader.on_corrupt"]
