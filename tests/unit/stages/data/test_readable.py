"""What others read our shards and catalogue with: webdataset, Hugging Face datasets, pyarrow, pandas."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from stages.data.files import load_npz
from stages.records import Rejected
from tests.unit.stages.data.fakes import finished_clip, packed

FIGURES = {"brightness": 0.4, "sharpness": 90.0, "letterbox": 0.0, "overlay": 0.0, "visible_share": 0.9, "back_px": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A packed set: real clips with figures and notes, rendered ones with a motion and neither."""
    home, out = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("pack")
    clips = []
    for i in range(12):
        kind = ("real", "rendered")[i % 2]
        clip = finished_clip(home, i, "train", kind)
        if kind == "real":
            clip = replace(clip, quality=FIGURES, phash="0f" * 24, notes=("HDR",) * (i % 4))
        else:
            clip = replace(clip, recipe="drag")
            (Path(clip.folder) / "recipe.json").write_text(json.dumps({"kind": "drag", "seed": i}))
        clips.append(clip)
    clips += [finished_clip(home, 50 + i, "heldout", "real") for i in range(2)]
    bad = Rejected("b ö.mp4", "ingest", "empty file")
    packed(clips, out, [bad], lossless=False)
    return out, {c.clip_id: c for c in clips}


@pytest.fixture
def hugging_face(monkeypatch, tmp_path):
    """`datasets` without the network and with its cache in tmp_path."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def test_plain_webdataset_reads_the_shards(folder):
    out, clips = folder
    urls = sorted(str(p) for p in (out / "train").glob("shard-*.tar"))
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert {s["__key__"] for s in samples} == {c.clip_id for c in clips.values() if c.split == "train"}
    for sample in samples:
        clip = clips[sample["__key__"]]
        assert sample["txt"] == clip.caption
        assert sample["json"]["scene"] == clip.scene
        xy = sample["tracks.npz"]["xy_px"]
        assert np.array_equal(xy, load_npz(Path(clip.folder) / "tracks.npz")["xy_px"])


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_reads_the_shards(folder, hugging_face, streaming):
    out, clips = folder
    files = sorted(str(p) for p in (out / "train").glob("shard-*.tar"))
    data = hugging_face.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=streaming)
    data = data.cast_column("mp4", hugging_face.Video(decode=False))
    rows = list(data)
    assert {r["__key__"] for r in rows} == {c.clip_id for c in clips.values() if c.split == "train"}
    for row in rows:
        clip = clips[row["__key__"]]
        assert row["txt"] == clip.caption
        assert row["json"]["scene"] == clip.scene
        assert row["mp4"]["bytes"] == (Path(clip.folder) / "frames.mp4").read_bytes()


def test_hugging_face_reads_the_folder_by_its_card(folder, hugging_face):
    out, clips = folder
    data = hugging_face.load_dataset(str(out), streaming=True)
    assert set(data) == {"train", "heldout"}
    rows = list(data["heldout"].cast_column("mp4", hugging_face.Video(decode=False)))
    assert {r["__key__"] for r in rows} == {c.clip_id for c in clips.values() if c.split == "heldout"}
    files = str(out / "catalogue.parquet")
    table = hugging_face.load_dataset("parquet", data_files=files, split="train")
    assert len(table) == len(clips) + 1


def test_pyarrow_and_pandas_open_the_catalogue(folder):
    out, clips = folder
    path = out / "catalogue.parquet"
    table = pq.read_table(path, filters=[("split", "=", "train"), ("brightness", ">", 0.3)])
    assert set(table["name"].to_pylist()) == {c.clip_id for c in clips.values() if c.quality}
    frame = pd.read_parquet(path)
    assert len(frame) == len(clips) + 1
    kept = frame[frame.status == "kept"].set_index("name")
    assert kept.loc["clip-train-002", "notes"].tolist() == ["HDR", "HDR"]
    assert kept.loc["clip-train-002", "phash"] == "0f" * 24
    assert kept.groupby("kind").sharpness.count().to_dict() == {"real": 6, "rendered": 0}
    assert frame[frame.status == "rejected"].reason.tolist() == ["empty file"]
