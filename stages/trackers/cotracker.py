"""CoTracker3 (Karaev et al. 2024) through torch.hub: the paper's point tracker, used by the full-size presets.

Its code and weights are CC-BY-NC: the user chooses to download them, and they are no dependency.
Legend: b batch (1), T frames, n points, c channels.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from stages.contracts import StageError
from stages.trackers.base import TrackerConfig, Tracks, check_inputs, inside

OFFLINE, ONLINE = "cotracker3_offline", "cotracker3_online"
# Fixed in the hub's predictors: a point above these counts as visible.
THRESHOLDS = {OFFLINE: {"min_visibility": 0.9}, ONLINE: {"min_visibility_x_confidence": 0.6}}
NO_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")  # CUDA; torch on CPU; cuDNN and cuBLAS


class CoTracker:
    """Runs CoTracker3. cfg.name selects offline (whole clip at once, any query frame) or online (windows, query frame 0).

    cfg.hub may be a local folder with hubconf.py; cfg.checkpoint replaces the download of the weights. Points of one call
    attend to each other, so that their number, cfg.max_queries, changes the tracks: it is one of the thresholds that are kept
    with the labels, and is never lowered where memory runs out.
    """

    def __init__(self, cfg: TrackerConfig, device: str = "cpu") -> None:
        self.cfg = cfg
        self.name = cfg.name
        self.version = f"{Path(cfg.hub).name}:{weights_name(cfg.checkpoint)}"
        self.licence = cfg.licence
        self.thresholds: dict[str, float] = {**THRESHOLDS[cfg.name], "max_queries": float(cfg.max_queries)}
        self._device = torch.device(device)
        self._predictor = load_predictor(cfg).to(self._device).eval()

    def track(self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int = 0) -> Tracks:
        """Tracks points as Tracker.track describes. visible: as the predictor decides, in the frame. confidence: offline the
        probability of being visible, online that times the confidence in the position.

        Raises StageError if memory does not suffice, and ValueError for online with another query frame than 0.
        """
        check_inputs(frames, queries_xy, query_frame)
        if query_frame and self.name == ONLINE:
            raise ValueError(f"{ONLINE} tracks from frame 0 only: use query frame 0, or {OFFLINE}")
        if not len(queries_xy):
            empty = np.zeros((len(frames), 0), bool)
            return Tracks(np.zeros((len(frames), 0, 2), np.float32), empty, empty.astype(np.float32))
        try:
            xy_px, visible, confidence = self._track(frames, queries_xy, query_frame)
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
            raise StageError(self._too_big(frames, min(self.cfg.max_queries, len(queries_xy)), e)) from e
        return Tracks(xy_px, visible & inside(xy_px, *frames.shape[1:3]), confidence)

    def _track(
        self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns xy_px T n 2, visible T n and confidence T n, with cfg.max_queries points a call."""
        run = self._offline if self.name == OFFLINE else self._online
        with torch.inference_mode():
            video = rearrange(torch.from_numpy(frames).to(self._device), "T h w c -> 1 T c h w").float()  # 0..255
            points = torch.from_numpy(np.ascontiguousarray(queries_xy)).float().to(self._device)
            parts = []
            for group in points.split(self.cfg.max_queries):
                xy = group - 0.5  # CoTracker puts pixel centres at whole numbers
                queries = torch.cat([torch.full_like(xy[:, :1], query_frame), xy], dim=-1)[None]  # b n (t, x, y)
                parts.append([part[0].cpu() for part in run(video, queries, query_frame)])
            xy, visible, confidence = (torch.cat(same, dim=1) for same in zip(*parts, strict=True))
        return (xy + 0.5).numpy().astype(np.float32), visible.numpy(), confidence.float().numpy()

    def _offline(self, video: Tensor, queries: Tensor, query_frame: int) -> tuple[Tensor, Tensor, Tensor]:
        n = queries.shape[1]
        with captured(self._predictor.model) as answers:
            tracks, visible = self._predictor(video, queries=queries, backward_tracking=query_frame > 0)
        seen = answers[0][0][..., :n]  # the predictor's own support points follow them
        if query_frame:
            seen[:, :query_frame] = answers[1][0].flip(1)[
                :, :query_frame, :n
            ]  # the second call ran on the clip reversed
        return tracks, visible, seen

    def _online(self, video: Tensor, queries: Tensor, query_frame: int) -> tuple[Tensor, Tensor, Tensor]:
        step = self._predictor.step
        self._predictor(video_chunk=video[:, :1], is_first_step=True, queries=queries)
        with captured(self._predictor.model) as answers:
            for start in range(0, max(video.shape[1] - step, 1), step):
                tracks, visible = self._predictor(video_chunk=video[:, start : start + 2 * step])  # all frames so far
        tracks[:, query_frame] = queries[..., 1:]  # offline puts the queries there itself
        seen, sure = answers[-1]
        return tracks, visible, seen * sure

    def _too_big(self, frames: np.ndarray, points: int, error: BaseException) -> str:
        size = f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}"
        return (
            f"{self.name} is out of memory on {self._device} with {points} points a call, on {size} ({_first_line(error)}). "
            f"Give each worker a whole GPU (compute.item_gpus=1), or set tracker.max_queries={(points + 1) // 2} in data and "
            "in eval.measure. Points of one call attend to each other, so that is another tracker: all labels are made again"
        )


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means lack of memory. torch has a class for it on accelerators only; else its text says so."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error).lower() for words in NO_MEMORY)


