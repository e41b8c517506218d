import json
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds

from stages.contracts import StageError
from stages.data.files import load_npz, save_npz
from stages.data.loader import Loader, fit_tracks, list_samples
from stages.data.shards import read_index, read_members
from stages.records import Rejected
from tests.unit.stages.data.fakes import finished_clip, packed

BAD = Rejected("b ö.mp4", "ingest", "empty file")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    kinds = ["real", "rendered"]
    train = [finished_clip(folder, i, "train", kinds[i % 2], tracks=5 + i % 3) for i in range(14)]
    return [*train, *(finished_clip(folder, 50 + i, "heldout") for i in range(3))]


@pytest.fixture(scope="module")
def sets(clips, tmp_path_factory):
    return packed(clips, tmp_path_factory.mktemp("pack") / "a", [BAD])


def test_two_packs_are_the_same_bytes(clips, sets, tmp_path):
    again = packed(list(reversed(clips)), tmp_path / "b", [BAD])
    for a, b in zip(sets, again, strict=True):
        assert a.digest == b.digest
        for name in (*a.shards, "index.json"):
            assert (Path(a.folder) / name).read_bytes() == (Path(b.folder) / name).read_bytes()


def test_shards_follow_webdataset(sets, clips):
    train, heldout = sets
    assert (train.clips, train.real, train.rendered, heldout.clips) == (14, 7, 7, 3)
    assert train.shards == tuple(f"shard-{i:06d}.tar" for i in range(4))
    with tarfile.open(Path(train.folder) / train.shards[0]) as tar:
        names, times = tar.getnames(), {m.mtime for m in tar.getmembers()}
    assert times == {0}
    assert {n.split(".", 1)[1] for n in names} == {"mp4", "json", "txt", "tracks.npz", "latents.npz", "frames.npz"}
    tar = wds.WebDataset(str(Path(train.folder) / train.shards[0]), shardshuffle=False)
    for ours, theirs in zip(read_members(read_index(train)[0]), tar, strict=True):
        assert {"__key__": ours.key, **ours} == {k: v for k, v in theirs.items() if k in ours or k == "__key__"}
    index = json.loads((Path(train.folder) / "index.json").read_text())["shards"]
    assert sum(e["nsamples"] for e in index) == 14
    assert {"url", "sha256", "bytes", "nsamples"} <= set(index[0])


def test_the_catalogue_lists_clips_and_rejected_inputs(sets, clips):
    rows = pq.read_table(sets[0].catalogue).to_pylist()
    assert len(rows) == len(clips) + 1
    assert [(r["name"], r["stage"], r["reason"]) for r in rows if r["status"] == "rejected"] == [
        ("b ö.mp4", "ingest", "empty file")
    ]
    kept = [r for r in rows if r["status"] == "kept"]
    assert all(r["shard"].startswith("shard-") and r["licence"] == "MIT" and r["tracker"] for r in kept)
    text = (Path(sets[0].catalogue).parent / "README.md").read_text()
    assert "MIT" in text
    assert "b ö.mp4 (ingest): empty file" in text


def test_an_empty_split_is_an_error(clips, tmp_path):
    with pytest.raises(StageError, match="no heldout clip"):
        packed([c for c in clips if c.split == "train"], tmp_path)


def test_samples_come_back_whole(sets, clips):
    by_id = {c.clip_id: c for c in clips}
    samples = [stored.load() for stored in list_samples(sets[1])]
    assert len(samples) == 3
    for sample in samples:
        clip = by_id[sample.key]
        assert np.array_equal(sample.frames, load_npz(Path(clip.folder) / "clip.npz")["frames"])
        assert np.array_equal(sample.xy_px, load_npz(Path(clip.folder) / "tracks.npz")["xy_px"])
        assert sample.latents.dtype == torch.float32
        assert sample.caption == clip.caption
        assert sample.meta["scene"] == clip.scene
        assert "folder" not in sample.meta


def test_without_lossless_frames_the_mp4_is_read(clips, tmp_path):
    lossy = packed(clips, tmp_path / "lossy", lossless=False)
    sample = list_samples(lossy[1])[0].load()
    assert sample.frames.shape == (9, 32, 48, 3)
    assert sample.frames.dtype == np.uint8


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_shard_is_named(clips, tmp_path, damage):
    train, _ = packed(clips, tmp_path / damage)
    path = Path(train.folder) / train.shards[1]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"shard-000001\.tar"):
        [stored.load() for stored in list_samples(train)]
    with pytest.raises(ValueError, match=r"shard-000001\.tar"):
        list(islice(Loader((train,), 2, 0), 7))


