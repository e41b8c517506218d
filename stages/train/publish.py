"""Loads the models and data that trainings start from, and publishes the weights that they train."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from msmodel.batch import Batch
from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig, VAEConfig
from msmodel.dit import WanDiT
from msmodel.io.backbones import Report, load_backbone
from msmodel.io.weights import load_teacher, load_weights, save_weights
from msmodel.vae import load_vae
from stages.contracts import Context
from stages.data.loader import Loader, LoaderConfig
from stages.records import Checkpoint, ShardSet
from stages.train.sampling import Decode

RANDOM = "random"


def open_loader(
    shard_sets: Sequence[ShardSet],
    batch: int,
    cfg: LoaderConfig,
    ctx: Context,
    micro_steps: int = 1,
    partitions: int = 0,
) -> Loader:
    """Returns this rank's endless loader of training batches (see stages.data.loader.SampleLoader)."""
    return Loader(
        shard_sets,
        batch,
        ctx.seed,
        ctx.rank,
        ctx.world_size,
        cfg,
        log=ctx.log,
        micro_steps=micro_steps,
        partitions=partitions,
    )


def heldout_batch(shards: ShardSet, most: int) -> Batch:
    """Returns at most `most` held-out clips, the same in every training and on every rank."""
    return next(iter(Loader((shards,), min(most, shards.clips), 0, 0, 1)))


def initial_dit(
    model: ModelConfig, init: str, base: Checkpoint | None, seed: int, strict: bool = True
) -> tuple[WanDiT, Report | None]:
    """Returns the DiT that a teacher starts from, and the report on its weights (None for random ones).

    Tracks change nothing at step 0, unless the loaded weights have track inputs. base: a BASE checkpoint, which takes
    precedence over `init`. init: "random", or what msmodel.io.backbones.load_backbone reads ("embedded:NAME", a folder
    or file, a hub id); its ValueErrors are raised here too.
    """
    dit = fresh(WanDiT, model, seed)
    if base is not None:
        return dit, load_backbone(dit, Path(base.folder), strict)
    return dit, None if init == RANDOM else load_backbone(dit, init, strict)


def fresh(kind: type[WanDiT], model: ModelConfig, seed: int) -> WanDiT:
    """Returns a DiT with random weights from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(model)


def student_from(checkpoint: Checkpoint, model: ModelConfig) -> CausalDiT:
    """Returns the causal student with a teacher's or student's weights and the sizes, sink and window of `model`."""
    student = CausalDiT(model)
    load_weights(student, Path(checkpoint.folder))
    return student


def trainable_teacher(checkpoint: Checkpoint, device: torch.device) -> WanDiT:
    """Returns the teacher as a float32 module whose weights can be trained."""
    return load_teacher(Path(checkpoint.folder)).to(device, torch.float32).requires_grad_(True)


def frozen_teacher(checkpoint: Checkpoint, ctx: Context) -> WanDiT:
    """Returns the teacher, frozen, on the context's device and in its data type."""
    return load_teacher(Path(checkpoint.folder)).to(ctx.device, ctx.dtype).eval().requires_grad_(False)


def frozen_decoder(vae: VAEConfig, device: torch.device) -> Decode:
    """Returns the function that decodes latents to video b 3 T H W in [-1, 1]."""
    return load_vae(vae).to(device).decode


def publish(
    name: str,
    module: nn.Module,
    step: int,
    ctx: Context,
    parents: tuple[str, ...] = (),
    metrics: Mapping[str, float] | None = None,
    data: ShardSet | None = None,
    start: Report | None = None,
    phase2: ShardSet | None = None,
) -> Checkpoint:
    """Writes the module's weights, of rank 0 and in their type, to ctx.workdir/NAME (on rank 0) and returns their
    Checkpoint. Every rank calls it.

    data: the shards that it was trained on. phase2: those of a second phase. start: the report on the weights that it
    started from. All three are stored with the weights.
    """
    folder = ctx.workdir / name
    if ctx.rank == 0:
        about: dict[str, Any] = {"name": name, "step": step, "seed": ctx.seed}
        for key, shards in (("data", data), ("phase2_data", phase2)):
            about |= {key: {"digest": shards.digest, "clips": shards.clips}} if shards else {}
        save_weights(module, folder, about | ({"start": asdict(start)} if start else {}))
    ctx.barrier()
    return Checkpoint(name, str(folder), step, weights_digest(folder), parents, dict(metrics or {}))


def weights_digest(folder: Path) -> str:
    """Returns the SHA-256 over the names and contents of a folder's safetensors files."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as f:
            total.update(path.name.encode() + hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()
