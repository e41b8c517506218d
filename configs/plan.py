"""Settings of `make plan`: the GPU, and the assumptions about its speed and memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. flops: dense bf16 FLOP/s in its data sheet. memory: bytes that its driver reports."""

    name: str
    flops: float
    memory: float


GPUS = {
    "a100-80": Gpu("A100 80 GB", 312e12, 81_920 * 2**20),
    "h100": Gpu("H100 80 GB SXM", 989e12, 81_559 * 2**20),
    "h200": Gpu("H200 141 GB", 989e12, 143_771 * 2**20),
}


@dataclass(frozen=True)
class PlanConfig:
    """Settings of the estimate. gpu: kind of GPU that is planned for. mfu: share of the GPU's FLOP/s at which the
    counted work is done, recomputation included. spare: share of the GPU's memory left to CUDA, NCCL, libraries' work
    space and fragmentation. node_gpus: GPUs that share a machine's memory. cpu_gflops: speed of one CPU thread in
    training in GFLOP/s, where there is no GPU."""

    gpu: str = "h100"
    mfu: float = 0.35
    spare: float = 0.1
    node_gpus: int = 8
    cpu_gflops: float = 60.0
    usd_per_gpu_hour: float = 0.0  # price of a GPU, for the summary; 0 prints no price

    def problems(self) -> list[str]:
        """Returns every inconsistency, as 'plan.field: what is wrong and how to fix it'."""
        out = []
        if self.gpu not in GPUS:
            out.append(f"plan.gpu: {self.gpu!r} is not one of {', '.join(GPUS)}")
        if not 0 < self.mfu <= 1:
            out.append(f"plan.mfu: {self.mfu} must be above 0 and at most 1")
        if not 0 <= self.spare < 1:
            out.append(f"plan.spare: {self.spare} must be at least 0 and below 1")
        if self.node_gpus < 1:
            out.append(f"plan.node_gpus: {self.node_gpus} must be at least 1")
        if self.cpu_gflops <= 0:
            out.append(f"plan.cpu_gflops: {self.cpu_gflops} must be positive")
        if self.usd_per_gpu_hour < 0:
            out.append(f"plan.usd_per_gpu_hour: {self.usd_per_gpu_hour} is below zero")
        return out
