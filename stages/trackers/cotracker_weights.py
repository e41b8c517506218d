"""CoTracker's weights from a file: read without running anything in it, and refused where they are another model's."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
    odd = [f"{key}: {type(value).__name__}" for key, value in data.items() if not isinstance(value, Tensor)]
    return f"a dict of {len(data)} entries" + (f" ({', '.join(odd[:3])})" if odd else "")
