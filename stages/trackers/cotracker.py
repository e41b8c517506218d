"""CoTracker3 (Karaev et al. 2024) through torch.hub: the paper's tracker, used by the full-size presets.

Code and weights are CC-BY-NC, so they are fetched by the user's choice and are no dependency.
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

from stages.trackers.base import TrackerConfig, Tracks, check_inputs, inside

OFFLINE, ONLINE = "cotracker3_offline", "cotracker3_online"
# Fixed in the hub's predictors: what they call visible lies above these.
THRESHOLDS = {OFFLINE: {"min_visibility": 0.9}, ONLINE: {"min_visibility_x_confidence": 0.6}}
NO_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")  # CUDA; torch on CPU; cuDNN and cuBLAS


class CoTracker:
    """cfg.name picks the variant: offline (whole clip at once, any query frame) or online (windows, query frame 0).

    cfg.hub may be a local folder with hubconf.py; cfg.checkpoint replaces the download of the weights.
    Points of one call attend to each other, so how many go together changes the tracks: where memory runs out, the whole
    clip is tracked again with half as many a call, its Tracks.notes say so, and later clips start from there.
    """

    def __init__(self, cfg: TrackerConfig, device: str = "cpu") -> None:
        self.cfg = cfg
        self.name = cfg.name
        self.version = f"{Path(cfg.hub).name}:{weights_name(cfg.checkpoint)}"
        self.licence = cfg.licence
        self.thresholds: dict[str, float] = dict(THRESHOLDS[cfg.name])
        self._device = torch.device(device)
        self._points = cfg.max_queries  # a call; never grows again
        self._predictor = load_predictor(cfg).to(self._device).eval()

    def track(self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int = 0) -> Tracks:
        """See Tracker.track. visible: as the predictor decides, within the frame. confidence: offline the probability of
        being visible, online that times the confidence in the position.

        Raises ValueError where memory does not even suffice for one point a call, or online is to look back.
        """
        check_inputs(frames, queries_xy, query_frame)
        if query_frame and self.name == ONLINE:
            raise ValueError(f"{ONLINE} cannot look back: query frame 0 only, or use {OFFLINE}")
        if not len(queries_xy):
            empty = np.zeros((len(frames), 0), bool)
            return Tracks(np.zeros((len(frames), 0, 2), np.float32), empty, empty.astype(np.float32))
        together = min(self.cfg.max_queries, len(queries_xy))
        points = min(self._points, together)
        while True:
            try:
                xy_px, visible, confidence = self._track(frames, queries_xy, query_frame, points)
                break
            except (RuntimeError, MemoryError) as e:
                if not out_of_memory(e):
                    raise
                if points == 1:
                    raise ValueError(self._too_big(frames, e)) from e
            points = self._points = (points + 1) // 2  # outside `except`, whose traceback holds on to the tensors
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        notes = (f"{self.name} ran out of memory: {points} points a call, not {together}",) if points < together else ()
        return Tracks(xy_px, visible & inside(xy_px, *frames.shape[1:3]), confidence, notes=notes)

    def _track(
        self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int, points: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """xy_px T n 2, visible T n, confidence T n, `points` a call."""
        run = self._offline if self.name == OFFLINE else self._online
        with torch.inference_mode():
            video = rearrange(torch.from_numpy(frames).to(self._device), "T h w c -> 1 T c h w").float()  # 0..255
            groups = torch.from_numpy(np.ascontiguousarray(queries_xy)).float().to(self._device).split(points)
            parts = []
            for group in groups:
                xy = group - 0.5  # CoTracker puts pixel centres at whole numbers
                queries = torch.cat([torch.full_like(xy[:, :1], query_frame), xy], dim=-1)[None]  # b n (t, x, y)
                parts.append([part[0].cpu() for part in run(video, queries, query_frame)])
            xy, visible, confidence = (torch.cat(same, dim=1) for same in zip(*parts, strict=True))
        return (xy + 0.5).numpy().astype(np.float32), visible.numpy(), confidence.float().numpy()

    def _offline(self, video: Tensor, queries: Tensor, query_frame: int) -> tuple[Tensor, Tensor, Tensor]:
        n = queries.shape[1]
        with overheard(self._predictor.model) as answers:
            tracks, visible = self._predictor(video, queries=queries, backward_tracking=query_frame > 0)
        seen = answers[0][0][..., :n]  # behind them lie the predictor's own support points
        if query_frame:
            seen[:, :query_frame] = answers[1][0].flip(1)[
                :, :query_frame, :n
            ]  # the second call ran on the clip reversed
        return tracks, visible, seen

    def _online(self, video: Tensor, queries: Tensor, query_frame: int) -> tuple[Tensor, Tensor, Tensor]:
        step = self._predictor.step
        self._predictor(video_chunk=video[:, :1], is_first_step=True, queries=queries)
        with overheard(self._predictor.model) as answers:
            for start in range(0, max(video.shape[1] - step, 1), step):
                tracks, visible = self._predictor(video_chunk=video[:, start : start + 2 * step])  # all frames so far
        tracks[:, query_frame] = queries[..., 1:]  # offline puts the queries there itself
        seen, sure = answers[-1]
        return tracks, visible, seen * sure

    def _too_big(self, frames: np.ndarray, error: BaseException) -> str:
        size = f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}"
        return (
            f"{self.name} is out of memory on {self._device} with one point a call, on {size} ({_first_line(error)}): give "
            "its worker more memory, make clips shorter (model.clip.frames), or set tracker.name=lucas_kanade"
        )


def out_of_memory(error: BaseException) -> bool:
    """torch has a class for it on accelerators only; elsewhere the words tell."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error).lower() for words in NO_MEMORY)


