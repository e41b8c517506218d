"""Finds the cheapest change of settings under which a training fits into memory, by trying candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from infra.config import EMA_PLACES, OFFLOADS
from pipelines.commands.plan.loads import TRAININGS, training
from pipelines.commands.plan.memory import layout, sampling_memory, training_memory
from pipelines.commands.plan.steps import HELDOUT

LEAST = {"none": 0, "optimizer": 1, "all": 3}  # lowest ZeRO stage for each offload
# Costs of changes, by their effect on speed: a smaller batch and sharding cost little, recomputation a third of the speed.
HALF_BATCH, STAGE, ONE_LESS, RECOMPUTE, RECOMPUTE_ATTENTION, EMA_AWAY, OPTIMIZER_AWAY, ALL_AWAY = (
    0.5,
    0.6,
    0.1,
    1.0,
    0.4,
    1.0,
    2.0,
    3.0,
)
# Costs of the place of DMD's teacher, which scores in every fifth step only.
TEACHER_AT = {"device": 0.0, "shard": 0.2, "offload": 0.7}


@dataclass(frozen=True)
class Change:
    """One change of the configuration. cost: its total cost. settings: overrides as a user writes them. cfg: the
    result."""

    cost: float
    settings: tuple[str, ...]
    cfg: Any


def nearest(cfg: Any, ranks: int, limit: float) -> Change | None:
    """Returns the cheapest change under which every training fits into `limit` bytes per GPU, or None if none does."""
    best: Change | None = None
    for compute in sorted(_compute(cfg), key=lambda change: change.cost):
        if best is not None and compute.cost >= best.cost:
            break
        found = _trainings(compute, ranks, limit)
        if found is not None and (best is None or found.cost < best.cost):
            best = found
    return best


def _trainings(compute: Change, ranks: int, limit: float) -> Change | None:
    """Returns `compute` combined with the cheapest changes of each training's own settings and of the sampling of
    trajectories, or None if one of them does not fit."""
    found = compute
    for name in (*TRAININGS, "ode"):
        own = _sampling(found.cfg, limit) if name == "ode" else _own(found.cfg, name, ranks, limit)
        if own is None:
            return None
        found = Change(found.cost + own.cost, (*found.settings, *own.settings), own.cfg)
    return found


def _compute(cfg: Any) -> Iterator[Change]:
    """Yields the changes of `compute`: ZeRO stages from the given one up, with every place of the optimizer and the
    average that ComputeConfig permits."""
    now = cfg.compute
    away = dict(zip(OFFLOADS, (0.0, OPTIMIZER_AWAY, ALL_AWAY), strict=True))
    for stage, offload, ema in product(range(now.zero_stage, 4), OFFLOADS, EMA_PLACES):
        if away[offload] < away[now.offload] or (now.ema == "cpu" and ema == "device") or stage < LEAST[offload]:
            continue
        price = STAGE * (stage - now.zero_stage) + away[offload] - away[now.offload] + EMA_AWAY * (ema != now.ema)
        fields = {"zero_stage": stage, "offload": offload, "ema": ema}
        settings = tuple(f"compute.{n}={v}" for n, v in fields.items() if vars(now)[n] != v)
        yield Change(price, settings, replace(cfg, compute=replace(now, **fields)))


def _own(cfg: Any, name: str, ranks: int, limit: float) -> Change | None:
    """Returns the cheapest change of one training's own settings under which it fits, or None."""
    for price, changed in sorted(_tries(cfg, name, ranks), key=lambda t: t[0]):
        now = training(cfg, name)
        other = replace(cfg, **{name: replace(now, **changed)})
        if training_memory(other, name, layout(cfg, ranks, gpu=True)).peak <= limit:
            return Change(
                price, tuple(f"{name}.{n}={_text(v)}" for n, v in changed.items() if vars(now)[n] != v), other
            )
    return None


def _tries(cfg: Any, name: str, ranks: int) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yields (cost, settings) of all candidates: smaller batches, recomputation, fewer held-out clips and pictures, and
    other places of DMD's teacher."""
    for extra, elsewhere in _teacher_places(cfg, name, ranks):
        for price, changed in _own_tries(cfg, name, ranks):
            yield price + extra, changed | elsewhere


def _teacher_places(cfg: Any, name: str, ranks: int) -> Iterator[tuple[float, dict[str, str]]]:
    """Yields (cost, settings) of the present place of DMD's teacher and of those possible places that need less
    memory."""
    if name != "dmd":
        yield 0.0, {}
        return
    now = TEACHER_AT[cfg.dmd.teacher_placement]
    for lies, price in TEACHER_AT.items():
        possible = lies != "shard" or (ranks > 1 and cfg.compute.engine == "deepspeed")
        if lies == cfg.dmd.teacher_placement or (price > now and possible):
            yield price - now, {"teacher_placement": lies}


def _own_tries(cfg: Any, name: str, ranks: int) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yields (cost, settings) with smaller batches, recomputation, and fewer held-out clips and pictures."""
    now, watched = training(cfg, name), HELDOUT[name]
    most, pictures = (vars(now)[n] for n in (watched, "picture_clips"))
    recomputed = {(now.checkpoint_layers, now.keep_attention), (True, now.keep_attention), (True, False)}
    for (checkpoint, keep), halvings in product(recomputed, range(now.batch.bit_length())):
        batch = now.batch >> halvings
        if now.global_batch and now.global_batch % (batch * replace(now, batch=batch).ranks(ranks)):
            continue
        accumulate = now.accumulate if now.global_batch else now.accumulate * now.batch // batch
        changed = {"batch": batch, "accumulate": accumulate, "checkpoint_layers": checkpoint}
        changed["keep_attention"] = keep
        price = HALF_BATCH * halvings + RECOMPUTE * (checkpoint != now.checkpoint_layers)
        price += RECOMPUTE_ATTENTION * (keep != now.keep_attention)
        for fewer, shown in product(range(most.bit_length()), range(pictures + 1)):
            if shown <= most >> fewer:
                yield (
                    price + ONE_LESS * (fewer + pictures - shown),
                    {
                        **changed,
                        watched: most >> fewer,
                        "picture_clips": shown,
                    },
                )


def _sampling(cfg: Any, limit: float) -> Change | None:
    """Returns the change to the largest batch of trajectories that fits, at most the given one, or None."""
    for halvings in range(cfg.ode.batch.bit_length()):
        batch = cfg.ode.batch >> halvings
        other = replace(cfg, ode=replace(cfg.ode, batch=batch))
        if sampling_memory(other, layout(other, 1, gpu=True)).peak <= limit:
            return Change(ONE_LESS * halvings, (f"ode.batch={batch}",) if halvings else (), other)
    return None


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