@contextmanager
def captured(model: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Captures visibility and confidence (probabilities, b T n) of every call of the model inside, which predictors discard.

    They call `forward` directly, so that a hook would not run, and write into the visibility: hence a wrapper, and copies.
    """
    answers: list[tuple[Tensor, Tensor]] = []
    forward = model.forward

    def kept(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        answers.append((out[1].clone(), out[2].clone()))
        return out

    model.forward = kept
    try:
        yield answers
    finally:
        del model.forward


def load_predictor(cfg: TrackerConfig) -> Any:
    """Loads the hub's predictor with its weights, on CPU. Importing it reseeds torch, so the RNG state is restored.

    Raises ValueError that names the hub folder, repository or checkpoint that cannot be used.
    """
    local = Path(cfg.hub).expanduser()
    if not local.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w./-]+)?", cfg.hub):
        raise ValueError(f"tracker.hub: {cfg.hub!r} is neither a folder nor a GitHub repository (owner/name)")
    if cfg.checkpoint and not Path(cfg.checkpoint).expanduser().is_file():
        raise ValueError(f"tracker.checkpoint: no file {cfg.checkpoint}")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            predictor = torch.hub.load(
                str(local) if local.is_dir() else cfg.hub,
                cfg.name,
                source="local" if local.is_dir() else "github",
                pretrained=not cfg.checkpoint,
                trust_repo=True,
            )
        except (OSError, RuntimeError, ImportError) as e:
            raise ValueError(
                f"CoTracker could not be loaded from {cfg.hub} ({e}): give tracker.hub a local clone and "
                "tracker.checkpoint a weights file, or set tracker.name=lucas_kanade"
            ) from e
    if cfg.checkpoint:
        load_weights(predictor.model, cfg.checkpoint, cfg.name)
    return predictor


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


FIX = "download it again from huggingface.co/facebook/cotracker3 (scaled_offline.pth or scaled_online.pth)"

TIME: dict[tuple[int, ...], str] = {(1, 60, 1110): "cotracker3_offline", (1, 16, 1110): "cotracker3_online"}  # time_emb


def weights_name(checkpoint: str) -> str:
    """Returns the file's name and the start of its SHA-256, which are kept with the tracks."""
    path = Path(checkpoint).expanduser()
    if not checkpoint or not path.is_file():
        return "hub weights"
    with open(path, "rb") as f:
        return f"{path.name}@{hashlib.file_digest(f, 'sha256').hexdigest()[:8]}"


def load_weights(model: nn.Module, checkpoint: str, name: str) -> None:
    """Loads the weights of variant `name`. Raises ValueError that names the file, what is wrong, and the variant it looks
    like."""
    state = read_state(checkpoint)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if found != wanted:
        raise ValueError(
            f"tracker.checkpoint: {checkpoint} does not fit {name}: {difference(wanted, found)}. {advice(found, name)}"
        )
    model.load_state_dict(dict(state))


def read_state(checkpoint: str) -> Mapping[str, Tensor]:
    """Reads tensors by name; files of a training have them under "model". Raises ValueError if the file holds none."""
    try:
        data: Any = torch.load(Path(checkpoint).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, AttributeError) as e:
        reason = str(e).strip().partition("\n")[0] or type(e).__name__
        raise ValueError(f"tracker.checkpoint: {checkpoint} is no readable weights file ({reason}): {FIX}") from e
    if isinstance(data, dict) and "model" in data:
        data = data["model"]
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError(f"tracker.checkpoint: {checkpoint} holds no weights but {_content(data)}: {FIX}")
    return data


def difference(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], most: int = 3) -> str:
    """Describes how shapes by name differ: the first of those that are missing, unknown or other."""

    def some(words: list[str]) -> str:
        return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")

    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [f"{k} {found[k]}, not {wanted[k]}" for k in sorted(wanted.keys() & found.keys()) if wanted[k] != found[k]]
    kinds = (("it lacks ", missing), ("it also holds ", unknown), ("shapes differ: ", other))
    return "; ".join(start + some(words) for start, words in kinds if words)


def advice(found: Mapping[str, tuple[int, ...]], name: str) -> str:
    """Says what the file looks like, by the size of its time embedding, and what to do."""
    time = found.get("time_emb", ())
    like = TIME.get(time)
    if like == name:
        return f"It looks like a damaged or altered {name}: {FIX}"
    if like:
        return f"It looks like {like}: set tracker.name={like}, or give the weights of {name}"
    if time[-1:] == (456,):
        return f"It looks like CoTracker 2, which cannot be used: give the weights of {name}"
    return f"It looks like no CoTracker3: give the weights of {name}, {FIX}"


def _content(data: Any) -> str:
    if not isinstance(data, dict):
        return f"a {type(data).__name__}"
    others = [f"{key}: {type(value).__name__}" for key, value in data.items() if not isinstance(value, Tensor)]
    return f"a dict of {len(data)} entries" + (f" ({', '.join(others[:3])})" if others else "")
