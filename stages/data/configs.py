"""Makes the config of each data stage from DataConfig and ModelConfig. Only its fields decide whether a step is stale."""

from __future__ import annotations

from dataclasses import dataclass

from msmodel.config import ModelConfig
from stages.data.config import DataConfig
from stages.data.cut import CutRun
from stages.data.encode import EncodeRun
from stages.data.ingest import IngestRun
from stages.data.pack import PackRun
from stages.data.page import DataPageRun
from stages.data.render import RenderRun
from stages.data.shard import ShardRun
from stages.data.track import TrackRun


@dataclass(frozen=True)
class RunConfigs:
    """Holds one config for each data stage."""

    ingest: IngestRun
    cut: CutRun
    render: RenderRun
    track: TrackRun
    encode: EncodeRun
    shard: ShardRun
    pack: PackRun
    page: DataPageRun


def run_configs(data: DataConfig, model: ModelConfig, vae_digest: str = "", image_digest: str = "") -> RunConfigs:
    """Makes the configs. vae_digest, image_digest: of the weights of the VAE and of the image encoder."""
    clip = model.clip
    return RunConfigs(
        ingest=IngestRun(clip, data.min_side_px, data.max_side_px, data.min_aspect, data.max_aspect),
        cut=CutRun(
            clip,
            data.clip_overlap,
            data.variants,
            data.split_threshold,
            data.split_min_content,
            data.split_min_seconds,
        ),
        render=RenderRun(clip, data.motions, data.supersampling, data.grid_rows, data.grid_cols, data.object_points),
        track=TrackRun(data.tracker, data.grid_rows, data.grid_cols),
        encode=EncodeRun(
            clip,
            model.vae,
            model.text,
            vae_digest,
            model.image_encoder,
            model.dit.clip_dim,
            image_digest,
            model.image_alone,
        ),
        shard=ShardRun(data.lossless_frames),
        pack=PackRun(clip, data.gates, model.dit.clip_dim),
        page=DataPageRun(clip, data.gates),
    )