def test_an_index_of_other_data_is_an_error(clips, tmp_path):
    train, _ = packed(clips, tmp_path / "x")
    with pytest.raises(ValueError, match=r"index\.json was changed"):
        list_samples(replace(train, digest="0" * 64))


def ids(loader: Loader, batches: int) -> list[tuple[str, ...]]:
    return [b.clip_ids for b in islice(loader, batches)]


def test_batches_hold_what_training_needs(sets, clips):
    batch = next(iter(Loader((sets[0],), 4, seed=0)))
    assert batch.latents.shape == (4, 8, 5, 8, 12)
    assert batch.text.shape == (4, 16, 384)
    assert batch.xy_px.shape == (4, 9, 7, 2)  # 7: the most tracks of any clip
    assert batch.visible.dtype == torch.bool
    by_id = {c.clip_id: c for c in clips}
    assert batch.real.tolist() == [by_id[i].kind == "real" for i in batch.clip_ids]
    one = by_id[batch.clip_ids[0]]
    stored = load_npz(Path(one.folder) / "latents.npz")["latents"]
    assert torch.equal(batch.latents[0], torch.from_numpy(stored).float())


def test_an_epoch_shows_every_clip_once_in_a_new_order(sets):
    loader = Loader((sets[0],), 2, seed=3)
    first, second = ids(loader, 7), ids(loader, 7)
    flat = [i for b in first for i in b]
    assert len(set(flat)) == 14
    assert sorted(flat) == sorted(i for b in second for i in b)
    assert first != second
    assert ids(Loader((sets[0],), 2, seed=3), 7) == first
    assert ids(Loader((sets[0],), 2, seed=4), 7) != first


def test_one_kind_can_be_asked_for(sets):
    batches = list(islice(Loader((sets[0],), 3, seed=0, kind="rendered"), 4))
    assert not torch.stack([b.real for b in batches]).any()
    with pytest.raises(ValueError, match="kind"):
        Loader((sets[0],), 3, seed=0, kind="drawn")
    with pytest.raises(ValueError, match="do not make one batch of 99"):
        Loader((sets[0],), 99, seed=0)


def test_tracks_are_padded_with_invisible_ones_or_cut_to_the_most_visible():
    xy = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    visible = np.array([[True, False, True], [False, False, True]])
    more_xy, more = fit_tracks(xy, visible, 5)
    assert more_xy.shape == (2, 5, 2)
    assert not more[:, 3:].any()
    fewer_xy, fewer = fit_tracks(xy, visible, 2)
    assert np.array_equal(fewer_xy, xy[:, [0, 2]])
    assert fewer.sum() == 3


def test_image_tokens_come_with_batches_and_samples(sets, tmp_path):
    seeing = [finished_clip(tmp_path, i, s, clip_dim=20) for i, s in enumerate(("train", "train", "heldout"))]
    train, heldout = packed(seeing, tmp_path / "seeing")
    batch = next(iter(Loader((train,), 2, seed=0)))
    tokens = {c.clip_id: load_npz(Path(c.folder) / "latents.npz")["clip"] for c in seeing}
    assert batch.image_tokens is not None and batch.image_tokens.dtype == torch.float32
    assert torch.equal(batch.image_tokens, torch.from_numpy(np.stack([tokens[i] for i in batch.clip_ids])).float())
    sample = list_samples(heldout)[0].load()
    assert sample.clip is not None
    assert np.array_equal(sample.clip.half().numpy(), tokens[sample.key])
    assert list_samples(sets[1])[0].load().clip is None
    mixed = list(islice(Loader((sets[0], train), 1, seed=0), 16))
    assert {b.image_tokens is None for b in mixed} == {True, False}
    assert next(iter(Loader((sets[0], train), 16, seed=0))).image_tokens is None  # what reads them says so


def test_what_stands_for_no_text_is_padded_where_it_is_read(tmp_path):
    clips = [finished_clip(tmp_path, i, s) for i, s in enumerate(("train", "train", "heldout"))]
    for clip in clips:
        file = Path(clip.folder) / "latents.npz"
        save_npz(file, {**load_npz(file), "empty_text": np.full((1, 384), 0.5, np.float16)})
    train, heldout = packed(clips, tmp_path / "pack")
    batch = next(iter(Loader((train,), 2, seed=0)))
    (stored,) = list_samples(heldout)
    for found in (*batch.empty_text, stored.load().empty_text):
        assert found.shape == (16, 384) and (found[0] == 0.5).all() and not found[1:].any()
    assert batch.negative_text is None and stored.load().negative_text is None
