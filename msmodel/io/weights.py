"""Weights on disk: a folder with model.safetensors and config.json, written under temporary names and renamed.

config.json of a transformer contains its ModelConfig, so that a folder is enough to rebuild the model. Others' weights
are loaded by msmodel/io/backbones.py. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.io.tensor_files import listed, located, open_tensors, read_json, some

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TRANSFORMER, TRACK_HEAD = "transformer", "track_head"  # subfolders of an export (msmodel/io/export.py)

Model = TypeVar("Model", bound=WanDiT)


def save_weights(
    module: nn.Module, folder: Path | str, meta: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
) -> None:
    """Writes WEIGHTS and CONFIG into `folder`, each under a temporary name first and then renamed.

    meta: JSON-able facts about the weights (step, stage, source...), stored under "meta"; a WanDiT's ModelConfig is
    stored under "model". state: the tensors to save, by default the module's. They are saved in their own types.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"class": type(module).__name__, "meta": dict(meta)}
    if isinstance(module, WanDiT):
        config["model"] = asdict(module.cfg)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"  # fails before anything is replaced
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or module.state_dict()).items()}
    _write_aside(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _write_aside(folder / CONFIG, lambda path: path.write_text(text))


def _write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_state(folder_or_file: Path | str) -> dict[str, Tensor]:
    """Returns tensors by name, on the CPU. Raises ValueError as `tensor_files.open_tensors` does."""
    files = open_tensors(folder_or_file)
    return {name: files.read(name) for name in files.shapes}


def read_config(folder: Path | str) -> dict[str, Any]:
    """Returns CONFIG of a folder, or of the folder that contains a weights file; of an export, the one of its track head.

    Raises ValueError when it is missing or damaged.
    """
    path = located(folder)
    if not path.is_dir():
        path = path.parent
    return read_json((path / TRACK_HEAD if (path / TRANSFORMER).is_dir() else path) / CONFIG)


def load_weights(module: nn.Module, folder_or_file: Path | str, strict: bool = True) -> None:
    """Copies weights into `module`, converted to its types.

    Raises ValueError naming missing, unexpected and mis-shaped tensors. With strict=False missing and unexpected ones
    are skipped; mis-shaped ones are always an error.
    """
    fit_state(module, read_state(folder_or_file), str(folder_or_file), strict)


def fit_state(module: nn.Module, state: Mapping[str, Tensor], source: str, strict: bool = True) -> None:
    """Copies tensors that have been read into `module`, as `load_weights` does; `source` names them in errors."""
    own = module.state_dict()
    problems = []
    if strict:
        for kind, names in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
            if names:
                problems.append(f"{len(names)} {kind}: {some(names)}")
    misshaped = [
        f"{name} {tuple(state[name].shape)} should be {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if misshaped:
        problems.append(f"{len(misshaped)} mis-shaped: " + listed(misshaped))
    if problems:
        raise ValueError(f"{source}: weights do not fit {type(module).__name__}: " + "; ".join(problems))
    module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=strict)


def model_config(values: Mapping[str, Any], cls: type = ModelConfig, where: str = "model") -> Any:
    """Returns a config dataclass from asdict's nested dicts (JSON lists become tuples).

    A missing key gets its default: the file is older than the field, and the defaults of new fields keep the earlier
    behaviour. Raises ValueError for unknown keys.
    """
    if unknown := set(values) - {f.name for f in fields(cls)}:
        raise ValueError(f"{where}: unknown keys {', '.join(sorted(unknown))}; the file is of another version")
    hints = get_type_hints(cls)
    built = {}
    for name, value in values.items():
        if is_dataclass(hints[name]) and isinstance(hints[name], type):
            built[name] = model_config(value, hints[name], f"{where}.{name}")
        else:
            built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def _load(folder: Path | str, cls: type[Model]) -> Model:
    config = read_config(folder)
    if "model" not in config:
        raise ValueError(f"{folder}: {CONFIG} holds no model sizes, so these are no transformer weights")
    state = read_state(folder)
    model = cls(model_config(config["model"], where=f"{folder}/{CONFIG}: model"))
    model.to(state["patch_embedding.weight"].dtype if "patch_embedding.weight" in state else torch.float32)
    fit_state(model, state, str(folder))
    return model


def inference_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """Returns the type in which frozen models run. precision: "bf16", "fp32", or "auto": bfloat16 on a GPU, float32 on
    a CPU (whose bfloat16 is far slower)."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def load_teacher(folder: Path | str) -> WanDiT:
    """Loads the bidirectional model in `folder`, sized by its config.json, in the saved type and in training mode."""
    return _load(folder, WanDiT)


def load_student(folder: Path | str) -> CausalDiT:
    """Loads the causal model in `folder`. A teacher's folder is accepted too, as both have the same parameters."""
    return _load(folder, CausalDiT)


def causal_from(teacher: WanDiT) -> CausalDiT:
    """Returns a student with a copy of the teacher's weights (same type and device)."""
    student = CausalDiT(teacher.cfg)
    parameter = teacher.patch_embedding.weight
    student.to(device=parameter.device, dtype=parameter.dtype)
    student.load_state_dict(teacher.state_dict())
    return student
