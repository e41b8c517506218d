"""The interface between a training method and the training loop: modules, their updates, losses and validation.

A Method owns its losses and its fixed held-out inputs. The loop (loop.py) owns accumulation, clipping, the average of
the weights (EMA), logging, saving, exact resuming and the alarms for losses that are not finite. It knows no method by
name.

How to add a distillation method. tests/unit/stages/train/latent_regression.py is a complete example in one file.

1. stages/train/NAME.py, in this order:
   Config   a frozen dataclass that inherits StepsConfig, with `group = "NAME"`, its own defaults, and checks() for the fields
            that it adds. The loop's settings (steps, batch, lr, ema_decay, save_steps...) are inherited.
   Run      a frozen dataclass of all settings that the stage reads: model, the Config, guidance... It is hashed into the
            step's key, so a changed setting never reuses an old result.
   Inputs   a frozen dataclass of the records that it reads (shard sets, checkpoints) and the loader's settings.
   Method   the protocol below. It takes random numbers from `rng` only: own(purpose) for what differs between
            micro-batches, shared(purpose) for decisions that must be the same on all ranks.
   fit, run fit() calls loop.train. run() loads models (publish.py), opens the loader and returns publish("student", ...), a
            Checkpoint. Exactly one module keeps an average (TrainableModule.ema), and that module is published.
   NAME     the Stage: name="NAME", version=1, how="distributed".
2. configs/tree.py: an import and a field `NAME: Config`, named exactly as the stage; configs/checks.py: an import and the
   Stage in DISTILLATIONS. The settings are then checked when a configuration is loaded.
3. pipelines/distill.py: imports, a function (run, start) -> Checkpoint, and its entry in METHODS. `distill.method=NAME`
   selects it.
4. Tests: a function in tests/unit/stages/train/methods.py, whose METHODS feeds the exact-resume test in test_resume.py; its
   name in GOLDEN of tests/golden/train_losses.py; tests of its losses, as in test_dmd.py. Then
   `python -m tests.golden.train_losses` and `python -m tests.golden.test_defaults` write the golden values, and
   `python -m configs.document` writes docs/settings.md.

Export, ship, the demo and the evaluation name no method: they find a student by its checkpoint's name and class.
`make rehearse` shrinks the trainings that pipelines/commands/rehearse/sizes.py names. `make plan` estimates memory and
time of the trainings that it knows (pipelines/commands/plan/steps.py); it also runs without an estimate for yours.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from msmodel.config import OPTION
from msmodel.dit import WanDiT

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class LoopConfig(ABC):
    """Settings that all trainings have in common.

    A training with one phase inherits StepsConfig; one with several phases has a setting for the length of each and
    returns their sum as total_steps. A state is saved every `save_steps` steps or `save_minutes` minutes, whichever
    comes first.

    batch: clips per rank and micro-step. global_batch: clips per step, over all ranks and micro-steps, whatever their
    number; 0 takes batch * accumulate * ranks. clip_norm: largest norm of the gradient, which is scaled down to it; 0 =
    never clip. keep_attention: applies to recomputed layers (checkpoint_layers). Keeping what self- and cross-attention
    gave saves their FLOPs and takes two tensors (tokens x dim) a layer.
    """

    group: ClassVar[str] = ""  # the name under which a preset sets these fields
    spares: ClassVar[bool] = False  # whether workers beyond global_batch / batch stay idle; else they are an error

    batch: int = 8
    accumulate: int = 1  # micro-steps per step; computed from global_batch if that is given
    global_batch: int = 0
    optimizer: str = "adamw"  # or "muon", for small models that train unsharded (stages/train/optim.py)
    lr: float = 1e-4  # learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # decay rates of the optimizer's moving averages
    weight_decay: float = 0.01  # weight decay of the optimizer
    warmup_steps: int = 0  # first steps, over which the learning rate rises linearly from zero
    cooldown_steps: int = 0  # the last steps, over which the learning rate falls linearly to zero
    clip_norm: float = 1.0
    checkpoint_layers: bool = False  # recompute layers in the backward pass, to save memory
    keep_attention: bool = field(default=False, metadata=OPTION)  # of recomputed layers, keep what attention gave
    ema_decay: float = 0.99  # decay of the moving average of the weights; the average is published
    save_steps: int = 500  # steps between saved training states
    save_minutes: float = 10.0  # minutes between saved training states
    log_steps: int = 10  # steps between logged figures
    validate_steps: int = 500  # steps between held-out figures and contact sheets

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Returns the number of steps of all phases together."""

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """Returns the steps after which the average is kept for good, besides the last one."""
        return ()

    def ranks(self, workers: int) -> int:
        """Returns how many of `workers` workers train."""
        most = self.global_batch // max(self.batch, 1)
        return min(workers, most) if self.spares and most else workers

    def micro_steps(self, ranks: int) -> int:
        """Returns the micro-steps of a step on `ranks` ranks. Raises ValueError if global_batch is not divisible."""
        if not self.global_batch:
            return self.accumulate
        if complaints := self.indivisible(ranks):
            raise ValueError(f"{self.group}.{complaints[0]}")
        return self.global_batch // (self.batch * ranks)

    def indivisible(self, ranks: int) -> list[str]:
        """Returns the problem, with numbers that fit, if `ranks` ranks cannot make steps of exactly global_batch clips."""
        whole, batch = self.global_batch, self.batch
        if not whole or whole % (batch * ranks) == 0:
            return []
        batches = [b for b in range(1, whole // ranks + 1) if whole % (b * ranks) == 0]
        workers = [n for n in range(1, whole // batch + 1) if whole % (batch * n) == 0]
        fixes = [f"batch={', '.join(map(str, batches))}"] if batches else []
        fixes += [f"compute.workers={', '.join(map(str, workers))}"] if workers else []
        return [
            f"global_batch: {whole} clips are no whole number of micro-batches of {batch} on {ranks} ranks; "
            f"these would fit: {' or '.join(fixes) or 'another global_batch'}"
        ]

    def set_checkpointing(self, dit: WanDiT) -> None:
        """Makes a transformer recompute in its backward pass what these settings say."""
        dit.checkpoint_layers, dit.keep_attention = self.checkpoint_layers, self.keep_attention

    def settings_that_save_memory(self, ranks: int) -> list[str]:
        """Returns this config's settings, as on the command line, that need less GPU memory, the least costly first."""
        out = [f"{self.group}.batch={self.batch // 2}"] if self.batch > 1 else []
        if not self.checkpoint_layers:
            out.append(f"{self.group}.checkpoint_layers=true")
        return [*out, f"{self.group}.keep_attention=false"] if self.keep_attention else out

    def problems(self) -> list[str]:
        """Returns every inconsistency as 'group.field: what is wrong'; empty if there is none."""
        return [f"{self.group}.{p}" for p in self.checks()]

    def checks(self) -> list[str]:
        """Returns every inconsistency without the group. Subclasses add theirs."""
        least = dict.fromkeys(("batch", "accumulate", "save_steps", "log_steps", "validate_steps"), 1)
        least |= dict.fromkeys(("warmup_steps", "cooldown_steps", "lr", "weight_decay", "clip_norm"), 0)
        out = at_least(self, least | {"global_batch": 0})
        if self.global_batch and self.accumulate != 1:
            out.append(
                f"accumulate: {self.accumulate} is given together with global_batch, which determines it: leave it at 1"
            )
        if self.optimizer not in OPTIMIZERS:
            out.append(f"optimizer: {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        if self.save_minutes <= 0:
            out.append(f"save_minutes: {self.save_minutes} must be positive")
        if not 0.0 <= self.ema_decay < 1.0:
            out.append(f"ema_decay: {self.ema_decay} is not in [0, 1)")
        return out


@dataclass(frozen=True)
class StepsConfig(LoopConfig):
    """Settings of a training with one phase of `steps` steps. Methods' configs inherit it and set their own defaults."""

    steps: int = 1000  # optimizer steps

    @property
    def total_steps(self) -> int:
        return self.steps

    def checks(self) -> list[str]:
        return at_least(self, {"steps": 0}) + super().checks()


def at_least(config: Any, least: Mapping[str, float]) -> list[str]:
    """Returns the problems of a config's fields that are below their least value."""
    values = vars(config)
    return [f"{n}: {values[n]} must be at least {low}" for n, low in least.items() if values[n] < low]


@dataclass(frozen=True)
class RngStreams:
    """Sources of the random numbers of one micro-batch.

    Each generator is seeded by (seed, step, micro-batch, purpose). Its numbers depend on nothing that happened before,
    so resuming, validating or logging cannot change a run. micro: number of the micro-batch within its step, counted
    over all ranks, so that N ranks with A micro-steps get the numbers of one rank with N * A. The generators are on the
    CPU, so that a run on a GPU gets the same numbers.
    """

    seed: int
    step: int
    micro: int = 0

    def own(self, purpose: str) -> torch.Generator:
        """Returns this micro-batch's generator for `purpose`."""
        return self._generator(purpose, 0, self.micro)

    def shared(self, purpose: str) -> torch.Generator:
        """Returns the step's generator, the same on every rank, for random decisions about which computations run."""
        return self._generator(purpose, -1, 0)

    def _generator(self, purpose: str, kind: int, micro: int) -> torch.Generator:
        key = repr((self.seed, kind, self.step, micro, purpose)).encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
        return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class TrainableModule:
    """One trained module with its optimizer. ema: whether an average of its weights is kept (and published). chunkwise:
    whether a step calls the module chunk by chunk (a rollout); see Context.engine."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: bool = True
    chunkwise: bool = False


@dataclass(frozen=True)
class Loss:
    """A module's loss. value: a scalar under autograd. metrics: logged as NAME/MODULE. warnings: logged at once."""

    value: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """Held-out figures, and contact sheets (h w 3 uint8), at one step. warnings: logged at once."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Method(Protocol):
    """A training method as the loop uses it. See TeacherMethod, AdaptMethod, DmdMethod, TinyVAEMethod."""

    name: str

    def trainable_modules(self) -> dict[str, TrainableModule]:
        """Returns the trained modules by name, in the order in which they are updated. Called once."""
        ...

    def update_schedule(self, step: int) -> tuple[str, ...]:
        """Returns the names of the modules that are updated at `step` (from 0)."""
        ...

    def lr(self, module: str, group: str, step: int) -> float:
        """Returns the learning rate of the optimizer's parameter group of this name (0 freezes it)."""
        ...

    def loss(self, module: str, batch: Any, rng: RngStreams) -> Loss: ...

    def validate(self, step: int) -> Validation:
        """Evaluates the modules as they are, on inputs that are fixed for the whole training."""
        ...


class Loader(Protocol):
    """Yields this rank's batches endlessly and has an exact position (stages.data.loader.Loader)."""

    def __iter__(self) -> Iterator[Any]: ...
    def metrics(self) -> dict[str, float]:
        """Returns figures for every log line; empty if there are none."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def scheduled(lr: float, cfg: LoopConfig, step: int) -> float:
    """Returns `lr` at `step` (from 0): linear warm-up, constant, linear cool-down to the end of cfg.total_steps."""
    up = (step + 1) / cfg.warmup_steps if cfg.warmup_steps else 1.0
    down = (cfg.total_steps - step) / cfg.cooldown_steps if cfg.cooldown_steps else 1.0
    return lr * min(1.0, up, down)
