"""motionstream decode-latents FROM TO: decodes published sets of latents to videos with captions, for data.synthetic.

FROM is a Parquet file or a folder of them, as FastVideo publishes generated clips: one clip a row, with the columns
vae_latent_bytes, vae_latent_shape (c t h w) and vae_latent_dtype, and a caption. The latents are the VAE's own, before
they are normalised. Each clip becomes TO/NAME.mp4 with TO/NAME.txt; a clip whose video is there is left alone, so that
the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from einops import rearrange

from infra.context import free_device
from infra.files import write_atomic
from msmodel.nano.patch_vae import PatchVAE
from msmodel.vae import VideoVAE, load_vae
from pipelines.commands.options import FAILED, OK, UsageError, add_settings, configured
from stages.data.files import write_mp4

COLUMNS = ("vae_latent_bytes", "vae_latent_shape", "vae_latent_dtype", "caption")
NAMES = ("id", "file_name")  # columns that name a clip, the first that is there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", help="a .parquet file, or a folder of them")
    parser.add_argument("target", metavar="TO", help="folder of the videos")
    parser.add_argument("--clips", type=int, default=0, metavar="N", help="the first N only (default: all)")
    add_settings(parser)


def execute(options: argparse.Namespace) -> int:
    """Decodes the clips and prints how many. Returns 1 where none could be decoded."""
    cfg, target = configured(options), Path(options.target).expanduser()
    tables = parquet_files(Path(options.source).expanduser())
    vae = load_vae(cfg.vae).to(free_device())
    if not isinstance(vae, VideoVAE):
        raise UsageError(f"decode-latents: {cfg.vae.source} is not Wan's VAE: name a preset of full size (--preset)")
    target.mkdir(parents=True, exist_ok=True)
    done = failed = 0
    for number, (name, row) in enumerate(rows(tables)):
        if options.clips and number >= options.clips:
            break
        try:
            done += decode(row, target / f"{name}.mp4", vae, cfg.clip.fps)
        except ValueError as error:
            failed += 1
            print(f"{name}: left out: {error}", file=sys.stderr)
    print(f"{target}: {done} videos, {failed} left out; use them as ARGS=data.synthetic={target}")
    return OK if done else FAILED


def parquet_files(source: Path) -> list[Path]:
    """Returns the Parquet files that `source` names. Raises ValueError if there are none or one lacks a column."""
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise ValueError(f"decode-latents: {source} is neither a Parquet file nor a folder that holds any")
    for file in files:
        try:
            columns = pq.read_schema(file).names
        except pa.ArrowException as error:
            raise ValueError(f"decode-latents: {file} is no readable Parquet file ({error})") from None
        if lacking := [name for name in COLUMNS if name not in columns]:
            raise ValueError(
                f"decode-latents: {file} lacks the columns {', '.join(lacking)}; it has {', '.join(columns)}"
            )
    return files


def rows(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, row) of every clip, one at a time. The name is unique among the files and safe as a file's name."""
    for file in files:
        table = pq.ParquetFile(file)
        named = [name for name in NAMES if name in table.schema_arrow.names][:1]
        number = 0
        for batch in table.iter_batches(batch_size=1, columns=[*COLUMNS, *named]):
            for row in batch.to_pylist():
                given = str(row[named[0]]) if named else ""
                label = re.sub(r"[^\w.-]+", "_", given)[:80]
                yield f"{file.stem}-{number:06d}" + (f"-{label}" if label else ""), row
                number += 1


def decode(row: Mapping[str, Any], path: Path, vae: VideoVAE | PatchVAE, fps: float) -> int:
    """Writes one clip's video and caption, the video last. Returns 1, also where the video was already there.

    Raises ValueError where the latents are damaged or those of another VAE.
    """
    if path.exists():
        return 1
    assert isinstance(vae, VideoVAE)
    raw = latents_of(row, vae.cfg.z_channels).to(vae.mean.device)
    video = vae.decode(vae.normalise(raw))[0]
    frames = ((rearrange(video, "c t h w -> t h w c") + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    write_atomic(path.with_suffix(".txt"), str(row["caption"] or ""))
    write_mp4(path, frames, fps)
    return 1


def latents_of(row: Mapping[str, Any], channels: int) -> torch.Tensor:
    """Returns the clip's latents, 1 c t h w float32, not normalised. Raises ValueError for damaged or other ones."""
    shape, kind = tuple(row["vae_latent_shape"] or ()), str(row["vae_latent_dtype"]).removeprefix("torch.")
    if kind not in ("float16", "float32"):
        raise ValueError(f"latents of type {kind}; float16 and float32 are read")
    if len(shape) != 4 or shape[0] != channels:
        raise ValueError(f"latents of shape {shape}; this VAE has ({channels}, t, h, w)")
    values = np.frombuffer(row["vae_latent_bytes"] or b"", dtype=kind)
    if values.size != np.prod(shape):
        raise ValueError(f"{values.size} values for latents of shape {shape}: damaged")
    found = torch.from_numpy(values.reshape(shape).copy()).float()[None]
    if not bool(torch.isfinite(found).all()):
        raise ValueError("latents that are not finite")
    return found
