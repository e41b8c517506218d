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
    """Settings of the estimate. All but gpu, clips and enforce are assumptions: replace them by what you measured.

    mfu: share of the GPU's bf16 FLOP/s at which the counted work is done, recomputation included. vae_mfu: the same of
    the VAE, which computes in float32. spare: share of the GPU's memory left to CUDA, NCCL, libraries' work space and
    fragmentation. node_gpus: GPUs that share a machine's memory and fast links. node_gb_per_second,
    network_gb_per_second: what a GPU sends to others in its machine, and in other machines; nothing of it is assumed to
    overlap with computing. track_seconds: of one GPU, to track the points of a clip with CoTracker.
    frames_per_second: frames of a clip that one CPU core decodes, resizes or encodes. cpu_gflops: speed of one CPU
    thread in training in GFLOP/s, where there is no GPU. enforce: whether a command that would train with GPUs refuses
    to start where a stage does not fit into their memory.
    """

    gpu: str = "h100"  # kind of GPU that is planned for
    clips: int = 10_000  # clips that the user's videos give
    mfu: float = 0.35
    vae_mfu: float = 0.05
    spare: float = 0.1
    node_gpus: int = 8
    node_gb_per_second: float = 300.0
    network_gb_per_second: float = 40.0
    track_seconds: float = 20.0
    frames_per_second: float = 60.0
    cores_per_gpu: int = 16  # CPU cores for each GPU
    cpu_gflops: float = 60.0
    usd_per_gpu_hour: float = 2.5  # price of a GPU, an example: put in your provider's; 0 prints no price
    enforce: bool = True

    def problems(self) -> list[str]:
        """Returns every inconsistency, as 'plan.field: what is wrong and how to fix it'."""
        out = []
        if self.gpu not in GPUS:
            out.append(f"plan.gpu: {self.gpu!r} is not one of {', '.join(GPUS)}")
        if not 0 < self.mfu <= 1:
            out.append(f"plan.mfu: {self.mfu} must be above 0 and at most 1")
        if not 0 <= self.spare < 1:
            out.append(f"plan.spare: {self.spare} must be at least 0 and below 1")
        for name in ("node_gpus", "cores_per_gpu"):
            if vars(self)[name] < 1:
                out.append(f"plan.{name}: {vars(self)[name]} must be at least 1")
        for name in ("vae_mfu", "node_gb_per_second", "network_gb_per_second", "frames_per_second", "cpu_gflops"):
            if vars(self)[name] <= 0:
                out.append(f"plan.{name}: {vars(self)[name]} must be positive")
        for name in ("clips", "track_seconds"):
            if vars(self)[name] < 0:
                out.append(f"plan.{name}: {vars(self)[name]} is below zero")
        if self.usd_per_gpu_hour < 0:
            out.append(f"plan.usd_per_gpu_hour: {self.usd_per_gpu_hour} is below zero")
        return out
