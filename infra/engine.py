"""Training engines: each holds one module and its optimizer, and implements the protocol stages.contracts.Engine.

Both engines average gradients over the ranks and divide each loss by the number A of accumulated micro-steps. N ranks
with A micro-steps of batch size b are therefore equivalent to one rank with one step of batch size N * A * b.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.versions import require_tested


@dataclass(frozen=True)
class Fragment:
    """The part of one weight that this rank updates: elements `start` to `start + count` of the flattened weight.

    owner: the tensor that the optimizer updates and under which it keeps its state; the part begins at element `offset`
    of it. shape: the shape of the full weight. Without sharding the owner is the parameter itself, and offset, start
    and count are not used.
    """

    parameter: nn.Parameter
    owner: Tensor
    shape: torch.Size
    offset: int = 0
    start: int = 0
    count: int = 0

    def view(self, tensor: Tensor) -> Tensor:
        """Returns this part of `tensor` as a view. tensor: `owner`, or a tensor of the same size."""
        return tensor if self.owner is self.parameter else tensor.detach().narrow(0, self.offset, self.count)

    def shard(self, full: Tensor) -> Tensor:
        """Returns this part of a full tensor, which has the weight's shape."""
        return full if self.owner is self.parameter else full.reshape(-1).narrow(0, self.start, self.count)

    def gather(self, part: Tensor, device: torch.device) -> Tensor:
        """Returns the full tensor on `device`, assembled from all ranks' parts. A collective call: every rank must make
        it.

        The all-reduce is exact, because each element is the value of one rank plus zeros.
        """
        flat = torch.zeros(self.shape.numel(), dtype=torch.float32, device=device)
        flat[self.start : self.start + self.count] = part.to(device)
        dist.all_reduce(flat)
        return flat.view(self.shape)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that require gradients, by name."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def of_whole_weights(module: nn.Module) -> dict[str, Fragment]:
    """Returns a fragment for each trained weight where nothing is sharded: the full weight."""
    return {n: Fragment(p, p, p.shape) for n, p in trained(module).items()}


def of_flat_groups(
    module: nn.Module, optimizer: torch.optim.Optimizer, group_of: Mapping[int, int]
) -> dict[str, Fragment]:
    """Returns the fragments under ZeRO 1 and 2, where a rank owns a slice of each parameter group's flat tensor.

    group_of: maps the id() of a weight to the index of its parameter group.
    """
    out = {}
    for name, p in trained(module).items():
        owner = optimizer.param_groups[group_of[id(p)]]["params"][0]
        linked: Any = p._hp_mapping  # type: ignore[attr-defined]
        if linked is None:
            out[name] = Fragment(p, owner, p.shape)
            continue
        here, there = linked.hp_fragment_address, linked.lp_fragment_address
        out[name] = Fragment(p, owner, p.shape, here.start, there.start, here.numel)
    return out


def of_partitions(module: nn.Module, optimizer: Any) -> dict[str, Fragment]:
    """Returns the fragments under ZeRO 3, where every rank owns an equal share of each weight; the last shares may be
    padding."""
    out = {}
    for name, p in trained(module).items():
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(p)]
        start = min(dist.get_rank() * size, p.ds_numel)  # type: ignore[attr-defined]
        count = min(size, p.ds_numel - start)  # type: ignore[attr-defined]
        owner = optimizer.fp32_partitioned_groups_flat[group]
        out[name] = Fragment(p, owner, p.ds_shape, offset, start, count)  # type: ignore[attr-defined]
    return out


KEPT_WHOLE = 100_000  # ZeRO 3 does not shard weights with fewer elements (DeepSpeed's default)
BUCKET = 200_000_000  # elements of one gradient reduction; fewer where the model has fewer weights
AHEAD = 50_000_000  # elements of the next weights that ZeRO 3 prefetches while a layer computes (DeepSpeed's default)
LIVE = 1_000_000_000  # elements of gathered weights that ZeRO 3 keeps until their next use (DeepSpeed's default)


