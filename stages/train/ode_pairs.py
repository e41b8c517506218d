"""Stage ODE_PAIRS: samples the teacher's trajectories with joint guidance (CausVid, section 4.2).

Causal adaptation trains on them. Only the first frame, the text and the tracks of the clips are used. A pair file holds
one trajectory:
  states (k z t h w) float16 at the student's k timesteps, noise first; endpoint (z t h w) float16; text (l c), image
  (z t h w) float16, and clip (m c) float16 with dit.clip_dim; xy_px (T n 2) float32, visible (T n) bool and phi (n d)
  float16, from which the track map is rasterised again when the file is read (at full size the map itself would be 70 MB
  a clip).
Files are written one at a time and renamed when complete. Files that exist are not made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msmodel import flow
from msmodel.batch import Batch, Conditioning, image_conditioning
from msmodel.config import ModelConfig
from msmodel.rollout import fresh_noise
from stages.contracts import Context, Resources, Stage, StageError
from stages.data.loader import LoaderConfig
from stages.records import Checkpoint, OdePairs, ShardSet
from stages.train.conditioning import Augment, ClipTracks, condition, draw_tracks, image_tokens
from stages.train.method import Loader, RngStreams, at_least
from stages.train.publish import frozen_teacher, open_loader, weights_digest
from stages.train.sampling import Guidance, sample_teacher

TRAIN, HELDOUT = "pairs", "heldout"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class OdeConfig:
    """Settings of the teacher's trajectories. Paper: 4,000 trajectories.

    solver_steps must be a multiple of student.steps, so that the student's timesteps are on the solver's grid.
    """

    group: ClassVar[str] = "ode"

    pairs: int = 4000  # teacher trajectories to train on
    heldout_pairs: int = 64  # teacher trajectories that held-out figures are measured on
    batch: int = 4  # trajectories that a rank solves at once
    solver_steps: int = 48  # solver steps per trajectory; a multiple of student.steps
    augment: Augment = field(default_factory=Augment)  # of this, only the number of tracks is used here

    def problems(self) -> list[str]:
        least = {"pairs": 1, "heldout_pairs": 1, "batch": 1, "solver_steps": 1}
        out = at_least(self, least) + [f"augment.{p}" for p in self.augment.problems()]
        return [f"{self.group}.{p}" for p in out]


@dataclass(frozen=True)
class OdeRun:
    """Settings that stage ODE_PAIRS reads. All of them are hashed into its key."""

    model: ModelConfig
    ode: OdeConfig
    guidance: Guidance = field(default_factory=Guidance)

    def problems(self) -> list[str]:
        out = self.ode.problems() + [f"guidance.{p}" for p in self.guidance.problems()]
        if self.ode.solver_steps % self.model.student.steps:
            out.append(
                f"ode.solver_steps: {self.ode.solver_steps} is not a multiple of student.steps "
                f"({self.model.student.steps}): the student's timesteps would not lie on the solver's grid"
            )
        return out


@dataclass(frozen=True)
class OdeInputs:
    """Inputs of stage ODE_PAIRS: training and held-out shards, the teacher's checkpoint and the loader's settings."""

    train: ShardSet
    heldout: ShardSet
    teacher: Checkpoint
    loader: LoaderConfig = field(default_factory=LoaderConfig)


@dataclass(frozen=True)
class PairBatch:
    """Trajectories in the form that causal adaptation reads. states: b k z t h w; endpoint: b z t h w; both float32."""

    states: Tensor
    endpoint: Tensor
    cond: Conditioning

    def to(self, device: torch.device | str) -> PairBatch:
        """Returns a copy on `device`."""
        return PairBatch(self.states.to(device), self.endpoint.to(device), self.cond.to(device))


def trajectories(
    dit: nn.Module, batch: Batch, cfg: OdeRun, rng: RngStreams
) -> tuple[Tensor, Tensor, ClipTracks, Conditioning]:
    """Returns states (b k z t h w) at the student's timesteps, endpoint (b z t h w), and the tracks and conditioning."""
    clip_tracks = draw_tracks(batch, cfg.ode.augment, cfg.model, rng)
    cond = condition(batch, clip_tracks, cfg.model)
    noise = fresh_noise(batch.latents, rng.own("noise"))
    every = cfg.ode.solver_steps // cfg.model.student.steps
    kept: list[Tensor] = []
    seen = 0

    def on_state(t: float, x: Tensor) -> None:
        nonlocal seen
        if seen % every == 0 and seen < cfg.ode.solver_steps:
            kept.append(x)
        seen += 1

    endpoint = sample_teacher(dit, cond, noise, cfg.ode.solver_steps, cfg.guidance, cfg.model, on_state)
    return torch.stack(kept, dim=1), endpoint, clip_tracks, cond


