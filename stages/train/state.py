"""Saved training states. A save is written under a temporary name and renamed when complete; the last two are kept.

Any number of ranks can resume from a save. SAVES/step-00000100/ holds unsharded tensors by name in
MODULE.state-00000-of-00002.safetensors (weights in float32 and the optimizer's state) and MODULE.ema-...; each rank
writes every ranks-th tensor. random-00000.pt is a rank's global random state. save.json holds the step, the loader's
position and a description of the training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.contracts import Context, Engine, StageError
from stages.train.ema import Ema
from stages.train.method import Loader, TrainableModule

KEEP = 2
SAVES = "saves"
MAY_DIFFER = ("log_steps", "validate_steps", "save_minutes", "save_steps")  # they change no result


@dataclass(frozen=True)
class Training:
    """The parts of a training that change from step to step, by module. emas: only of modules whose average is kept."""

    modules: Mapping[str, TrainableModule]
    engines: Mapping[str, Engine]
    emas: Mapping[str, Ema]
    loader: Loader


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of one saved state, read from its part files one by one. Raises ValueError if a part is missing."""

    def __init__(self, folder: Path, name: str) -> None:
        parts = sorted(folder.glob(f"{name}-*.safetensors"))
        count = int(parts[0].stem.rpartition("-of-")[2]) if parts else 0
        if not parts or len(parts) != count:
            raise ValueError(f"{len(parts)} of {count or 'the'} parts of {name} are there")
        self._files = [safe_open(path, "pt") for path in parts]
        self._file_of = {key: file for file in self._files for key in file.keys()}  # noqa: SIM118 (no mapping)

    def __getitem__(self, key: str) -> Tensor:
        return self._file_of[key].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def saves(workdir: Path) -> list[Path]:
    """Returns the folders of complete saves, oldest first."""
    return sorted(p for p in (workdir / SAVES).glob("step-*") if p.is_dir())


def save(training: Training, step: int, ctx: Context) -> Path:
    """Saves the state after `step` steps and returns the save's folder. Every rank calls it."""
    final = ctx.workdir / SAVES / f"step-{step:08d}"
    aside = final.with_name(f".writing-{step:08d}")
    if ctx.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    ctx.barrier()
    for name, engine in training.engines.items():
        _write_share(engine.state(), aside / f"{name}.state", ctx)
    for name, ema in training.emas.items():
        whole = ((n, training.engines[name].gather(n, shard)) for n, shard in ema.shadow.items())
        _write_share(whole, aside / f"{name}.ema", ctx)
    torch.save(_random(ctx.device), aside / f"random-{ctx.rank:05d}.pt")
    if ctx.rank == 0:
        updates = {n: e.updates for n, e in training.emas.items()}
        about = {"step": step, "ema_updates": updates, "loader": training.loader.state_dict(), "about": dict(ctx.about)}
        (aside / "save.json").write_text(json.dumps(about, indent=1))
    ctx.barrier()
    if ctx.rank == 0:
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        for old in saves(ctx.workdir)[:-KEEP]:
            shutil.rmtree(old)
        ctx.keep(final)
    ctx.barrier()
    return final


def resume(training: Training, ctx: Context) -> int:
    """Restores the newest save in ctx.workdir, or the one that the run keeps elsewhere.

    Returns the number of finished steps (0: a fresh start). Raises StageError if the save cannot be read, or is of
    another training, with the differences.
    """
    ctx.recall(SAVES)
    found = saves(ctx.workdir)
    if not found:
        return 0
    folder = found[-1]
    try:
        about = json.loads((folder / "save.json").read_text())
        _require_same(about["about"], ctx.about, folder)
        for name, engine in training.engines.items():
            engine.load(SavedTensors(folder, f"{name}.state"))
        for name, ema in training.emas.items():
            _load_average(ema, training.engines[name], SavedTensors(folder, f"{name}.ema"), about["ema_updates"][name])
        training.loader.load_state_dict(about["loader"])
    except StageError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise StageError(
            f"{folder} cannot be resumed ({error}): delete it to go on from the save before it, or {folder.parent} to start "
            f"this training again"
        ) from error
    random = folder / f"random-{ctx.rank:05d}.pt"
    if random.exists():  # absent if there are more ranks now
        _restore_random(torch.load(random, map_location="cpu", weights_only=True))
    ctx.log(f"resumed after step {about['step']} from {folder}")
    return int(about["step"])


def _write_share(tensors: Iterable[tuple[str, Tensor]], path: Path, ctx: Context) -> None:
    """Writes this rank's part, which is every ranks-th tensor.

    All ranks go through all tensors, which may have to be gathered. Tensors on the CPU are not copied before writing,
    because a copy of all would set the training's peak of memory there. Scalars are copied: a sharded engine has one
    step count for all weights, and safetensors takes no tensor twice.
    """
    own = {
        name: tensor.detach().to("cpu", copy=tensor.ndim == 0).contiguous()
        for number, (name, tensor) in enumerate(tensors)
        if number % ctx.world_size == ctx.rank
    }
    save_file(own, path.with_name(f"{path.name}-{ctx.rank:05d}-of-{ctx.world_size:05d}.safetensors"))


def _load_average(ema: Ema, engine: Engine, saved: Mapping[str, Tensor], updates: int) -> None:
    """Copies a saved average into `ema`. Raises ValueError if it is of another module."""
    if saved.keys() != ema.shadow.keys():
        odd = sorted(saved.keys() ^ ema.shadow.keys())[:3]
        raise ValueError(f"the saved average is another module's ({', '.join(odd)}...)")
    for name in ema.shadow:
        ema.shadow[name].copy_(engine.shard(name, saved[name]))
    ema.updates = updates


def _require_same(saved: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> None:
    """Raises StageError that names every field in which the training of a save differs."""
    before, now = dict(_leaves(saved)), dict(_leaves(own))
    differ = [
        f"  {key}: {before.get(key, 'absent')} in the save, {now.get(key, 'absent')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.rpartition(".")[2] not in MAY_DIFFER
    ]
    if differ:
        raise StageError(
            f"{folder} is a save of another training:\n"
            + "\n".join(differ)
            + f"\nOnly {', '.join(MAY_DIFFER)}, loader.* "
            f"and compute.* may differ. Set these fields back, or delete {folder.parent} to start this training again"
        )


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of nested plain data, without type marks; fields of `config` have their own names."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, prefix if key == "config" else f"{prefix}{key}.")
        elif key != "@":
            yield f"{prefix}{key}", inner


def _random(device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the global random state, for code that samples outside a generator (stages use method.RngStreams)."""
    out = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        out["cuda"] = torch.cuda.get_rng_state(device)
    return out


def _restore_random(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
