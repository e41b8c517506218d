"""Saved training states. A save is written under a temporary name, while the training goes on, and renamed when
complete; the last two are kept.

Any number of ranks can resume from a save. SAVES/step-00000100/ holds unsharded tensors by name in
MODULE.state-00000-of-00002.safetensors (weights in float32 and the optimizer's state) and MODULE.ema-...; each rank
writes every ranks-th tensor. random-00000.pt is a rank's global random state. save.json holds the step, the loader's
position and a description of the training. Files are mapped into memory, so that a rank that needs a part of a tensor
reads this part only.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
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
MARK = "written-"  # files of a save that is being written: empty, or why a rank could not write its part
POLL_SECONDS = 0.1
GRACE_SECONDS = 60.0  # after a training has failed, for other ranks to finish writing
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


@dataclass(frozen=True)
class Snapshot:
    """This rank's part of a save, in CPU memory. parts: the tensors of each safetensors file, by the file's name."""

    step: int
    parts: Mapping[str, Mapping[str, Tensor]]
    random: Mapping[str, Tensor]
    about: str


class Saver:
    """Saves a training while it goes on: each rank copies its part to CPU memory and writes it in a thread.

    At most one save is in flight. Rank 0's thread waits for a mark of every rank and then renames the folder, so a save
    is either complete or ignored. It is a context manager, which at the end waits for the save in flight. written:
    called on rank 0 with the step and the folder of a save, before it is renamed.
    """

    def __init__(self, training: Training, ctx: Context, written: Callable[[int, Path], None]) -> None:
        self.training, self.ctx, self.written = training, ctx, written
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._ending = threading.Event()  # the training has failed: other ranks may never finish their parts

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.wait()
            return
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def save(self, step: int) -> None:
        """Copies the state after `step` steps and starts to write it, as soon as the save before is written.

        Every rank calls it. Raises StageError if the save before could not be written.
        """
        self.wait()
        aside = self.ctx.workdir / SAVES / f".writing-{step:08d}"
        if self.ctx.rank == 0:
            for old in aside.parent.glob(".writing-*"):
                shutil.rmtree(old)
            aside.mkdir(parents=True)
        self.ctx.barrier()
        snapshot = _snapshot(self.training, step, self.ctx)
        self._thread = threading.Thread(target=self._write, args=(snapshot, aside), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until the save in flight is written. Raises StageError if it could not be."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise StageError(
                f"a save into {self.ctx.workdir / SAVES} could not be written ({self._error}): free space there, and run "
                f"again: the training resumes from the save before"
            ) from self._error

    def _write(self, snapshot: Snapshot, aside: Path) -> None:
        rank = self.ctx.rank
        try:
            _write(snapshot, aside, rank)
            mark(aside, rank)
            if rank == 0 and self._all_written(aside):
                self._commit(snapshot.step, aside)
        except Exception as error:  # raised in the training's thread by `wait`
            self._error = error
            with suppress(OSError):
                mark(aside, rank, f"rank {rank}: {error}")

    def _all_written(self, aside: Path) -> bool:
        """Waits for the marks of all ranks. Returns False where some do not come and the training has failed. Raises
        OSError if a rank could not write its part."""
        patience = GRACE_SECONDS
        while len(marks := sorted(aside.glob(f"{MARK}*"))) < self.ctx.world_size:
            time.sleep(POLL_SECONDS)
            if self._ending.is_set():
                patience -= POLL_SECONDS
            if patience < 0:
                return False
        if failed := [text for text in (path.read_text() for path in marks) if text]:
            raise OSError("; ".join(failed))
        for path in marks:
            path.unlink()
        return True

    def _commit(self, step: int, aside: Path) -> None:
        self.written(step, aside)
        final = aside.with_name(f"step-{step:08d}")
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        for old in saves(self.ctx.workdir)[:-KEEP]:
            shutil.rmtree(old)
        self.ctx.keep(final)


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


def mark(folder: Path, rank: int, error: str = "") -> None:
    """Leaves the mark of a rank that has written its part, or why it could not. It appears with all its text, because an
    empty one means success."""
    path = folder / f".{MARK}{rank:05d}"
    path.write_text(error)
    path.rename(folder / path.name[1:])


def _snapshot(training: Training, step: int, ctx: Context) -> Snapshot:
    """Returns this rank's part of the present state. A collective call, because tensors may have to be gathered."""
    suffix = f"{ctx.rank:05d}-of-{ctx.world_size:05d}.safetensors"
    parts = {f"{n}.state-{suffix}": _share(engine.state(), ctx) for n, engine in training.engines.items()}
    for name, ema in training.emas.items():
        whole = ((n, training.engines[name].gather(n, shard)) for n, shard in ema.shadow.items())
        parts[f"{name}.ema-{suffix}"] = _share(whole, ctx)
    updates = {n: e.updates for n, e in training.emas.items()}
    about = {"step": step, "ema_updates": updates, "loader": training.loader.state_dict(), "about": dict(ctx.about)}
    return Snapshot(step, parts, _random(ctx.device), json.dumps(about, indent=1))


def _share(tensors: Iterable[tuple[str, Tensor]], ctx: Context) -> dict[str, Tensor]:
    """Returns CPU copies of this rank's part, which is every ranks-th tensor. All ranks go through all tensors."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for number, (name, tensor) in enumerate(tensors)
        if number % ctx.world_size == ctx.rank
    }


def _write(snapshot: Snapshot, folder: Path, rank: int) -> None:
    for name, tensors in snapshot.parts.items():
        save_file(dict(tensors), folder / name)
    torch.save(dict(snapshot.random), folder / f"random-{rank:05d}.pt")
    if rank == 0:
        (folder / "save.json").write_text(snapshot.about)


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
