"""make data: makes two sets of shards (train and heldout) from a folder or list of videos, or from the packaged
clips."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipelines.run import Run
from pipelines.stamps import weights_stamp
from stages.contracts import StageError, StageSpec
from stages.data import gates as gate
from stages.data import sources
from stages.data.configs import RunConfigs, run_configs
from stages.data.cut import CUT, Segment, segments
from stages.data.encode import ENCODE
from stages.data.gates import GateConfig, dropped_by_gates, to_encode, to_track
from stages.data.ingest import INGEST
from stages.data.pack import PACK, PACK_PARTS, PackInputs, PartsInputs, require_splits
from stages.data.page import DATA_PAGE
from stages.data.render import RENDER
from stages.data.scene import plan_scenes
from stages.data.shard import SHARD, plan_shards
from stages.data.splits import settle_splits
from stages.data.track import TRACK, track_stage
from stages.records import Clip, DataPage, Rejected, ShardSet, Video

STAGES = (INGEST, CUT, TRACK, ENCODE, RENDER, SHARD, PACK, DATA_PAGE)
NOT_APART = (
    "data.synthetic names no generated videos: all trainings take all clips, where the paper's phase 1 takes real ones, its "
    "phase 2 and distillation synthetic ones"
)


@dataclass(frozen=True)
class Dataset:
    """The packed shard sets of one data set. real, synthetic: the two parts of train; None if no clip is generated."""

    train: ShardSet
    heldout: ShardSet
    real: ShardSet | None = None
    synthetic: ShardSet | None = None

    def clips(self, which: str) -> ShardSet:
        """Returns the set that data.phase1_clips, phase2_clips or distill_clips names ("real", "synthetic" or all): a
        part of train, or all of train if it is not divided."""
        return {"real": self.real, "synthetic": self.synthetic}.get(which) or self.train


@dataclass(frozen=True)
class Real:
    """The clips cut from videos; those of generated videos have kind "generated".

    cut: all clips that the stage CUT returned. encoded: those that passed every gate. dropped: those that a gate
    dropped. rejected: inputs without a result, with the reason.
    """

    cut: tuple[Clip, ...]
    encoded: tuple[Clip, ...]
    dropped: tuple[Clip, ...]
    rejected: tuple[Rejected, ...]


def data(run: Run) -> Dataset:
    """Makes the data set: videos to clips, clips to rendered scenes, and both to tracks, latents and shards.

    It runs once per command; files that are added to the source meanwhile are used by the next command. Raises
    ValueError with data.report_only, which packs nothing.
    """
    if run.cfg.data.report_only:
        raise ValueError("data.report_only packs nothing, so that no later step can run: leave it out")
    return run.once(("data", run.cfg), lambda: _data(run))


def data_or_report(run: Run) -> Dataset | None:
    """Runs the target `data`. With data.report_only it prints what each gate would drop, packs nothing and returns
    None."""
    if not run.cfg.data.report_only:
        return data(run)
    with run.making("data"):
        stage = stage_configs(run)
        generated, _ = generated_videos(run)
        videos, _ = usable_videos(run, generated)
        cut, tracked = _chain(run, stage, _segments(run, videos, generated), None, encode=False)
        sources.require_usable(_clips(cut[0]), cut[1], run.cfg.src)
        print("\n".join(gate.report(_clips(tracked[0]), run.cfg.data.gates)))
        return None


def _data(run: Run) -> Dataset:
    with run.making("data"):
        generated, not_usable = generated_videos(run)
        videos, unusable = usable_videos(run, generated)
        real = real_clips(run, videos, generated)
        rendered, refused = rendered_clips(run, real)
        clips = (*real.encoded, *rendered)
        require_splits(clips)
        made = _pack(run, PackInputs(clips, (*not_usable, *unusable, *real.rejected, *refused), real.dropped, ()))
        if made.synthetic is None and "synthetic" in (run.cfg.data.phase2_clips, run.cfg.data.distill_clips):
            run.log(NOT_APART)
        return made


def real_clips(run: Run, videos: list[Video], generated: Sequence[Video] = ()) -> Real:
    """Cuts, tracks and encodes the videos concurrently; clips that a gate drops are not processed further.

    generated: generated videos, whose clips are used for training only.
    """
    cfg, stage, gates = run.cfg, stage_configs(run), run.cfg.data.gates
    cut, tracked, encoded = _chain(run, stage, _segments(run, videos, generated), gates)
    before_tracking, picture_rejections = dropped_by_gates(cut[0], gates, gate.picture_gates)
    after_tracking, track_rejections = dropped_by_gates(tracked[0], gates, gate.track_gates)
    kept, copies = gate.apply_gates(_clips(encoded[0]), gates)
    ids = {r.name for r in copies}
    dropped = (*before_tracking, *after_tracking, *(c for c in _clips(encoded[0]) if c.clip_id in ids))
    left_out = [*_rejected(cut[0]), *picture_rejections, *track_rejections, *_rejected(encoded[0]), *copies]
    run.rejected += left_out
    rejected = (*cut[1], *tracked[1], *encoded[1], *left_out)
    made = {video.video_id for video in generated}

    def marked(clips: Iterable[Clip]) -> tuple[Clip, ...]:
        return tuple(replace(c, kind="generated") if c.scene in made else c for c in clips)

    real, synthetic = ([c for c in kept if (c.scene in made) == of] for of in (False, True))
    sources.require_usable(real, rejected, cfg.src)
    if generated:
        with _naming_synthetic():
            sources.require_usable(synthetic, rejected, cfg.data.synthetic)
    encoded_clips = (*settle_splits(real, run.log), *marked(synthetic))
    return Real(marked(_clips(cut[0])), encoded_clips, marked(dropped), rejected)


def rendered_clips(run: Run, real: Real) -> tuple[tuple[Clip, ...], list[Rejected]]:
    """Renders scenes with exact tracks from stills of the real clips that passed the gates, and encodes the scenes."""
    cfg, stage = run.cfg, stage_configs(run)
    split = {c.clip_id: c.split for c in real.encoded}
    stills = [replace(c, split=split[c.clip_id]) for c in real.cut if c.clip_id in split]
    specs = (
        StageSpec(RENDER, stage.render, tuple),
        StageSpec(track_stage(cfg.data.tracker), stage.track, partial(to_track, gates=None)),
        StageSpec(ENCODE, stage.encode, partial(to_encode, gates=None)),
    )
    *_, (records, refused) = run.chain(specs, plan_scenes(cfg.data, stills, cfg.seed, run.log), "rendered")
    return _clips(records), [*refused, *_rejected(records)]


def _segments(run: Run, videos: Sequence[Video], generated: Sequence[Video]) -> list[Segment]:
    """Returns the segments of all videos. Generated videos are never held out, because the evaluation uses real and
    rendered clips only."""
    train = dict.fromkeys((v.video_id for v in generated), "train")
    return segments(videos, run.cfg.data) + segments(generated, run.cfg.data, train)


def _chain(
    run: Run, stage: RunConfigs, parts: Sequence[Segment], gates: GateConfig | None, encode: bool = True
) -> list[tuple[tuple[Clip | Rejected, ...], list[Rejected]]]:
    specs = (
        StageSpec(CUT, stage.cut, tuple),
        StageSpec(track_stage(run.cfg.data.tracker), stage.track, partial(to_track, gates=gates)),
        StageSpec(ENCODE, stage.encode, partial(to_encode, gates=gates)),
    )
    return run.chain(specs if encode else specs[:2], parts, "real")


def _pack(run: Run, inputs: PackInputs) -> Dataset:
    stage, per_shard = stage_configs(run), run.cfg.data.clips_per_shard
    plans = [p for split in ("train", "heldout") for p in plan_shards(inputs.clips, split, per_shard)]
    files, _ = run.items(SHARD, stage.shard, plans)
    train, heldout = run.step(PACK, stage.pack, replace(inputs, shards=files))
    shown: tuple[Clip | Rejected | ShardSet, ...] = (*inputs.clips, *inputs.rejected, train, heldout)
    page = run.step(DATA_PAGE, stage.page, shown)
    publish(page, Path(train.catalogue).parent, run.store.root / "report")
    if not any(c.kind == "generated" for c in inputs.clips):
        return Dataset(train, heldout)
    return Dataset(train, heldout, *run.step(PACK_PARTS, stage.pack, PartsInputs(files, train.catalogue)))


def publish(page: DataPage, pack: Path, folder: Path) -> None:
    """Copies the page, and rejected.csv of the folder `pack`, to the report folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (Path(page.html), pack / "rejected.csv"):
        aside = folder / f".{file.name}"
        shutil.copyfile(file, aside)
        aside.replace(folder / file.name)


