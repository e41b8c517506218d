"""Engines: one module and its optimizer behind backward / step / state_dict (stages.spec.Engine, implemented structurally).

Both average gradients over the ranks and divide a loss by the number of accumulated micro-steps, so that k micro-steps
of batch b equal one step of batch k * b.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def gradient_norm(module: nn.Module) -> float:
    """2-norm of all gradients together, as one vector."""
    norms = [p.grad.detach().float().norm() for p in module.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


class TorchEngine:
    """Plain torch. On several ranks gradients are averaged with one all-reduce a tensor; no sharding."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, accumulate: int = 1
    ) -> None:
        self.module, self.optimizer, self.clip_norm, self.accumulate = module, optimizer, clip_norm, accumulate
        self._micro = 0
        self._norm = 0.0
        if _world_size() > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulate).backward()

    def step(self) -> float:
        """Norm of the gradient before clipping (of the last whole step, between accumulation boundaries)."""
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

    def _average(self) -> None:
        if _world_size() == 1:
            return
        for p in self.module.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)
                p.grad /= _world_size()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer state at an accumulation boundary: tensors and plain data."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._micro = 0


class DeepSpeedEngine:
    """DeepSpeed ZeRO 0 to 2: fp32 on a CPU, bf16 weights with fp32 masters on a GPU (there at least ZeRO 1).

    Needs an initialised torch.distributed group. state_dict() is this rank's: every rank saves and loads its own.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        accumulate: int = 1,
        zero_stage: int = 0,
        bf16: bool = False,
    ) -> None:
        deepspeed = _deepspeed()
        self.sharded = bf16 or zero_stage > 0
        if self.sharded and getattr(optimizer, "whole_tensors", False):
            raise ValueError(
                "this optimizer (muon) needs weights whole, and ZeRO shards them: set compute.zero_stage=0, or the "
                "training's optimizer to adamw"
            )
        config = {
            "train_micro_batch_size_per_gpu": 1,  # only counts samples; batches are the loader's affair
            "gradient_accumulation_steps": accumulate,
            "gradient_clipping": clip_norm,
            "zero_optimization": {"stage": max(zero_stage, 1) if bf16 else zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": bf16},
            "steps_per_print": 10**9,
        }
        trained = [p for p in module.parameters() if p.requires_grad]
        laid_out = _make_contiguous(module)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, model_parameters=trained, config=config
        )
        self.module: nn.Module = self.engine.module
        if not self.sharded:  # ZeRO keeps the weights in one flat tensor
            for parameter, own in laid_out:
                parameter.data = own.copy_(parameter.data)
        self._norm = 0.0

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self) -> float:
        """Norm of the gradient before clipping (of the last whole step, between accumulation boundaries)."""
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary and not self.sharded:
            self._norm = gradient_norm(self.module)  # ZeRO 0 clips without keeping the norm
        self.engine.step()
        if boundary and self.sharded:
            self._norm = float(self.engine.get_global_grad_norm())
        return self._norm

    def state_dict(self) -> dict[str, Any]:
        """This rank's weights and optimizer partition: tensors and plain data, fit for torch.load(weights_only=True)."""
        optimizer = {k: v for k, v in self.engine.optimizer.state_dict().items() if _is_plain(v)}
        return {"module": self.module.state_dict(), "optimizer": optimizer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        if self.sharded:
            mine = [dict(state["optimizer"])] * _world_size()  # read at this rank's index only
            self.engine.optimizer.load_state_dict(mine, load_optimizer_states=True, load_from_fp32_weights=True)
        else:
            self.engine.optimizer.load_state_dict(state["optimizer"])


def _make_contiguous(module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """DeepSpeed broadcasts weights as bytes, which fails on channels-last ones: makes them contiguous, and returns them
    with their own memory, in which convolutions are quicker."""
    strided = [(p, p.data) for p in module.parameters() if p.dim() and (not p.is_contiguous() or p.stride(-1) != 1)]
    for parameter, own in strided:
        parameter.data = torch.empty(own.shape, dtype=own.dtype, device=own.device).copy_(own)
    return strided


def _is_plain(value: Any) -> bool:
    """Whether a value is tensors, scalars and containers of them. DeepSpeed's loss scaler and slice map are not; it
    makes both anew."""
    if isinstance(value, Mapping):
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def _deepspeed() -> Any:
    """deepspeed, imported late and with the switches a CPU needs (see docs/architecture.md, "DeepSpeed on a CPU")."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed

    # Else init_distributed compiles for minutes an op that needs AVX512.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for name, value in (("RANK", dist.get_rank()), ("WORLD_SIZE", _world_size()), ("LOCAL_RANK", 0)):
        os.environ.setdefault(name, str(value))
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    return deepspeed


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
