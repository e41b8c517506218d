"""Settings of the execution. They are never part of a step's key: results do not depend on them, except for rounding
(compute.precision, and the device)."""

from __future__ import annotations

from dataclasses import dataclass

EXECUTORS = ("ray", "local")
ENGINES = ("deepspeed", "torch")
POOLS = ("auto", "actors")
PRECISIONS = ("auto", "bf16", "fp32")
OFFLOADS = ("none", "optimizer", "all")
EMA_PLACES = ("device", "cpu")
ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class ComputeConfig:
    """How commands are executed, on one machine or on a cluster.

    executor: "ray" (Ray Data and Ray Train) or "local" (everything in this process, for debuggers). gpus: the most GPUs
    of the cluster that a command uses; 0 uses all. workers: processes of a distributed job; 0 uses the number that the
    stage declares. threads: torch threads of a worker without a GPU; 0 uses the number that the stage declares.
    item_workers: the most workers of a per-item stage; 0 starts as many as fit. item_gpus: share of a GPU that each
    worker of a per-item stage takes where it uses one (0.5: two workers per GPU). pool: "auto" keeps workers with
    loaded models (Ray actors) where they have a GPU, "actors" everywhere. precision: type of frozen models and of the
    weights that a training computes with; "auto" is bf16 on a GPU and fp32 on a CPU. Master weights and averages stay
    float32, and so does all of a training with muon. zero_stage: DeepSpeed ZeRO: 1 shards the optimizer's state over
    the ranks, 2 also the gradients, 3 also the weights, but not the causal student's (`stage_of`); at least 2 in bf16,
    with deepspeed. offload: "optimizer" keeps the optimizer's state in CPU memory, "all" also the weights. ema: the
    place of the float32 average of the weights, "device" or "cpu"; the average is sharded like the optimizer's state.
    checkpoints: address of a folder (s3://..., file://...) to which saved training states are copied, and from which a
    machine without any restores them; "" keeps them in the step's folder only. max_failures: how often a distributed
    job is restarted after a worker has died, with fewer workers where the cluster has lost some. max_failed_share:
    share of a stage's items that may fail (rejected items do not count) without stopping it; the same command tries
    failed items again. object_store_mb: size of Ray's shared memory in MB where Ray runs on this machine only.
    """

    executor: str = "ray"
    gpus: int = 0
    workers: int = 0
    threads: int = 0
    item_workers: int = 0
    item_gpus: float = 1.0
    pool: str = "auto"
    engine: str = "deepspeed"  # of training: "deepspeed", or "torch" (a plain loop in one process)
    precision: str = "auto"
    zero_stage: int = 0
    offload: str = "none"
    ema: str = "device"
    checkpoints: str = ""
    max_failures: int = 2
    max_failed_share: float = 0.0
    object_store_mb: int = 200

    def problems(self) -> list[str]:
        """Returns every inconsistency, as 'compute.field: what is wrong and how to fix it'."""
        out = []
        if self.executor not in EXECUTORS:
            out.append(f"compute.executor: {self.executor!r} is not one of {', '.join(EXECUTORS)}")
        if self.engine not in ENGINES:
            out.append(f"compute.engine: {self.engine!r} is not one of {', '.join(ENGINES)}")
        if self.pool not in POOLS:
            out.append(f"compute.pool: {self.pool!r} is not one of {', '.join(POOLS)}")
        if self.precision not in PRECISIONS:
            out.append(f"compute.precision: {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if not 0 < self.item_gpus <= 1:
            out.append(f"compute.item_gpus: {self.item_gpus} must be above 0 and at most 1")
        if self.zero_stage not in ZERO_STAGES:
            out.append(f"compute.zero_stage: {self.zero_stage} is not one of {', '.join(map(str, ZERO_STAGES))}")
        if self.ema not in EMA_PLACES:
            out.append(f"compute.ema: {self.ema!r} is not one of {', '.join(EMA_PLACES)}")
        out += self._offload_problems()
        if self.checkpoints and "://" not in self.checkpoints:
            out.append(
                f"compute.checkpoints: {self.checkpoints!r} is no address: write file:///folder or s3://bucket/folder"
            )
        for name in ("gpus", "workers", "item_workers", "threads", "max_failures"):
            if vars(self)[name] < 0:
                out.append(f"compute.{name}: {vars(self)[name]} is below zero")
        if not 0 <= self.max_failed_share < 1:
            out.append(f"compute.max_failed_share: {self.max_failed_share} must be at least 0 and below 1")
        if self.object_store_mb < 80:
            out.append(f"compute.object_store_mb: {self.object_store_mb} is below the 80 MB that Ray needs")
        return out

    def _offload_problems(self) -> list[str]:
        if self.offload not in OFFLOADS:
            return [f"compute.offload: {self.offload!r} is not one of {', '.join(OFFLOADS)}"]
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.offload != "none" and self.engine != "deepspeed":
            return [f"compute.offload: {self.offload} needs compute.engine=deepspeed"]
        if self.zero_stage >= needed:
            return []
        return [
            f"compute.offload: {self.offload} needs compute.zero_stage={needed} or more: ZeRO {self.zero_stage} does not shard "
            f"what would be moved"
        ]

    def stage_of(self, chunkwise: bool) -> int:
        """Returns the ZeRO stage of a trained module. chunkwise: whether a step calls the module chunk by chunk.

        ZeRO 3 would gather all weights of such a module for every one of these calls. ZeRO 2 keeps them on every rank and
        gathers them once a step, after the optimizer's update. With offload "all" they must not stay on the device.
        """
        return min(self.zero_stage, 2) if chunkwise and self.offload != "all" else self.zero_stage

    def settings_that_save_memory(self) -> list[str]:
        """Returns the settings, as on the command line, that would reduce a training's GPU memory further."""
        out = [f"compute.zero_stage={stage}" for stage in (2, 3) if stage > self.zero_stage]
        if self.ema == "device":
            out.append("compute.ema=cpu")
        if self.offload == "none":
            out.append("compute.offload=optimizer")
        if self.offload != "all":
            out.append("compute.zero_stage=3 compute.offload=all")
        return out
