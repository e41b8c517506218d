"""Implements the services that a stage may call (the protocol stages.contracts.Context)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from infra.config import ComputeConfig
from infra.engine import DeepSpeedEngine, Sharding, TorchEngine, shard_frozen
from infra.progress import Console, SilentConsole
from infra.remote import fetch
from infra.saves import keep, recall
from infra.store import Step
from infra.tracking import RunLogger
from msmodel.io.weights import inference_dtype
from stages.contracts import Progress


@dataclass
class RunContext:
    """The context of stages of the kinds "once" and "distributed".

    logger: None where nothing is tracked, and on ranks other than 0. sources: RUNS/sources, the folder for copies of
    files behind addresses, shared by all steps; None in distributed jobs, which fetch no files.
    """

    workdir: Path
    seed: int
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    console: Console = field(default_factory=SilentConsole)
    logger: RunLogger | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    sources: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    gathering: list[Any] = field(default_factory=list)  # keeps the DeepSpeed engines of sharded frozen modules alive

    @property
    def dtype(self) -> torch.dtype:
        return inference_dtype(self.device, self.compute.precision)

    def emit(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.logger is not None:
            self.logger.metrics(step, metrics)

    def image(self, key: str, picture: np.ndarray, step: int = 0) -> None:
        if self.logger is not None:
            self.logger.image(key, picture, step)

    def artifact(self, path: Path, folder: str = "") -> None:
        if self.logger is not None:
            self.logger.artifact(path, folder)

    def log(self, line: str) -> None:
        self.console.log(line)

    def fetch(self, address: str) -> Path:
        """Returns a local path of a source file. Raises FileNotFoundError or PermissionError where the source does not
        exist or is forbidden; after another OSError a retry may succeed."""
        assert self.sources is not None, "the executor names the folder of fetched sources"
        return fetch(address, self.sources)

    def shared(self, name: str) -> Path:
        assert self.sources is not None, "the executor names the folder of fetched sources, beside which it lies"
        return self.sources.parent / name

    def progress(self, what: str, total: int) -> AbstractContextManager[Progress]:
        return self.console.progress(what, total)

    def engine(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        accumulate: int = 1,
        chunkwise: bool = False,
    ) -> TorchEngine | DeepSpeedEngine:
        """Returns a DeepSpeed engine inside an initialised process group (distributed jobs), and a plain torch engine
        elsewhere or where compute.engine is "torch"."""
        if self.compute.engine == "torch" or not torch.distributed.is_initialized():
            engine: TorchEngine | DeepSpeedEngine = TorchEngine(module, optimizer, clip_norm, accumulate)
        else:
            bf16 = self.dtype == torch.bfloat16 and not getattr(optimizer, "whole_tensors", False)
            sharding = Sharding(self.compute.stage_of(chunkwise), self.compute.offload, bf16)
            engine = DeepSpeedEngine(module, optimizer, clip_norm, accumulate, sharding)
        if self.compute.ema == "cpu":
            engine.average_device = torch.device("cpu")
        return engine

    def sharded(self, module: nn.Module) -> nn.Module:
        if self.world_size > 1:
            assert self.compute.engine == "deepspeed", "the configuration's checks refuse another engine"
            self.gathering.append(shard_frozen(module))
        return module

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()

    def keep(self, folder: Path) -> None:
        """Copies a save to compute.checkpoints, if that is set. A failure is only logged, because the save also lies in
        the step's folder and the next one is copied again."""
        if not self.compute.checkpoints:
            return
        try:
            keep(folder, self._address(folder.parent.name))
        except OSError as error:
            self.log(
                f"the save {folder.name} could not be copied to compute.checkpoints={self.compute.checkpoints}: {error}"
            )

    def recall(self, parent: str) -> None:
        """Fetches the newest save on rank 0 only, because all ranks share the step's folder. Raises ValueError where
        the storage cannot be read."""
        if self.compute.checkpoints and self.rank == 0:
            try:
                recall(self._address(parent), self.workdir / parent, self.log)
            except OSError as error:
                where = f"compute.checkpoints={self.compute.checkpoints}"
                raise ValueError(f"{where} cannot be read: {error}: check network and credentials") from error
        self.barrier()

    def _address(self, parent: str) -> str:
        """Returns the address CHECKPOINTS/<preset>/<stage>/<key>/<parent>, laid out as the step's folder under RUNS."""
        return "/".join([self.compute.checkpoints.rstrip("/"), *self.workdir.parts[-3:], parent])

    def settings_that_save_memory(self) -> list[str]:
        return self.compute.settings_that_save_memory()


@dataclass
class ItemContext(RunContext):
    """The context of one item of a per-item stage.

    Emitted metrics are stored in the item's marker, and the driver logs their means over all items. Lines are written
    to the item's log.txt, and pictures to its folder pictures.
    """

    emitted: dict[str, float] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    def emit(self, step: int, metrics: Mapping[str, float]) -> None:
        self.emitted.update({k: float(v) for k, v in metrics.items()})

    def image(self, key: str, picture: np.ndarray, step: int = 0) -> None:
        from PIL import Image

        path = self.workdir / "pictures" / f"{key.replace('/', '_')}-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        self.pictures.append(str(path))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Does nothing, because an item's files already lie in its folder."""

    def log(self, line: str) -> None:
        with open(self.workdir / "log.txt", "a", encoding="utf-8") as f:
            f.write(json.dumps(line)[1:-1] + "\n")


def about(step: Step, seed: int) -> dict[str, Any]:
    """Returns the preset, stage, seed and config of a step as plain data, for RunContext.about."""
    return {"preset": step.folder.parents[1].name, "stage": step.stage, "seed": seed, "config": step.config}


def free_device() -> torch.device:
    """Returns the current GPU of this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
