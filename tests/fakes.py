"""The one fake of stages.contracts.Context, with a plain engine: stages run in one process, without infra's services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from infra.engine import TorchEngine


class PlainEngine(TorchEngine):
    """stages.contracts.Engine in plain torch, which counts its optimizer steps."""

    steps = 0

    def step(self) -> float:
        norm = super().step()
        self.steps += self._micro % self.accumulate == 0
        return norm


@dataclass
class FakeProgress:
    """Keeps the notes of a progress bar."""

    notes: list[str]

    def advance(self, done: int = 1, failed: int = 0, note: str = "") -> None:
        if note:
            self.notes.append(note)


@dataclass
class FakeContext:
    """Keeps all that a stage emits, pictures, logs and trains, in the order in which it came."""

    workdir: Path
    seed: int = 3
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    about: dict[str, Any] = field(default_factory=dict)
    emitted: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    images: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    artifacts: list[Path] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    engines: list[PlainEngine] = field(default_factory=list)

    def emit(self, step: int, metrics: Mapping[str, float]) -> None:
        self.emitted.append((step, dict(metrics)))

    def image(self, key: str, picture: np.ndarray, step: int = 0) -> None:
        assert picture.dtype == np.uint8 and picture.ndim == 3
        self.images[key, step] = picture

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()
        self.artifacts.append(path)

    def log(self, line: str) -> None:
        self.logged.append(line)

    def fetch(self, address: str) -> Path:
        return Path(address)

    def shared(self, name: str) -> Path:
        return self.workdir.parent / name

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[FakeProgress]:
        yield FakeProgress(self.notes)

    def engine(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        accumulate: int = 1,
        chunkwise: bool = False,
    ) -> PlainEngine:
        self.engines.append(PlainEngine(module, optimizer, clip_norm, accumulate))
        return self.engines[-1]

    def sharded(self, module: nn.Module) -> nn.Module:
        return module

    def barrier(self) -> None: ...

    def keep(self, folder: Path) -> None: ...

    def recall(self, parent: str) -> None: ...

    def settings_that_save_memory(self) -> list[str]:
        return ["compute.zero_stage=2"]

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each emitted metric."""
        return {name: value for _, metrics in self.emitted for name, value in metrics.items()}

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """The last picture under each key."""
        return {key: picture for (key, _), picture in self.images.items()}

    def series(self, name: str) -> list[float]:
        """Returns every emitted value of one metric."""
        return [m[name] for _, m in self.emitted if name in m]

    def within(self, name: str) -> FakeContext:
        """Returns the same context with a subfolder of its workdir as workdir, as another step has it."""
        folder = self.workdir / name
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self, workdir=folder)
