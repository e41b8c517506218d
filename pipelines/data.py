"""make data: from any pile of videos, or the packaged clips, to two sets of shards. Read it top-down."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from infra.executor import Link
from stages.data import gates as gate
from stages.data import sources
from stages.data.configs import RunConfigs, run_configs
from stages.data.cut import CUT, segments
from stages.data.encode import ENCODE
from stages.data.gates import GateConfig
from stages.data.ingest import INGEST
from stages.data.pack import PACK, PackInputs, require_splits
from stages.data.page import DATA_PAGE
from stages.data.passing import to_encode, to_track, turned_away
from stages.data.render import RENDER
from stages.data.scene import plan_scenes
from stages.data.shard import SHARD, plan_shards
from stages.data.splits import settle_splits
from stages.data.track import TRACK, track_stage
from stages.records import Clip, DataPage, Rejected, ShardSet, Video

from .stamps import weights_stamp
from .wiring import Run

STAGES = (INGEST, CUT, TRACK, ENCODE, RENDER, SHARD, PACK, DATA_PAGE)


@dataclass(frozen=True)
class Dataset:
    train: ShardSet
    heldout: ShardSet


@dataclass(frozen=True)
class Real:
    """Clips of real videos. cut: as they left CUT; encoded: what passed every gate; dropped: what one turned away."""

    cut: tuple[Clip, ...]
    encoded: tuple[Clip, ...]
    dropped: tuple[Clip, ...]
    rejected: tuple[Rejected, ...]


def data(run: Run) -> Dataset:
    """Videos -> clips, and scenes cut from them -> tracks -> latents -> shards.

    Once a command: whatever is added to the source meanwhile belongs to the next one.
    """
    if run.cfg.data.report_only:
        raise ValueError("data.report_only packs nothing, so there is nothing to go on with: leave it out")
    return run.once(("data", run.cfg), lambda: _data(run))


def data_or_report(run: Run) -> Dataset | None:
    """The target `data`: with data.report_only, what each gate would drop, and no shard."""
    if not run.cfg.data.report_only:
        return data(run)
    with run.making("data"):
        stage = stage_configs(run)
        videos, _ = usable_videos(run)
        cut, tracked = _chain(run, stage, videos, None, encode=False)
        sources.require_usable(_clips(cut[0]), cut[1], run.cfg.src)
        print("\n".join(gate.report(_clips(tracked[0]), run.cfg.data.gates)))
        return None


def _data(run: Run) -> Dataset:
    with run.making("data"):
        videos, unusable = usable_videos(run)
        real = real_clips(run, videos)
        rendered, refused = rendered_clips(run, real)
        clips = (*real.encoded, *rendered)
        require_splits(clips)
        return _pack(run, PackInputs(clips, (*unusable, *real.rejected, *refused), real.dropped, ()))


def real_clips(run: Run, videos: list[Video]) -> Real:
    """Cut, tracked and encoded at the same time. What a gate turns away goes no further."""
    cfg, stage, gates = run.cfg, stage_configs(run), run.cfg.data.gates
    cut, tracked, encoded = _chain(run, stage, videos, gates)
    early, dark = turned_away(cut[0], gates, gate.picture_gates)
    late, lost = turned_away(tracked[0], gates, gate.track_gates)
    kept, copies = gate.sift(_clips(encoded[0]), gates)
    ids = {r.name for r in copies}
    dropped = (*early, *late, *(c for c in _clips(encoded[0]) if c.clip_id in ids))
    left_out = [*_rejected(cut[0]), *dark, *lost, *_rejected(encoded[0]), *copies]
    run.rejected += left_out
    rejected = (*cut[1], *tracked[1], *encoded[1], *left_out)
    sources.require_usable(kept, rejected, cfg.src)
    settled = settle_splits(kept, run.say)
    return Real(_clips(cut[0]), tuple(settled), dropped, rejected)


def rendered_clips(run: Run, real: Real) -> tuple[tuple[Clip, ...], list[Rejected]]:
    """Scenes cut from stills of the real clips that are kept, with exact tracks, encoded."""
    cfg, stage = run.cfg, stage_configs(run)
    split = {c.clip_id: c.split for c in real.encoded}
    stills = [replace(c, split=split[c.clip_id]) for c in real.cut if c.clip_id in split]
    links = (
        Link(RENDER, stage.render, tuple),
        Link(track_stage(cfg.data.tracker), stage.track, partial(to_track, gates=None)),
        Link(ENCODE, stage.encode, partial(to_encode, gates=None)),
    )
    *_, (records, refused) = run.chain(links, plan_scenes(cfg.data, stills, cfg.seed, run.say), "rendered")
    return _clips(records), [*refused, *_rejected(records)]


def _chain(
    run: Run, stage: RunConfigs, videos: list[Video], gates: GateConfig | None, encode: bool = True
) -> list[tuple[tuple[Clip | Rejected, ...], list[Rejected]]]:
    links = (
        Link(CUT, stage.cut, tuple),
        Link(track_stage(run.cfg.data.tracker), stage.track, partial(to_track, gates=gates)),
        Link(ENCODE, stage.encode, partial(to_encode, gates=gates)),
    )
    return run.chain(links if encode else links[:2], segments(videos, run.cfg.data), "real")


def _pack(run: Run, inputs: PackInputs) -> Dataset:
    stage, per_shard = stage_configs(run), run.cfg.data.clips_per_shard
    plans = [p for split in ("train", "heldout") for p in plan_shards(inputs.clips, split, per_shard)]
    files, _ = run.items(SHARD, stage.shard, plans)
    train, heldout = run.step(PACK, stage.pack, replace(inputs, shards=files))
    page = run.step(DATA_PAGE, stage.page, (*inputs.clips, *inputs.rejected, train, heldout))
    publish(page, Path(train.catalogue).parent, run.store.root / "report")
    return Dataset(train, heldout)


def publish(page: DataPage, pack: Path, folder: Path) -> None:
    """Copies the page and the dead-letter table to where people look for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (Path(page.html), pack / "rejected.csv"):
        aside = folder / f".{file.name}"
        shutil.copyfile(file, aside)
        aside.replace(folder / file.name)


def usable_videos(run: Run) -> tuple[list[Video], list[Rejected]]:
    """Every readable video once, and the files that are none, with the reason."""
    stage = run_configs(run.cfg.data, run.cfg.model)
    candidates, rejected = run.candidates()
    found, refused = run.items(INGEST, stage.ingest, candidates)
    videos, repeated = sources.drop_duplicates(found)
    rejected = [*rejected, *refused, *repeated]
    run.rejected += [r for r in rejected if r not in run.rejected]
    sources.require_usable(videos, rejected, run.cfg.src)
    return videos, rejected


def stage_configs(run: Run) -> RunConfigs:
    cfg, images = run.cfg, run.cfg.image_encoder.source
    image_digest = weights_stamp(f"{images}/image_encoder", "") if images else ""
    return run_configs(cfg.data, cfg.model, weights_stamp(cfg.vae.source, "vae"), image_digest)


def _clips(records: tuple[Clip | Rejected, ...]) -> tuple[Clip, ...]:
    return tuple(r for r in records if isinstance(r, Clip))


def _rejected(records: tuple[Clip | Rejected, ...]) -> list[Rejected]:
    return [r for r in records if isinstance(r, Rejected)]
