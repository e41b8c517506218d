"""Published sets of latents become videos with captions."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from msmodel.config import VAEConfig
from msmodel.vae import load_vae
from pipelines.commands import decode_latents
from pipelines.commands.rehearse.weights import write_vae
from stages.data.shards import decode_mp4

SHAPE = (16, 3, 4, 6)


def row(seed: int, **changes):
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    own = {"vae_latent_bytes": values.tobytes(), "vae_latent_shape": list(SHAPE), "vae_latent_dtype": "float32"}
    return {"id": f"a clip/{seed}", "caption": f"caption {seed}"} | own | changes


def written(folder: Path, rows) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    return folder


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"), VAEConfig("", 16, 4, 8))


def execute(source: Path, target: Path, wan: Path, clips: int = 0) -> int:
    settings = [f"vae.source={wan}", "clip.height=32", "clip.width=48", "clip.frames=9"]
    given = {"preset": "wan21-1.3b", "runs": "runs", "settings": settings, "clips": clips}
    return decode_latents.execute(argparse.Namespace(source=str(source), target=str(target), **given))


@pytest.mark.slow
def test_each_row_becomes_a_video_with_its_caption_and_broken_ones_are_listed(tmp_path, wan, capsys):
    short = row(1, vae_latent_bytes=b"1234")
    other = row(2, vae_latent_shape=[48, 1, 4, 6])
    source = written(tmp_path / "set", [row(0), short, other, row(3, vae_latent_dtype="bfloat16")])
    assert execute(source, tmp_path / "out", wan) == 0
    videos = sorted((tmp_path / "out").glob("*.mp4"))
    assert [v.name for v in videos] == ["part-000000-a_clip_0.mp4"]
    assert videos[0].with_suffix(".txt").read_text() == "caption 0"
    err = capsys.readouterr().err
    assert "1 values for latents of shape (16, 3, 4, 6): damaged" in err
    assert "this VAE has (16, t, h, w)" in err and "latents of type bfloat16" in err
    vae = load_vae(VAEConfig(str(wan), 16, 4, 8))
    raw = torch.from_numpy(np.frombuffer(row(0)["vae_latent_bytes"], np.float32).reshape(1, *SHAPE).copy())
    expected = ((vae.decode(vae.normalise(raw))[0].movedim(0, -1) + 1) * 127.5).numpy()
    got = decode_mp4(videos[0].read_bytes())
    assert got.shape == (9, 32, 48, 3)
    assert np.abs(got - expected).mean() < 12  # H.264 of noise


@pytest.mark.slow
def test_the_same_command_goes_on_where_it_was_stopped(tmp_path, wan):
    source = written(tmp_path / "set", [row(0), row(1)])
    assert execute(source, tmp_path / "out", wan, clips=1) == 0
    first = next((tmp_path / "out").glob("*.mp4"))
    before = first.stat().st_mtime_ns
    assert execute(source, tmp_path / "out", wan) == 0
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2 and first.stat().st_mtime_ns == before


def test_what_is_no_such_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a Parquet file nor a folder"):
        decode_latents.parquet_files(tmp_path)
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"a\.parquet is no readable Parquet file"):
        decode_latents.parquet_files(tmp_path)
    pq.write_table(pa.Table.from_pylist([{"caption": "x", "video": "y"}]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns vae_latent_bytes.*it has caption, video"):
        decode_latents.parquet_files(tmp_path / "a.parquet")


def test_latents_that_are_not_finite_are_refused():
    values = np.full(SHAPE, np.nan, np.float16)
    with pytest.raises(ValueError, match="not finite"):
        decode_latents.latents_of(row(0, vae_latent_bytes=values.tobytes(), vae_latent_dtype="float16"), 16)
