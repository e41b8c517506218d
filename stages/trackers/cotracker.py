"""CoTracker3 (Karaev et al. 2024) through torch.hub: the paper's tracker, used by the full-size presets.

Code and weights are CC-BY-NC, so they are fetched by the user's choice and are no dependency.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from stages.trackers.base import TrackerConfig, Tracks, check_inputs, inside


class CoTracker:
    """cfg.name picks the variant: offline (whole clip at once, any query frame) or online (windows, query frame 0).

    cfg.hub may be a local folder with hubconf.py; cfg.checkpoint replaces the download of the weights.
    """

    def __init__(self, cfg: TrackerConfig) -> None:
        self.cfg = cfg
        self.name = cfg.name
        self.version = f"{cfg.hub}:{Path(cfg.checkpoint).name or 'hub weights'}"
        self.licence = cfg.licence
        self.thresholds: dict[str, float] = {}
        self._predictor = load_predictor(cfg)

    def track(self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int = 0) -> Tracks:
        """See Tracker.track. Points go in groups of cfg.max_queries, which bounds memory."""
        check_inputs(frames, queries_xy, query_frame)
        video = rearrange(torch.from_numpy(frames).to(self.cfg.device), "T h w c -> 1 T c h w").float()  # 0..255
        run = self._offline if self.cfg.name == "cotracker3_offline" else self._online
        paths, flags = [], []
        with torch.inference_mode():
            for group in torch.from_numpy(np.ascontiguousarray(queries_xy)).float().split(self.cfg.max_queries):
                xy = group.to(self.cfg.device) - 0.5  # CoTracker puts pixel centres at whole numbers
                queries = torch.cat([torch.full_like(xy[:, :1], query_frame), xy], dim=-1)[None]  # b n (t, x, y)
                tracks, visible = run(video, queries, query_frame)
                paths.append(tracks[0, : len(frames)].cpu() + 0.5)
                flags.append(visible[0, : len(frames)].cpu().bool())
        xy_px = torch.cat(paths, dim=1).numpy().astype(np.float32)
        visible = torch.cat(flags, dim=1).numpy() & inside(xy_px, *frames.shape[1:3])
        return Tracks(xy_px, visible, visible.astype(np.float32))

    def _offline(self, video: torch.Tensor, queries: torch.Tensor, query_frame: int) -> Any:
        return self._predictor(video, queries=queries, backward_tracking=query_frame > 0)

    def _online(self, video: torch.Tensor, queries: torch.Tensor, query_frame: int) -> Any:
        if query_frame:
            raise ValueError("cotracker3_online cannot look back: query frame 0 only, or use cotracker3_offline")
        step = self._predictor.step
        self._predictor(video_chunk=video, is_first_step=True, queries=queries)
        out = None
        for start in range(0, max(video.shape[1] - step, 1), step):
            out = self._predictor(video_chunk=video[:, start : start + 2 * step])
        assert out is not None
        return out


def load_predictor(cfg: TrackerConfig) -> Any:
    """The hub's predictor with its weights. Importing it reseeds torch, so the RNG state is put back afterwards.

    Raises ValueError naming the hub folder, repository or checkpoint that cannot be used.
    """
    local = Path(cfg.hub).expanduser()
    source = "local" if local.is_dir() else "github"
    if cfg.checkpoint and not Path(cfg.checkpoint).is_file():
        raise ValueError(f"tracker.checkpoint: no file {cfg.checkpoint}")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            predictor = torch.hub.load(
                str(local) if source == "local" else cfg.hub,
                cfg.name,
                source=source,
                pretrained=not cfg.checkpoint,
                trust_repo=True,
            )
        except (OSError, RuntimeError, ImportError) as e:
            raise ValueError(
                f"CoTracker could not be loaded from {cfg.hub} ({e}): give tracker.hub a local clone and "
                "tracker.checkpoint a weights file, or set tracker.name=lucas_kanade"
            ) from e
    if cfg.checkpoint:
        predictor.model.load_state_dict(torch.load(cfg.checkpoint, map_location="cpu", weights_only=True))
    return predictor.to(cfg.device).eval()