def gradient_norm(module: nn.Module) -> float:
    """Returns the 2-norm of all gradients concatenated into one vector; 0 without gradients."""
    norms = [p.grad.detach().float().norm() for p in module.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


class _Engine(ABC):
    """Base of both engines: reads and writes the trained weights and the optimizer's state by name, in full or as
    shards.

    sharded: whether each rank holds only a shard of each weight. average_device: the device for an average of the
    weights.
    """

    module: nn.Module
    module_device: torch.device
    sharded = False
    average_device: torch.device

    def _fragments(self) -> dict[str, Fragment]:
        return of_whole_weights(self.module)

    @abstractmethod
    def _optimizer(self) -> torch.optim.Optimizer: ...

    def master_weights(self) -> dict[str, Tensor]:
        """Returns the float32 weights that the optimizer updates, by name: full weights, or this rank's shards (some
        may be empty) where they are sharded."""
        return {name: f.view(f.owner).detach() for name, f in self._fragments().items()}

    def gather(self, name: str, shard: Tensor) -> Tensor:
        """Returns the full tensor, assembled from the ranks' shards, each shaped like master_weights()[name]. A
        collective call; every rank gets the result."""
        return self._fragments()[name].gather(shard, self.module_device) if self.sharded else shard

    def shard(self, name: str, full: Tensor) -> Tensor:
        """Returns what this rank holds of a full tensor: the inverse of `gather`."""
        return self._fragments()[name].shard(full)

    @torch.no_grad()
    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, full tensor) of everything that training changes. All ranks must iterate together, between
        steps.

        The names are weight/W for weight W (float32), exp_avg/W, step/W and so on for the optimizer's state of W, and
        fixed/B for every other tensor B.
        """
        remembered = self._optimizer().state
        for name, f in self._fragments().items():
            yield f"weight/{name}", self._gather(f, f.owner)
            for kind, value in remembered.get(f.owner, {}).items():
                yield f"{kind}/{name}", value if value.ndim == 0 else self._gather(f, value)
        for name, tensor in self._fixed().items():
            yield f"fixed/{name}", self._read(tensor)

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Restores what `state` yielded, on any number of ranks and under any ZeRO stage. Raises ValueError where names
        or shapes differ from this module's."""
        fragments, fixed = self._fragments(), self._fixed()
        _require_names(saved, fragments, fixed)
        kinds: dict[str, list[str]] = {}
        for key in saved:
            kind, _, name = key.partition("/")
            kinds.setdefault(name, []).append(kind)
        for name, f in fragments.items():
            for kind in kinds[name]:
                value = saved[f"{kind}/{name}"]
                if value.ndim and value.shape != f.shape:
                    raise ValueError(f"saved {kind} of {name} is {tuple(value.shape)}, the model's {tuple(f.shape)}")
                if kind != "weight":
                    _remember(self._optimizer().state[f.owner], kind, value, f)
                    continue
                f.view(f.owner).copy_(f.shard(value))
                if f.owner is not f.parameter:
                    self._restore(f.parameter, value)
        for name, tensor in fixed.items():
            self._restore(tensor, saved[f"fixed/{name}"])

    @torch.no_grad()
    def finish(self, shards: Mapping[str, Tensor]) -> None:
        """Ends the training: makes the module a plain one with the full weights of `shards` (shaped like
        master_weights()), in the type that it computes in."""
        for name, f in self._fragments().items():
            self._write(f.parameter, self._noted(name, self.gather(name, shards[name])))

    @abstractmethod
    def to_float32(self) -> None: ...

    def _noted(self, name: str, full: Tensor) -> Tensor:
        """Returns `full`, the final weight of this name."""
        return full

    def _gather(self, f: Fragment, tensor: Tensor) -> Tensor:
        return f.gather(f.view(tensor), self.module_device) if self.sharded else tensor.detach()

    def _fixed(self) -> dict[str, Tensor]:
        """Returns the frozen parameters and the persistent buffers, by name."""
        frozen = {n: p for n, p in self.module.named_parameters() if not p.requires_grad}
        return frozen | {n: b for n, b in self.module.named_buffers() if n in self.module.state_dict()}

    def _read(self, tensor: Tensor) -> Tensor:
        return tensor.detach()

    def _write(self, tensor: Tensor, value: Tensor) -> None:
        tensor.data.copy_(value)

    def _restore(self, tensor: Tensor, value: Tensor) -> None:
        """Writes a saved full value. A collective call."""
        self._write(tensor, value)