def usable_videos(run: Run, generated: Sequence[Video] = ()) -> tuple[list[Video], list[Rejected]]:
    """Returns every readable video of SRC once, and the rejected files with their reasons. generated: videos to leave
    out where SRC contains them too."""
    return _ingested(run, run.cfg.src, "", generated)


def generated_videos(run: Run) -> tuple[list[Video], list[Rejected]]:
    """Returns the readable videos of data.synthetic, and its rejected files with their reasons; two empty lists if the
    setting is empty."""
    if not run.cfg.data.synthetic:
        return [], []
    with _naming_synthetic():
        return _ingested(run, run.cfg.data.synthetic, "generated")


def _ingested(run: Run, src: str, label: str, known: Sequence[Video] = ()) -> tuple[list[Video], list[Rejected]]:
    stage = run_configs(run.cfg.data, run.cfg.model)
    candidates, rejected = run.candidates(src)
    found, refused = run.items(INGEST, stage.ingest, candidates, label)
    videos, repeated = sources.drop_duplicates(found, known)
    rejected = [*rejected, *refused, *repeated]
    run.rejected += [r for r in rejected if r not in run.rejected]
    sources.require_usable(videos, rejected, src)
    return videos, rejected


@contextmanager
def _naming_synthetic() -> Iterator[None]:
    """Rewrites errors of the block so that they name data.synthetic in place of SRC."""
    try:
        yield
    except ValueError as error:
        raise StageError(re.sub(r"\bSRC(?==| empty)", "data.synthetic", str(error))) from None


def stage_configs(run: Run) -> RunConfigs:
    """Returns the configs of the data stages, with digests of the weights that they read."""
    cfg, images = run.cfg, run.cfg.image_encoder.source
    image_digest = weights_stamp(f"{images}/image_encoder", "") if images else ""
    return run_configs(cfg.data, cfg.model, weights_stamp(cfg.vae.source, "vae"), image_digest)


def _clips(records: tuple[Clip | Rejected, ...]) -> tuple[Clip, ...]:
    return tuple(r for r in records if isinstance(r, Clip))


def _rejected(records: tuple[Clip | Rejected, ...]) -> list[Rejected]:
    return [r for r in records if isinstance(r, Rejected)]
