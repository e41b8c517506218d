"""What a training method tells the training loop: which modules it trains, when each is updated, its losses, its validation.

A Method owns its losses and its fixed held-out inputs. The loop (loop.py) owns accumulation, clipping, the average of the
weights (EMA), logging, saving, exact resuming and the alarms for losses that are not finite. It knows no method by name.

How to add a distillation method. Its pattern is tests/unit/stages/train/latent_regression.py, a whole method in one file.

1. stages/train/NAME.py, in this order:
   Config   a frozen dataclass that inherits StepsConfig, with `group = "NAME"`, its own defaults, and checks() for the fields
            that it adds. The loop's settings (steps, batch, lr, ema_decay, save_steps...) are inherited.
   Run      a frozen dataclass of all settings that the stage reads: model, the Config, guidance... It is hashed into the
            step's key, so a changed setting never reuses an old result.
   Inputs   a frozen dataclass of the records that it reads (shard sets, checkpoints) and the loader's settings.
   Method   the protocol below. Draw random numbers from `rng` only: own(purpose) for what differs between micro-batches,
            shared(purpose) for decisions that all ranks must take alike.
   fit, run fit() calls loop.train. run() loads models (publish.py), opens the loader and returns publish("student", ...), a
            Checkpoint. Exactly one module keeps an average (TrainableModule.ema), and that module is published.
   NAME     the Stage: name="NAME", version=1, how="distributed".
2. configs/settings.py: one field `NAME: Config`; configs/checks.py: the Stage in DISTILLATIONS. Its problems are
   then checked at load.
3. pipelines/distill.py: a function (run, start) -> Checkpoint, and its line in METHODS. `distill.method=NAME` chooses it.
4. Tests: a function in tests/unit/stages/train/methods.py, whose METHODS feeds the exact-resume test in test_resume.py; its
   name in GOLDEN of tests/golden/train_losses.py; what is particular to its losses, as in test_dmd.py. Then
   `python -m tests.golden.train_losses` and `python -m tests.golden.test_defaults` write the golden values.

Nothing else names the method: export, ship, the demo and the evaluation find a student by its checkpoint's name and class.
`make plan` estimates memory and time of the trainings that it knows (pipelines/commands/plan/loads.py); it runs without yours.
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

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class LoopConfig(ABC):
    """The settings that every training has in common. A training with one phase inherits StepsConfig; one with several names
    the length of each and gives their sum as total_steps.

    batch: clips per rank and micro-step. global_batch: clips a step, over all ranks and micro-steps, whatever their number;
    0 takes batch * accumulate * ranks. clip_norm: 0 = never clip.
    A state is saved every `save_steps` steps or `save_minutes` minutes, whichever comes first.
    """

    group: ClassVar[str] = ""  # the name under which a preset sets these fields
    spares: ClassVar[bool] = False  # whether workers beyond global_batch / batch are idle; else they are an error

    batch: int = 8
    accumulate: int = 1  # micro-steps a step; follows from global_batch where that is given
    global_batch: int = 0
    optimizer: str = "adamw"  # or "muon", for small models that train unsharded (stages/train/optim.py)
    lr: float = 1e-4  # learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # of the optimizer's moving averages
    weight_decay: float = 0.01  # of the optimizer
    warmup_steps: int = 0  # first steps, over which the learning rate rises linearly from zero
    cooldown_steps: int = 0  # the last steps, over which the learning rate falls linearly to zero
    clip_norm: float = 1.0
    checkpoint_layers: bool = False  # recompute layers in the backward pass, to save memory
    ema_decay: float = 0.99  # of the moving average of the weights, which is what is published
    save_steps: int = 500  # steps between saved training states
    save_minutes: float = 10.0  # minutes between saved training states
    log_steps: int = 10  # steps between logged figures
    validate_steps: int = 500  # held-out figures and contact sheets every so many steps

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """The number of steps of all phases together."""

    def ranks(self, workers: int) -> int:
        """How many of so many workers train."""
        most = self.global_batch // max(self.batch, 1)
        return min(workers, most) if self.spares and most else workers

    def micro_steps(self, ranks: int) -> int:
        """Micro-steps of a step on so many ranks. Raises ValueError where the global batch does not divide."""
        if not self.global_batch:
            return self.accumulate
        if complaints := self.indivisible(ranks):
            raise ValueError(f"{self.group}.{complaints[0]}")
        return self.global_batch // (self.batch * ranks)

    def indivisible(self, ranks: int) -> list[str]:
        """The complaint where `ranks` ranks cannot make a step of exactly global_batch clips, with numbers that can."""
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

    def settings_that_save_memory(self, ranks: int) -> list[str]:
        """Settings of its own, as on the command line, that take less of a GPU's memory; the first ones at the least cost."""
        out = [f"{self.group}.batch={self.batch // 2}"] if self.batch > 1 else []
        return out if self.checkpoint_layers else [*out, f"{self.group}.checkpoint_layers=true"]

    def problems(self) -> list[str]:
        """Every inconsistency as 'group.field: what is wrong'; empty when sound."""
        return [f"{self.group}.{p}" for p in self.checks()]

    def checks(self) -> list[str]:
        """The same without the group; subclasses add theirs."""
        least = dict.fromkeys(("batch", "accumulate", "save_steps", "log_steps", "validate_steps"), 1)
        least |= dict.fromkeys(("warmup_steps", "cooldown_steps", "lr", "weight_decay", "clip_norm"), 0)
        out = at_least(self, least | {"global_batch": 0})
        if self.global_batch and self.accumulate != 1:
            out.append(
                f"accumulate: {self.accumulate} is given beside global_batch, from which it follows: leave it at 1"
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
    """The settings of a training of one phase, `steps` long. Method configs inherit it and state their own defaults."""

    steps: int = 1000  # optimizer steps

    @property
    def total_steps(self) -> int:
        return self.steps

    def checks(self) -> list[str]:
        return at_least(self, {"steps": 0}) + super().checks()


def at_least(config: Any, least: Mapping[str, float]) -> list[str]:
    """Complaints about fields of a config that lie below their least value."""
    values = vars(config)
    return [f"{n}: {values[n]} must be at least {low}" for n, low in least.items() if values[n] < low]


@dataclass(frozen=True)
class RngStreams:
    """Where the random numbers of one micro-batch come from.

    Each generator is seeded by (seed, step, micro-batch, purpose): what is drawn depends on nothing that happened before,
    so resuming, observing or logging cannot change a run. micro: number of the micro-batch within its step, counted over
    all ranks, so that N ranks with A micro-steps draw what one rank with N * A draws. They live on the CPU: a run on a
    GPU draws the same.
    """

    seed: int
    step: int
    micro: int = 0

    def own(self, purpose: str) -> torch.Generator:
        """This micro-batch's generator."""
        return self._generator(purpose, 0, self.micro)

    def shared(self, purpose: str) -> torch.Generator:
        """The step's generator, the same on every rank: for draws that decide which computations are run."""
        return self._generator(purpose, -1, 0)

    def _generator(self, purpose: str, kind: int, micro: int) -> torch.Generator:
        key = repr((self.seed, kind, self.step, micro, purpose)).encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
        return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class TrainableModule:
    """One trained module and its optimizer. ema: whether an average of it is kept (and published)."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: bool = True


@dataclass(frozen=True)
class Loss:
    """value: a scalar under autograd. metrics: logged as NAME/module's. warnings: logged at once."""

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
    """One way to train. See TeacherMethod, AdaptMethod, DmdMethod, TinyVAEMethod."""

    name: str

    def trainable_modules(self) -> dict[str, TrainableModule]:
        """By name, in the order in which they step. Called once."""
        ...

    def update_schedule(self, step: int) -> tuple[str, ...]:
        """The modules that step at `step` (from 0)."""
        ...

    def lr(self, module: str, group: str, step: int) -> float:
        """Learning rate of the optimizer's parameter group with this `name` (0 freezes it)."""
        ...

    def loss(self, module: str, batch: Any, rng: RngStreams) -> Loss: ...

    def validate(self, step: int) -> Validation:
        """Looks at the modules as they are, on inputs fixed once for the whole training."""
        ...


class Loader(Protocol):
    """Batches endlessly, on this rank, with an exact position (stages.data.loader.Loader)."""

    def __iter__(self) -> Iterator[Any]: ...
    def metrics(self) -> dict[str, float]:
        """Figures for every log line; empty where there is nothing to say."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def scheduled(lr: float, cfg: LoopConfig, step: int) -> float:
    """lr at `step` (from 0): linear warm-up, constant, linear cool-down to the end of cfg.total_steps."""
    up = (step + 1) / cfg.warmup_steps if cfg.warmup_steps else 1.0
    down = (cfg.total_steps - step) / cfg.cooldown_steps if cfg.cooldown_steps else 1.0
    return lr * min(1.0, up, down)