def _remember(own: dict[str, Tensor], kind: str, value: Tensor, f: Fragment) -> None:
    if value.ndim == 0:
        own[kind] = value.clone()
        return
    if kind not in own:
        own[kind] = torch.zeros_like(f.owner, memory_format=torch.preserve_format)
    f.view(own[kind]).copy_(f.shard(value))


def _require_names(saved: Mapping[str, Tensor], fragments: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    needed = {f"weight/{n}" for n in fragments} | {f"fixed/{n}" for n in fixed}
    have = {k for k in saved if k.startswith(("weight/", "fixed/"))}
    if needed != have:
        odd = ", ".join(sorted(needed ^ have)[:3])
        raise ValueError(f"saved weights are another model's ({odd}...)")


class TorchEngine(_Engine):
    """An engine in plain torch, without sharding. On several ranks it averages gradients with one all-reduce per
    tensor."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, accumulate: int = 1
    ) -> None:
        self.module, self.optimizer, self.clip_norm, self.accumulate = module, optimizer, clip_norm, accumulate
        self.module_device = self.average_device = next(module.parameters()).device
        self._micro = 0
        self._norm = 0.0
        if _world_size() > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulate).backward()

    def step(self) -> float:
        """Returns the norm of the gradient before clipping; between accumulation boundaries, that of the last complete
        step."""
        self._micro += 1
        if self._micro % self.accumulate:
            return self._norm
        self._average()
        self._norm = gradient_norm(self.module)
        if self.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._norm

    def to_float32(self) -> None:
        """Does nothing, because the weights have been float32 all along."""

    def _average(self) -> None:
        if _world_size() == 1:
            return
        for p in self.module.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)
                p.grad /= _world_size()

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed distributes and stores the weights and the optimizer's state.

    zero_stage: the ZeRO stage, 0 to 3. offload: "none", "optimizer" or "all" (infra.config.ComputeConfig). bf16: keeps
    the weights in bfloat16 with float32 master weights, which takes at least ZeRO 2: under ZeRO 1 DeepSpeed accumulates
    float32 gradients in another optimizer, which does not see the backward passes of modules that are called directly.
    """

    zero_stage: int = 0
    offload: str = "none"
    bf16: bool = False

    @property
    def stage(self) -> int:
        """Returns the effective ZeRO stage: at least 2 in bfloat16."""
        return max(self.zero_stage, 2) if self.bf16 else self.zero_stage

    def zero_optimization(self, weights: int) -> dict[str, Any]:
        """Returns DeepSpeed's section zero_optimization. weights: the number of trained elements; it bounds the bucket
        size, because DeepSpeed always allocates a full bucket."""
        out: dict[str, Any] = {"stage": self.stage, "reduce_bucket_size": min(BUCKET, max(weights, 1))}
        if self.stage == 3:
            out["stage3_param_persistence_threshold"] = KEPT_WHOLE
            out["stage3_prefetch_bucket_size"] = AHEAD
            out["stage3_max_live_parameters"] = out["stage3_max_reuse_distance"] = LIVE
        if self.offload != "none":
            out["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if self.offload == "all":
            out["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        return out


class DeepSpeedEngine(_Engine):
    """An engine on DeepSpeed with ZeRO 0 to 3, which needs an initialised torch.distributed group.

    The weights are float32, or with Sharding.bf16 bfloat16 with float32 master weights. Gradients are accumulated and
    reduced in float32, because a sum of bfloat16 numbers loses 1% over 64 micro-steps. Under ZeRO 3 the full weights
    of a submodule exist only while it is called.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        accumulate: int = 1,
        sharding: Sharding = Sharding(),
    ) -> None:
        self.sharding, self.accumulate = sharding, accumulate
        self.sharded = sharding.stage > 0
        if self.sharded and getattr(optimizer, "whole_tensors", False):
            raise ValueError(
                "this optimizer (muon) needs weights whole, and ZeRO shards them: set compute.zero_stage=0, or the "
                "training's optimizer to adamw"
            )
        deepspeed = _deepspeed()
        config = {
            "train_micro_batch_size_per_gpu": 1,  # used to count samples only; the loader makes the batches
            "gradient_accumulation_steps": accumulate,
            "gradient_clipping": clip_norm,
            "zero_optimization": sharding.zero_optimization(sum(p.numel() for p in trained(module).values())),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own CPU optimizer would have to be compiled
            "bf16": {"enabled": sharding.bf16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "steps_per_print": 10**9,
        }
        exact = {n: p.detach().to("cpu", copy=True) for n, p in module.named_parameters()} if sharding.bf16 else {}
        self._group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.module_device = self.average_device = next(module.parameters()).device
        laid_out = _make_contiguous(module)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, model_parameters=list(trained(module).values()), config=config
        )
        self.module = self.engine.module
        if not self.sharded:  # ZeRO 1 to 3 keep the weights in flat tensors instead
            for parameter, own in laid_out:
                parameter.data = own.copy_(parameter.data)
        self._exact = {n: value for n, value in exact.items() if n not in trained(self.module)}
        self._start_from(exact)
        self._micro = 0
        self._norm = 0.0

    @torch.no_grad()
    def _start_from(self, exact: Mapping[str, Tensor]) -> None:
        """Copies the given float32 weights into the master weights, which DeepSpeed makes from rounded ones."""
        for name, f in self._fragments().items():
            if name in exact:
                f.view(f.owner).copy_(f.shard(exact[name]))

    def load(self, saved: Mapping[str, Tensor]) -> None:
        super().load(saved)
        own = dict(self.module.named_parameters())
        for name in self._exact.keys() & own.keys():
            self._write(own[name], self._exact[name])

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed infers two facts from calls of its engine, but the training methods call the module directly. They are
        # set here: whether this is a step's last micro-step, and (ZeRO) that a new backward pass adds to the gradients.
        self.engine.set_gradient_accumulation_boundary((self._micro + 1) % self.accumulate == 0)
        if self.sharded:
            self.engine.optimizer.clear_backward_seen_flag()
        self.engine.backward(loss)

    def step(self) -> float:
        """Returns the norm of the gradient before clipping; between accumulation boundaries, that of the last complete
        step."""
        self._micro += 1
        boundary = self._micro % self.accumulate == 0
        if boundary and not self.sharded:
            self._norm = gradient_norm(self.module)  # ZeRO 0 clips without storing the norm
        self.engine.step()
        if boundary and self.sharded:
            self._norm = float(self.engine.get_global_grad_norm())
        return self._norm

    @torch.no_grad()
    def finish(self, shards: Mapping[str, Tensor]) -> None:
        if self.sharding.stage < 3:
            super().finish(shards)
            return
        own = {n: p.dtype for n, p in self.module.named_parameters()}
        full = {n: self._noted(n, self.gather(n, shards[n])).to(own[n]) for n in self._fragments()}
        full |= {n: self._read(t).to(own[n], copy=True) for n, t in self._fixed().items() if n in own}
        frozen = {n for n, p in self.module.named_parameters() if not p.requires_grad}
        self.engine.destroy()
        for prefix, module in self.module.named_modules():
            names = {n: f"{prefix}.{n}" if prefix else n for n in module._parameters}
            module._parameters = {
                n: nn.Parameter(full[name], requires_grad=name not in frozen) for n, name in names.items()
            }

    def to_float32(self) -> None:
        """Turns the weights of the finished module, on rank 0, into the float32 ones. From bfloat16 they are on the CPU."""
        if not self.sharding.bf16 or dist.get_rank() > 0:
            return
        for name, parameter in self.module.named_parameters():
            parameter.data = self._exact[name]

    def _noted(self, name: str, full: Tensor) -> Tensor:
        if self.sharding.bf16 and dist.get_rank() == 0:
            self._exact[name] = full.to("cpu", copy=True)
        return full

    def _fixed(self) -> dict[str, Tensor]:
        """Returns the frozen parameters, in float32 also where the module computes with rounded ones, and the buffers."""
        return super()._fixed() | self._exact

    def _fragments(self) -> dict[str, Fragment]:
        if self.sharding.stage == 0:
            return of_whole_weights(self.module)
        if self.sharding.stage == 3:
            return of_partitions(self.module, self.engine.optimizer)
        return of_flat_groups(self.module, self._optimizer(), self._group_of)

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.engine.basic_optimizer

    def _read(self, tensor: Tensor) -> Tensor:
        if self.sharding.stage < 3 or not isinstance(tensor, nn.Parameter):
            return tensor.detach()
        with _deepspeed().zero.GatheredParameters([tensor]):
            return tensor.detach().clone()

    def _write(self, tensor: Tensor, value: Tensor) -> None:
        if self.sharding.stage < 3 or not isinstance(tensor, nn.Parameter):
            super()._write(tensor, value)
            return
        with _deepspeed().zero.GatheredParameters([tensor], modifier_rank=0):
            if dist.get_rank() == 0:  # the others get it from rank 0
                tensor.data.copy_(value)

    def _restore(self, tensor: Tensor, value: Tensor) -> None:
        """Reads sharded or rounded weights on rank 0 only, which sends them to the others: `value` lies in a file."""
        if self.sharding.stage not in (1, 2) or not isinstance(tensor, nn.Parameter):
            self._write(tensor, value)
            return
        if dist.get_rank() == 0:
            tensor.data.copy_(value)
        dist.broadcast(tensor.data, src=0)


def shard_frozen(module: nn.Module) -> Any:
    """Shards a frozen module's weights over the ranks, in place: ZeRO 3 of DeepSpeed without an optimizer.

    The full weights of a submodule exist only while it is called, and all ranks must make that call together. Returns
    DeepSpeed's engine: the caller must keep a reference, because gathering stops when the engine is destroyed.
    """
    assert not any(p.requires_grad for p in module.parameters()), "only a frozen module is sharded without an optimizer"
    deepspeed = _deepspeed()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": KEPT_WHOLE,
            "stage3_prefetch_bucket_size": AHEAD,
            "memory_efficient_linear": False,  # it helps only in a backward pass, and replaces torch's own globally
        },
        "steps_per_print": 10**9,
    }
    _make_contiguous(module)
    engine, *_ = deepspeed.initialize(model=module, config=config)
    return engine


def _make_contiguous(module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Makes all weights contiguous, because DeepSpeed broadcasts them as bytes, which fails on channels-last tensors.

    Returns each changed parameter with its original storage: in that memory layout convolutions are faster.
    """
    strided = [(p, p.data) for p in module.parameters() if p.dim() and (not p.is_contiguous() or p.stride(-1) != 1)]
    for parameter, own in strided:
        parameter.data = torch.empty(own.shape, dtype=own.dtype, device=own.device).copy_(own)
    return strided


def _deepspeed() -> Any:
    """Imports and returns `deepspeed`, with the settings that a CPU needs (docs/architecture.md, "DeepSpeed on a CPU").

    Raises ValueError where the installed version was not tested.
    """
    require_tested("deepspeed")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed

    # Otherwise init_distributed compiles an op for minutes, and the op needs AVX512.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for name, value in (("RANK", dist.get_rank()), ("WORLD_SIZE", _world_size()), ("LOCAL_RANK", 0)):
        os.environ.setdefault(name, str(value))
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    return deepspeed


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