@contextmanager
def overheard(model: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Visibility and confidence (probabilities, b T n) of every call of the model inside, in order: the predictors drop them.

    They call `forward` itself, past any hook, and write into the visibility: hence a wrapper, and copies.
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
    """The hub's predictor with its weights, on CPU. Importing it reseeds torch, so the RNG state is put back afterwards.

    Raises ValueError naming the hub folder, repository or checkpoint that cannot be used.
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


MEND = "download it again from huggingface.co/facebook/cotracker3 (scaled_offline.pth or scaled_online.pth)"

TIME: dict[tuple[int, ...], str] = {(1, 60, 1110): "cotracker3_offline", (1, 16, 1110): "cotracker3_online"}  # time_emb


def weights_name(checkpoint: str) -> str:
    """The file's name and the start of its SHA-256, for the records of what it tracked."""
    path = Path(checkpoint).expanduser()
    if not checkpoint or not path.is_file():
        return "hub weights"
    with open(path, "rb") as f:
        return f"{path.name}@{hashlib.file_digest(f, 'sha256').hexdigest()[:8]}"


def load_weights(model: nn.Module, checkpoint: str, name: str) -> None:
    """Fills the model of variant `name`. Raises ValueError naming the file, what is wrong, and which variant it looks like."""
    state = read_state(checkpoint)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if found != wanted:
        raise ValueError(
            f"tracker.checkpoint: {checkpoint} does not fit {name}: {difference(wanted, found)}. {advice(found, name)}"
        )
    model.load_state_dict(dict(state))


def read_state(checkpoint: str) -> Mapping[str, Tensor]:
    """Tensors by name; training's own files keep them under "model". Raises ValueError where the file holds none."""
    try:
        data: Any = torch.load(Path(checkpoint).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, AttributeError) as e:
        reason = str(e).strip().partition("\n")[0] or type(e).__name__
        raise ValueError(f"tracker.checkpoint: {checkpoint} is no readable weights file ({reason}): {MEND}") from e
    if isinstance(data, dict) and "model" in data:
        data = data["model"]
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError(f"tracker.checkpoint: {checkpoint} holds no weights but {_content(data)}: {MEND}")
    return data


def difference(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], most: int = 3) -> str:
    """Shapes by name -> which are missing, unknown or other, the first of each."""

    def some(words: list[str]) -> str:
        return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")

    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [f"{k} {found[k]}, not {wanted[k]}" for k in sorted(wanted.keys() & found.keys()) if wanted[k] != found[k]]
    kinds = (("it lacks ", missing), ("it also holds ", unknown), ("shapes differ: ", other))
    return "; ".join(start + some(words) for start, words in kinds if words)


def advice(found: Mapping[str, tuple[int, ...]], name: str) -> str:
    """What the file looks like, by the length and width of its time embedding, and what to do about it."""
    time = found.get("time_emb", ())
    like = TIME.get(time)
    if like == name:
        return f"It looks like a damaged or altered {name}: {MEND}"
    if like:
        return f"It looks like {like}: set tracker.name={like}, or give the weights of {name}"
    if time[-1:] == (456,):
        return f"It looks like CoTracker 2, which cannot be used: give the weights of {name}"
    return f"It looks like no CoTracker3: give the weights of {name}, {MEND}"


def _content(data: Any) -> str:
    if not isinstance(data, dict):
        return f"a {type(data).__name__}"
    others = [f"{key}: {type(value).__name__}" for key, value in data.items() if not isinstance(value, Tensor)]
    return f"a dict of {len(data)} entries" + (f" ({', '.join(others[:3])})" if others else "")
