"""Formats the estimate as tables and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.plan import GPUS
from configs.settings import load
from infra.progress import duration
from pipelines.commands.plan.advice import nearest
from pipelines.commands.plan.loads import TRAININGS, training
from pipelines.commands.plan.memory import Layout, Memory, inference_memory, layout, training_memory
from pipelines.commands.plan.steps import parameters
from pipelines.commands.plan.work import Row, chunk_flops, disk, rows, speed

COLUMNS = (
    "weights",
    "gradients",
    "optimizer",
    "ema",
    "vae",
    "inputs",
    "cache",
    "activations",
    "buffers",
    "gathered",
    "update",
    "observe",
)
TEACHERS = {
    "shard": "a shard of the frozen teacher on each, plus the weights in use while it scores",
    "offload": "the frozen teacher in CPU memory, on the device while it scores",
}
KINDS = {"streaming": "student, streaming"}


def describe(cfg: Any, ranks: int, gpu: bool) -> list[str]:
    """Returns the lines of the estimate: sizes, memory of a rank, time and price of the stages, disk, warnings, and a
    summary.

    Where something does not fit, the warnings name settings that do. ranks: number of GPUs, or of processes on CPUs.
    """
    where = layout(cfg, ranks, gpu)
    memories = [training_memory(cfg, name, where) for name in TRAININGS] + inference_memory(cfg, where)
    stages = rows(cfg, ranks, gpu)
    return [
        *_sizes(cfg),
        "",
        *_memory(cfg, where, memories),
        "",
        *_work(cfg, stages, ranks, gpu),
        "",
        *_disk(cfg, where, memories),
        *_shards(cfg, ranks),
        *(_warnings(cfg, where, memories) if gpu else []),
        "",
        _summary(cfg, where, memories, sum(row.seconds for row in stages)),
    ]


def _summary(cfg: Any, where: Layout, memories: Sequence[Memory], seconds: float) -> str:
    """Returns the cost of all stages in one line. seconds: time of all together."""
    worst = max(memories, key=lambda m: m.peak)
    found = disk(cfg)
    stored = f"disk {_bytes(found.pairs + sum(found.saves.values()))} for ODE pairs and saved states"
    if not where.gpu:
        place = f"{where.ranks} CPU process{'es' if where.ranks > 1 else ''}"
        return (
            f"summary: everything takes {duration(seconds)} on {place}; memory {_bytes(worst.peak)} a process; {stored}"
        )
    hours, price = where.ranks * seconds / 3600, cfg.plan.usd_per_gpu_hour
    cost = f" = {hours * price:,.0f} USD at {price:g} USD an hour (plan.usd_per_gpu_hour, an example)" if price else ""
    return (
        f"summary: everything takes {duration(seconds)} on {where.ranks} x {GPUS[cfg.plan.gpu].name} = {hours:,.0f} GPU hours"
        f"{cost}; memory {worst.peak / 2**30:.1f} of {_limit(cfg) / 2**30:.1f} GiB a GPU "
        f"({KINDS.get(worst.name, worst.name)}); {stored}"
    )


def _sizes(cfg: Any) -> list[str]:
    model, own = cfg.model, cfg.student
    count, _ = parameters(model)
    return [
        f"clip {cfg.clip.width}x{cfg.clip.height}, {cfg.clip.frames} frames at {cfg.clip.fps:g} fps = {model.latent_frames} "
        f"latent frames, {model.tokens_per_frame} tokens a frame, {model.tokens} a clip, {model.chunks} chunks",
        f"DiT {_count(count)} parameters, {model.in_channels} input channels; student "
        f"c{own.chunk}s{own.sink}w{own.window}, {own.steps} steps a chunk",
    ]


def _memory(cfg: Any, where: Layout, memories: Sequence[Memory]) -> list[str]:
    unit, size = ("GiB", 2**30) if where.gpu else ("MiB", 2**20)
    rows = []
    for m in memories:
        values = [_amount(vars(m)[c] / size) for c in COLUMNS]
        worst = max(m.moments, key=lambda k: m.moments[k])
        rows.append(
            [KINDS.get(m.name, m.name), *values, _amount(m.peak / size), f"in {worst}" if m.name in TRAININGS else ""]
        )
    title = f"memory in {unit} of one {'GPU' if where.gpu else 'process'}, {_layout(where)}:"
    return [title, *_table(["", *COLUMNS, "peak", ""], rows), *_notes(cfg, where)]


def _notes(cfg: Any, where: Layout) -> list[str]:
    recomputed = [
        f"{n} (without attention)" if vars(cfg)[n].keep_attention else n
        for n in TRAININGS
        if vars(cfg)[n].checkpoint_layers
    ]
    lines = [
        f"  layers recomputed in the backward pass: {', '.join(recomputed) or 'none'}. peak = weights to inputs, and the most "
        "of: gradients + cache + activations + buffers + gathered (training); gradients + update (the optimizer's);",
        "  observe + gathered - inputs (looking at held-out clips; at ZeRO 3's end with a whole model gathered)",
    ]
    if cfg.dmd.teacher_placement != "device":
        lines.append(f"  dmd.teacher_placement={cfg.dmd.teacher_placement}: {TEACHERS[cfg.dmd.teacher_placement]}")
    if where.gpu:
        own, kind = cfg.plan, GPUS[cfg.plan.gpu]
        lines.append(
            f"  {kind.name}: {kind.memory / 2**30:.1f} GiB, of which {own.spare:.0%} (plan.spare) are left to CUDA, NCCL and "
            f"fragmentation: {_limit(cfg) / 2**30:.1f} GiB to use. Nothing of this has been measured on a GPU"
        )
    return lines


def _layout(where: Layout) -> str:
    if where.engine == "torch":
        return f"plain torch on {where.ranks}"
    stage = max(where.zero_stage, 2 * int(where.gpu))
    away = {"none": "nothing offloaded", "optimizer": "optimizer offloaded", "all": "optimizer and weights offloaded"}
    return f"ZeRO {stage} on {where.ranks}, {away[where.offload]}, averages on the {'CPU' if where.ema == 'cpu' else 'device'}"


def _work(cfg: Any, stages: Sequence[Row], ranks: int, gpu: bool) -> list[str]:
    own, price = cfg.plan, cfg.plan.usd_per_gpu_hour
    whole = Row("together", "", *(sum(column) for column in zip(*map(_figures, stages), strict=True)))
    lines = []
    for row in (*stages, whole):
        hours = ranks * row.seconds / 3600
        spent = [f"{hours:,.1f}", *([f"{hours * price:,.0f}"] if price else [])] if gpu else []
        parts = [_time(row.computing), _time(row.talking), _time(row.waiting), _time(row.seconds)]
        lines.append([row.name, row.amount, f"{row.flops:.3g}" if row.flops else "-", *parts, *spent])
    spent = ["GPU hours", *(["USD"] if price else [])] if gpu else []
    head = ["", "", "FLOP", "computing", "sending", "on CPUs", "together", *spent]
    if gpu:
        assumed = (
            f"{ranks} x {GPUS[own.gpu].name} at {own.mfu:.0%} (plan.mfu) of {GPUS[own.gpu].flops / 1e12:.0f} TFLOP/s, the "
            f"VAE at {own.vae_mfu:.0%}"
        )
    else:
        assumed = f"{cfg.compute.threads or 2} CPU threads a process at {own.cpu_gflops:g} GFLOP/s (plan.cpu_gflops)"
    chunk = chunk_flops(cfg, gpu)
    return [
        f"time on {assumed}; clips = batch x micro-steps x ranks, recomputation and validation count as work:",
        *_table(head, lines, left=(0, 1)),
        "  assumed (plan.*), not measured: "
        + ", ".join(f"{n} {vars(own)[n]:g}" for n in ("clips", "track_seconds", "frames_per_second", "cores_per_gpu"))
        + (f", {own.node_gb_per_second:g} and {own.network_gb_per_second:g} GB/s within and between machines" * gpu),
        f"  student: {chunk:.3g} FLOP a chunk of {cfg.student.chunk * cfg.vae.stride_t} frames = "
        f"{duration(chunk / speed(cfg, 1, gpu))} on one {'GPU' if gpu else 'process'}, without decoding",
    ]


def _figures(row: Row) -> tuple[float, ...]:
    return row.flops, row.computing, row.talking, row.waiting


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else "-"


def _disk(cfg: Any, where: Layout, memories: Sequence[Memory]) -> list[str]:
    found = disk(cfg)
    saves = ", ".join(f"{n} {_bytes(v)}" for n, v in found.saves.items())
    lines = [
        f"disk: {_bytes(found.clip)} a clip in shards, without its video ({_bytes(1000 * found.clip)} a thousand clips); "
        f"{_bytes(found.pairs)} of ODE pairs; three saved states at once: {saves}"
    ]
    host = {m.name: m.host for m in memories if m.host}
    if host:
        each = ", ".join(f"{n} {_bytes(v)}" for n, v in host.items())
        together = min(where.ranks, cfg.plan.node_gpus)
        lines.append(
            f"CPU memory of a rank, loading models, or offloaded state and its part of a saved one: {each}; on a machine with "
            f"{together} GPU{'s' if together > 1 else ''} up to {_bytes(together * max(host.values()))}"
        )
    return lines


def _shards(cfg: Any, ranks: int) -> list[str]:
    """Returns the loader's requirement on the number of shards (stages/data/shards.py), expressed in clips."""
    readers, each = ranks * max(cfg.loader.workers, 1), cfg.data.clips_per_shard
    if readers == 1:
        return []
    whole = max(training(cfg, n).micro_steps(training(cfg, n).ranks(ranks)) for n in TRAININGS) * ranks
    return [
        f"shards: trainings stop where there are fewer than {readers}, one a rank and loader worker. At "
        f"data.clips_per_shard={each} that takes {each * (readers - 1) + 1:,} training clips; with fewer, set it lower. "
        f"Best are {max(whole, readers)} shards, one a micro-batch of a step"
    ]


