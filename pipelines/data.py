"""make data: from a folder of videos, or the packaged clips, to two sets of shards. Read it top-down."""

from __future__ import annotations

from dataclasses import dataclass

from stages.data import sources
from stages.data.configs import run_configs
from stages.data.cut import CUT, segments
from stages.data.encode import ENCODE
from stages.data.ingest import INGEST
from stages.data.pack import PACK
from stages.data.render import RENDER
from stages.data.scene import plan_scenes
from stages.data.splits import settle_splits
from stages.data.track import TRACK, group_clips
from stages.records import Clip, Rejected, ShardSet, Video

from .stamps import weights_stamp
from .wiring import Run

STAGES = (INGEST, CUT, RENDER, TRACK, ENCODE, PACK)


@dataclass(frozen=True)
class Dataset:
    train: ShardSet
    heldout: ShardSet


def data(run: Run) -> Dataset:
    """Videos -> clips, and scenes cut from them -> tracks -> latents -> shards.

    Once a command: whatever is added to the source meanwhile belongs to the next one.
    """
    return run.once(("data", run.cfg), lambda: _data(run))


def _data(run: Run) -> Dataset:
    with run.making("data"):
        cfg = run.cfg
        stage = run_configs(cfg.data, cfg.model, weights_stamp(cfg.vae.source, "vae"))
        videos, rejected = usable_videos(run)

        cut, refused = run.items(CUT, stage.cut, segments(videos, cfg.data))
        rejected += [*refused, *(c for c in cut if isinstance(c, Rejected))]
        real = [c for c in cut if isinstance(c, Clip)]
        sources.require_usable(real, rejected, cfg.src)
        real = settle_splits(real, run.say)

        scenes = plan_scenes(cfg.data, real, cfg.seed, run.say)
        rendered, refused = run.items(RENDER, stage.render, scenes)
        rejected += refused

        tracked, refused = run.items(TRACK, stage.track, group_clips([*real, *rendered]))
        rejected += refused
        encoded, refused = run.items(ENCODE, stage.encode, group_clips(tracked))
        rejected += refused
        train, heldout = run.step(PACK, stage.pack, (*encoded, *rejected))
        return Dataset(train, heldout)


def usable_videos(run: Run) -> tuple[list[Video], list[Rejected]]:
    """Every readable video once, and the files that are none, with the reason."""
    stage = run_configs(run.cfg.data, run.cfg.model)
    folder = run.source_folder()
    if folder and run.store.root.parent.is_relative_to(folder):
        raise ValueError(
            f"SRC={folder} holds RUNS={run.store.root.parent}: its videos would become sources; move one of them"
        )
    candidates, rejected = sources.find_candidates(folder)
    found, refused = run.items(INGEST, stage.ingest, candidates)
    videos, repeated = sources.drop_duplicates(found)
    rejected = [*rejected, *refused, *repeated]
    run.rejected += [r for r in rejected if r not in run.rejected]
    sources.require_usable(videos, rejected, run.cfg.src)
    return videos, rejected
