"""Stage SELECT (once): writes held-out clips of each kind, with counterfactual tracks, for the later stages.

Clips are chosen by their metadata. Only those chosen are decoded, one at a time.

Legend: T frames, n tracks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.contracts import Context, Stage, StageError
from stages.data.loader import Sample, StoredSample, list_samples
from stages.eval.config import SelectConfig, SelectRun
from stages.eval.counterfactual import authored, swapped
from stages.eval.items import CLIP_KINDS, EvalClip, Selection, folder_file
from stages.records import ShardSet


@dataclass(frozen=True)
class SelectInputs:
    """Inputs of stage SELECT: the held-out shards."""

    heldout: ShardSet


def run(cfg: SelectRun, inputs: SelectInputs, ctx: Context) -> Selection:
    return select(cfg, list_samples(inputs.heldout), inputs.heldout.digest, ctx)


def select(cfg: SelectRun, samples: Sequence[StoredSample], digest: str, ctx: Context) -> Selection:
    """Writes every selected clip and its tracks to ctx.workdir. Raises StageError if there is no held-out clip."""
    if not samples:
        raise StageError("data: the held-out set is empty, there is nothing to evaluate: make data with more videos")
    clips: list[EvalClip] = []
    for kind in CLIP_KINDS:
        chosen, spare = choose([s for s in samples if kind_of(s) == kind], cfg.select)
        if len(chosen) < cfg.select.clips:
            ctx.log(f"evaluation: {len(chosen)} held-out {kind} clips, {cfg.select.clips} were asked for")
        clips += _write_kind(chosen, kind, cfg, ctx)
        clips += [replace(_write_clip(s.load(), kind, cfg.select, ctx), spare=True) for s in spare]
    return Selection(str(ctx.workdir), tuple(clips), digest)


def choose(samples: Sequence[StoredSample], cfg: SelectConfig) -> tuple[list[StoredSample], list[StoredSample]]:
    """Returns the clips to evaluate and as many spare ones, if there are.

    Scenes alternate, in an order that depends on ids only.
    """
    by_scene: dict[str, list[StoredSample]] = {}
    for sample in sorted(samples, key=lambda s: _hash(clip_id(s))):
        by_scene.setdefault(str(sample.meta["scene"]), []).append(sample)
    turns = sorted(by_scene.values(), key=lambda group: _hash(str(group[0].meta["scene"])))
    order = [group[i] for i in range(max(map(len, turns), default=0)) for group in turns if i < len(group)]
    return order[: cfg.clips], order[cfg.clips : 2 * cfg.clips]


def kind_of(sample: StoredSample) -> str:
    return str(sample.meta["kind"])


def clip_id(sample: Sample | StoredSample) -> str:
    return str(sample.meta["clip_id"])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_kind(chosen: Sequence[StoredSample], kind: str, cfg: SelectRun, ctx: Context) -> list[EvalClip]:
    """Writes the selected clips of one kind; the first counterfactual_clips of them also get counterfactual tracks."""
    out = []
    for i, stored in enumerate(chosen):
        sample = stored.load()
        clip = _write_clip(sample, kind, cfg.select, ctx)
        if i < cfg.select.counterfactual_clips:
            other = other_scene(chosen, i)
            extra = [
                (name, _write_tracks(ctx.workdir, f"{clip.clip_id}-{name}", *tracks))
                for name in cfg.select.counterfactuals
                if (tracks := counterfactual(name, sample, other, cfg.select, ctx.seed)) is not None
            ]
            clip = replace(clip, tracks=clip.tracks + tuple(extra))
        del sample  # before the next one is decoded
        out.append(clip)
    return out


def other_scene(chosen: Sequence[StoredSample], i: int) -> StoredSample | None:
    """Returns the next selected clip of another scene, None if there is none."""
    rest = [chosen[(i + k) % len(chosen)] for k in range(1, len(chosen))]
    return next((s for s in rest if s.meta["scene"] != chosen[i].meta["scene"]), None)


def counterfactual(
    name: str, sample: Sample, other: StoredSample | None, cfg: SelectConfig, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the tracks (T n 2, T n) of one counterfactual, or None if a swap finds no other scene."""
    if name == "swap":
        return None if other is None else few_tracks(*swapped(*other.tracks()), cfg.tracks, clip_id(sample))
    frames, height, width, _ = sample.frames.shape
    generator = np.random.default_rng([seed, int(_hash(f"{clip_id(sample)} {name}")[:12], 16)])
    return authored(name, (height, width), frames, cfg.motions, generator)


def few_tracks(xy_px: np.ndarray, visible: np.ndarray, most: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `most` of the tracks that are visible in frame 0, in their old order. They depend on `key` only."""
    asked = np.flatnonzero(visible[0])
    if len(asked) > most:
        asked = np.sort(np.random.default_rng(int(_hash(key)[:12], 16)).permutation(asked)[:most])
    return xy_px[:, asked].astype(np.float32), visible[:, asked].astype(bool)


def _write_clip(sample: Sample, kind: str, cfg: SelectConfig, ctx: Context) -> EvalClip:
    name = clip_id(sample)
    file = folder_file(ctx.workdir / "clips", f"{name}.npz")
    names = ("frames", "latents", "image", "text", "clip", "empty_text", "negative_text")
    arrays = {k: np.asarray(vars(sample)[k]) for k in names if vars(sample)[k] is not None}
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    own = few_tracks(np.asarray(sample.xy_px), np.asarray(sample.visible), cfg.tracks, name)
    tracks = (("tracks", _write_tracks(ctx.workdir, name, *own)),)
    source, recipe, tracker = (str(sample.meta.get(k, "")) for k in ("source", "recipe", "tracker"))
    return EvalClip(name, kind, file, tracks, sample.caption, source, recipe, tracker)


def _write_tracks(folder: Path, name: str, xy_px: np.ndarray, visible: np.ndarray) -> str:
    file = folder_file(folder / "tracks", f"{name}.npz")
    np.savez_compressed(file, xy_px=xy_px, visible=visible)
    return file


SELECT = Stage("eval_select", version=1, how="once", run=run)
