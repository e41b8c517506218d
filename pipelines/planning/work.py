"""Work, time and disk of a preset's stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.train.state import KEEP

from .config import GPUS
from .loads import TRAININGS, latent_values, ode_load, training, training_load
from .pieces import parameters


@dataclass(frozen=True)
class Work:
    """Of one stage over all ranks. clips: a step's. tokens: of video, a step's. flops: a step's."""

    name: str
    steps: int
    clips: int
    micro: str
    tokens: float
    flops: float

    @property
    def total(self) -> float:
        return self.steps * self.flops


def works(cfg: Any, ranks: int, gpu: bool) -> list[Work]:
    """In the order in which the stages run."""
    found = {name: _training(cfg, name, ranks, gpu) for name in TRAININGS}
    return [found["teacher"], _ode(cfg, ranks, gpu), found["adapt"], found["dmd"]]


def _training(cfg: Any, name: str, ranks: int, gpu: bool) -> Work:
    own = training(cfg, name)
    micro = own.micro_steps(ranks)
    clips = own.batch * micro * ranks
    flops = training_load(cfg, name, gpu, keep=False).flops * micro * ranks
    return Work(name, own.total_steps, clips, f"{own.batch} x {micro} x {ranks}", clips * cfg.model.tokens, flops)


def _ode(cfg: Any, ranks: int, gpu: bool) -> Work:
    own = cfg.ode
    rounds = sum(-(-count // (own.batch * ranks)) for count in (own.pairs, own.heldout_pairs))
    clips = own.batch * ranks
    return Work(
        "ode_pairs",
        rounds,
        clips,
        f"{own.batch} x 1 x {ranks}",
        clips * cfg.model.tokens,
        ode_load(cfg, gpu).flops * ranks,
    )


def speed(cfg: Any, ranks: int, gpu: bool) -> float:
    """FLOP/s of all ranks together, as assumed."""
    own = cfg.plan
    if gpu:
        return ranks * own.mfu * GPUS[own.gpu].flops
    return ranks * (cfg.compute.threads or 2) * own.cpu_gflops * 1e9


@dataclass(frozen=True)
class Disk:
    """Bytes. clip: latents, image, text and tracks of one clip in a shard, without its video. pairs: all ODE pairs. saves: the
    saved states of each training that exist at once."""

    clip: float
    pairs: float
    saves: dict[str, float]


def disk(cfg: Any) -> Disk:
    """Arrays as they are written (stages/data/encode.py, track.py, stages/train/ode_pairs.py, state.py)."""
    model, points = cfg.model, cfg.data.grid_rows * cfg.data.grid_cols
    latents, text = 2.0 * latent_values(model), 2.0 * model.text.length * model.text.dim
    tracks = 9.0 * model.clip.frames * points  # float32 x and y, and whether visible
    clip = 2 * latents + text + tracks
    pair = (model.student.steps + 2) * latents + text + tracks + 2.0 * points * model.dit.track_id_dim
    count, _ = parameters(model)
    averages = {"teacher": (1, 1), "adapt": (1, 1), "dmd": (2, 1)}
    # weights in float32 and two moments a trained model, and the average; the last saves are kept while another is written
    saves = {n: (KEEP + 1) * 4.0 * count * (3 * trained + ema) for n, (trained, ema) in averages.items()}
    return Disk(clip, (cfg.ode.pairs + cfg.ode.heldout_pairs) * pair, saves)