def make_pairs(dit: nn.Module, loader: Loader, split: str, count: int, folder: Path, cfg: OdeRun, ctx: Context) -> None:
    """Writes this rank's share of `count` files folder/<split>-%06d.safetensors; existing files are kept.

    Raises StageError if a trajectory is not finite.
    """
    size, batches = cfg.ode.batch, iter(loader)
    rounds = -(-count // (size * ctx.world_size))
    with ctx.progress(f"ode_{split}", rounds * size) as progress:
        for turn in range(rounds):
            batch = next(batches)
            first = (turn * ctx.world_size + ctx.rank) * size
            paths = {j: pair_path(folder, split, first + j) for j in range(size) if first + j < count}
            if all(p.exists() for p in paths.values()):
                progress.advance(len(paths))
                continue
            rng = RngStreams(ctx.seed, turn * ctx.world_size + ctx.rank, micro=int(split == HELDOUT))
            batch = batch.to(ctx.device)
            states, endpoint, clip_tracks, cond = trajectories(dit, batch, cfg, rng)
            if not bool(torch.isfinite(endpoint).all()):
                raise StageError(f"the teacher's trajectory for {paths[0]} is not finite: is the teacher trained?")
            for j, path in paths.items():
                _write(path, states[j], endpoint[j], clip_tracks, replace(batch, image_tokens=cond.image_tokens), j)
            progress.advance(len(paths))


def _write(path: Path, states: Tensor, endpoint: Tensor, clip_tracks: ClipTracks, batch: Batch, item: int) -> None:
    tensors = {
        "states": states.half(),
        "endpoint": endpoint.half(),
        "text": batch.text[item].half(),
        "image": batch.image[item].half(),
        "xy_px": clip_tracks.xy_px[item],
        "visible": clip_tracks.visible[item],
        "phi": clip_tracks.track_id_embedding[item].half(),
    }
    if batch.image_tokens is not None:
        tensors["clip"] = batch.image_tokens[item].half()
    aside = path.with_suffix(".writing")
    save_file({n: v.cpu().contiguous() for n, v in tensors.items()}, aside)
    aside.rename(path)


def pair_path(folder: Path, split: str, index: int) -> Path:
    return folder / f"{split}-{index:06d}.safetensors"


def read_pairs(paths: Sequence[Path], model: ModelConfig, device: torch.device = CPU) -> PairBatch:
    """Returns pair files as one float32 batch on `device`. Clips with fewer tracks are padded with invisible ones."""
    items = [load_file(p) for p in paths]
    most = max(item["phi"].shape[0] for item in items)

    def stacked(name: str, dim: int | None = None) -> Tensor:
        return torch.stack([x if dim is None else _filled(x, dim, most) for x in (item[name] for item in items)])

    clip_tracks = ClipTracks(stacked("xy_px", 1), stacked("visible", 1), stacked("phi", 0).float())
    image = image_conditioning(stacked("image").float(), model)
    tokens = image_tokens(stacked("clip").float() if "clip" in items[0] else None, model)
    cond = Conditioning(stacked("text").float(), image, clip_tracks.to(device).map(model), tokens)
    return PairBatch(stacked("states").float(), stacked("endpoint").float(), cond).to(device)


def _filled(x: Tensor, dim: int, size: int) -> Tensor:
    """Returns x padded with zeros to `size` along `dim`."""
    shape = list(x.shape)
    shape[dim] = size - x.shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim=dim)


class PairLoader:
    """Yields batches of pairs endlessly (method.Loader).

    Pairs are shuffled in each epoch by (seed, epoch), and the batches go to the ranks in order. Raises StageError if
    the pairs do not fill one batch on every rank.
    """

    def __init__(
        self,
        pairs: OdePairs,
        batch: int,
        model: ModelConfig,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device = CPU,
    ) -> None:
        if pairs.count < batch * world_size:
            raise StageError(
                f"{pairs.count} ODE pairs do not fill a batch of {batch} on {world_size} ranks: "
                f"raise ode.pairs or lower adapt.batch"
            )
        self.pairs, self.batch, self.model, self.device = pairs, batch, model, device
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.taken = 0  # batches yielded by all ranks together

    def __iter__(self) -> Iterator[PairBatch]:
        per_epoch = self.pairs.count // self.batch
        while True:
            epoch, place = divmod(self.taken + self.rank, per_epoch)
            order = torch.randperm(self.pairs.count, generator=RngStreams(self.seed, epoch).shared("pair order"))
            chosen = order[place * self.batch : (place + 1) * self.batch].tolist()
            self.taken += self.world_size
            yield read_pairs([pair_path(Path(self.pairs.folder), TRAIN, i) for i in chosen], self.model, self.device)

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = int(state["taken"])


def heldout_pairs(pairs: OdePairs, most: int, model: ModelConfig, device: torch.device = CPU) -> PairBatch:
    """Returns the first `most` held-out trajectories."""
    return read_pairs(sorted(Path(pairs.folder).glob(f"{HELDOUT}-*.safetensors"))[:most], model, device)


def run(cfg: OdeRun, inputs: OdeInputs, ctx: Context) -> OdePairs:
    """Writes cfg.ode.pairs trajectories of training clips and cfg.ode.heldout_pairs of held-out ones to ctx.workdir."""
    dit = frozen_teacher(inputs.teacher, ctx)
    in_process = replace(inputs.loader, workers=0)  # a trajectory takes far longer than reading its clip
    for split, shards, count in (
        (TRAIN, inputs.train, cfg.ode.pairs),
        (HELDOUT, inputs.heldout, cfg.ode.heldout_pairs),
    ):
        loader = open_loader((shards,), cfg.ode.batch, in_process, ctx, partitions=1)
        make_pairs(dit, loader, split, count, ctx.workdir, cfg, ctx)
    ctx.barrier()
    timesteps = flow.student_timesteps(cfg.model.student.steps, cfg.model.dit.shift)
    return OdePairs(str(ctx.workdir), cfg.ode.pairs, timesteps, weights_digest(ctx.workdir))


ODE_PAIRS = Stage(name="ode_pairs", version=2, how="distributed", run=run, resources=Resources(threads=2))