def _limit(cfg: Any) -> float:
    return GPUS[cfg.plan.gpu].memory * (1 - cfg.plan.spare)


def _warnings(cfg: Any, where: Layout, memories: Sequence[Memory]) -> list[str]:
    """Returns what does not fit with the nearest settings that do, else how to train on this number of GPUs."""
    lines = misfits(memories, _limit(cfg))
    usual = load(cfg.preset).compute.workers
    gpus = "" if cfg.compute.workers == usual else f"GPUS={where.ranks} "
    if lines:
        return [*(f"warning: {line}" for line in lines), f"  {remedy(cfg, where.ranks, _limit(cfg), gpus)}"]
    return [f"to train on them, give {gpus.strip()} to the commands that train"] if gpus else []


def misfits(memories: Sequence[Memory], limit: float) -> list[str]:
    """Returns a line for each stage that needs more than `limit` bytes per GPU."""
    lines = []
    for m in memories:
        too_large = [f"{moment} {size / 2**30:.1f}" for moment, size in m.moments.items() if size > limit]
        if too_large:
            name = KINDS.get(m.name, m.name)
            lines.append(f"{name} will not fit into {limit / 2**30:.1f} GiB: {', '.join(too_large)}")
    return lines


def remedy(cfg: Any, ranks: int, limit: float, gpus: str = "") -> str:
    """Returns the nearest settings under which everything fits. gpus: what else to give, as in "GPUS=8 "."""
    change = nearest(cfg, ranks, limit)
    if change is not None:
        return f'the nearest settings that fit: {gpus}ARGS="{" ".join(change.settings)}"'
    fix = "take more of them (GPUS=), larger ones (plan.gpu), or shorter or smaller clips"
    return f"no settings of ZeRO, offload, recomputation and batches fit on these GPUs: {fix}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Returns the lines of a table: the columns `left` left-aligned, the others right-aligned."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def cell(i: int, text: str) -> str:
        return text.ljust(widths[i]) if i in left else text.rjust(widths[i])

    return [("  " + "  ".join(cell(i, text) for i, text in enumerate(line))).rstrip() for line in lines]


def _amount(value: float) -> str:
    return "-" if not value else f"{value:.1f}" if value >= 0.05 else "<0.1"


def _count(value: int) -> str:
    return f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.1f} M"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value / 1e3:.1f} kB"
