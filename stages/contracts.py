"""What a stage is and which services it may call. Stages use these types; infra implements the Protocols; pipelines.run joins
both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import nn


class StageError(ValueError):
    """Is raised for a user's mistake or unusable input, with what, where and how to fix it. Printed without a traceback."""


class Reject(Exception):
    """Is raised by a per-item stage for an item that cannot be used. The rest goes on; the reason is listed."""


class Progress(Protocol):
    """Shows items, rate, ETA and failures: a bar on a terminal, plain lines elsewhere."""

    def advance(self, done: int = 1, failed: int = 0, note: str = "") -> None: ...


class Engine(Protocol):
    """Trains one module with its optimizer (DeepSpeed, or plain torch in tests).

    Under autograd through a frozen engine call `engine.module(x)`, never `engine(x)`. A rank may hold only a shard of each
    weight (ZeRO); what follows `step` here is called by all ranks together.
    """

    module: nn.Module
    average_device: torch.device  # where an average of the weights is to lie

    def backward(self, loss: torch.Tensor) -> None: ...
    def step(self) -> float:
        """Clips, steps at an accumulation boundary, zeroes gradients; returns the gradient's norm before clipping."""
        ...

    def master_weights(self) -> dict[str, torch.Tensor]:
        """Returns the trained weights by name, in float32: this rank's shards where they are sharded."""
        ...

    def gather(self, name: str, shard: torch.Tensor) -> torch.Tensor:
        """Returns the full tensor from all ranks' shards, each shaped like master_weights()[name]."""
        ...

    def shard(self, name: str, full: torch.Tensor) -> torch.Tensor:
        """Returns what this rank holds of a full tensor: the inverse of `gather`."""
        ...

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields everything that training changes, tensor by tensor, each in full and the same on every rank."""
        ...

    def load(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Restores what `state` gave, on any number of ranks. Raises ValueError where it belongs to another module."""
        ...

    def finish(self, shards: Mapping[str, torch.Tensor]) -> None:
        """Ends the training: the module becomes a plain one with the full weights of `shards` (like master_weights()), in
        the type that it computes in."""
        ...

    def to_float32(self) -> None:
        """Turns the weights of the finished module, on rank 0, into the float32 ones that `finish` was given. They are
        published."""
        ...


class Context(Protocol):
    """Holds the services that a stage may call. Deleting every emit, image and artifact changes no output."""

    workdir: (
        Path  # private to this step and kept between attempts of the same key: partial work may be resumed from here
    )
    seed: int
    rank: int
    world_size: int
    device: torch.device
    about: Mapping[str, Any]  # preset, stage, seed and config of this step, as plain data: recorded in saves

    @property
    def dtype(self) -> torch.dtype:
        """Returns the type of frozen models here, and of the weights that a sharded training computes with."""
        ...

    def emit(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def image(self, key: str, picture: np.ndarray, step: int = 0) -> None:
        """picture: h w 3 uint8. Same key at several steps gives a step slider."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None: ...
    def log(self, line: str) -> None: ...
    def fetch(self, address: str) -> Path:
        """Returns a local path of a source file: itself, or for an address (s3://...) a copy that all steps of the run share.
        OSError where it cannot be had: the next command tries that again, unlike a Reject."""
        ...

    def shared(self, name: str) -> Path:
        """Returns RUNS/NAME: a folder for all steps of all presets. What lies in it is named by its content, so that it
        makes no result depend on what ran before, and is written by rename, as many processes write at once."""
        ...

    def progress(self, what: str, total: int) -> AbstractContextManager[Progress]: ...
    def engine(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        accumulate: int = 1,
        chunkwise: bool = False,
    ) -> Engine:
        """Returns the engine that trains a module. chunkwise: whether a step calls the module many times, chunk by chunk, so
        that every rank keeps its weights rather than gather them for each call."""
        ...

    def sharded(self, module: nn.Module) -> nn.Module:
        """Shards a frozen module's weights over the ranks, in place, and returns it; changes nothing where there is one rank.
        From then on the weights are whole only inside a call of the module, which all ranks make together."""
        ...

    def barrier(self) -> None: ...
    def keep(self, folder: Path) -> None:
        """Copies a whole save, a folder of workdir, to where the run keeps its saves as well, if it does."""
        ...

    def recall(self, parent: str) -> None:
        """Brings the newest kept save back into workdir/parent, where that holds none."""
        ...

    def settings_that_save_memory(self) -> list[str]:
        """Returns settings, as on the command line, with which a training would need less memory."""
        ...


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage needs.

    workers: how many a distributed job starts, and where it is more than 1 the most that a per-item stage starts; 1 starts as
    many as fit. most: workers that a distributed job uses of those that the configuration offers; 0 uses all. cpus, gpus: of
    one worker; gpus may be fractional. threads: torch threads on a CPU.
    """

    workers: int = 1
    most: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1


Config = TypeVar("Config")
Inputs = TypeVar("Inputs")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Stage(Generic[Config, Inputs, Output]):
    """A function of (config, input records, context) that returns records, and how it runs.

    once: in one process. per_item: `run(config, item, ctx)` for each item, in parallel, resumable item by item; an item for
    which it raises Reject is listed. distributed: the same call on every rank of a torch.distributed group (Ray Train); rank
    0's records count. Inputs and Output of a per-item stage are those of one item.
    """

    name: str
    version: int
    how: Literal["once", "per_item", "distributed"]
    run: Callable[[Config, Inputs, Any], Output]
    resources: Resources = field(default_factory=Resources)


ItemsOf = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class StageSpec:
    """A per-item stage in a chain of such stages: the stage, its config, and where its items come from.

    items_of: takes the records of the stage before (of the first stage: the given items) and returns this stage's items. Of
    records a + b it returns the items of a, then those of b, so that it may be called record by record.
    """

    stage: Stage[Any, Any, Any]
    config: Any
    items_of: ItemsOf
