"""Computes what `make plan` prints: the steps that would run, and an estimate of memory, work, time and disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from configs.settings import Config
from msmodel.io.tensor_files import EMBEDDED, HUB_ID
from pipelines.commands.plan import tables
from pipelines.distill import unused_stages
from pipelines.run import Line, NotMade, Run
from stages.contracts import Stage
from stages.train.publish import RANDOM


def dry_run(run: Run, targets: Mapping[str, Any], stages: Mapping[str, tuple[Stage, ...]]) -> list[Line]:
    """Returns the lines of the table: finished steps, the first unfinished step of each target, and the steps after it.

    targets: {target: its function of a Run}. stages: {target: its stages in order}.
    """
    lines: list[Line] = []
    for make in targets.values():
        try:
            make(run)
        except NotMade as missing:
            lines.append(missing.line)
    waiting: dict[tuple[str, str], Line] = {(line.target, line.stage): line for line in lines}
    done = {(line.target, line.stage) for line in run.lines}
    unused = unused_stages(run.cfg.distill.method)
    for target, names in stages.items():
        for stage in names:
            place = (target, stage.name)
            if stage.name not in unused and place not in done and place not in waiting:
                note = "after the step above it"
                waiting[place] = Line(target, stage.name, "would run", 0.0, run.store.root / stage.name, note)
    order = [(target, stage.name) for target, names in stages.items() for stage in names]
    places = {place: number for number, place in enumerate(order)}  # steps of other targets keep their place
    return sorted([*run.lines, *waiting.values()], key=lambda line: places.get((line.target, line.stage), -1))


def describe(cfg: Config, asked: bool = False) -> list[str]:
    """Returns the lines of the estimate.

    asked: whether the user gave a number of GPUs. Otherwise a preset with several workers is planned for GPUs, and one
    with a single worker for this machine.
    """
    gpu = asked or cfg.compute.workers > 1 or torch.cuda.is_available()
    return tables.describe(cfg, max(cfg.compute.workers, 1), gpu)


def hints(cfg: Config) -> list[str]:
    """Returns notes on problems that would stop a target later, as far as a dry run can detect them."""
    init = cfg.teacher.init
    if init == RANDOM or init.startswith(EMBEDDED) or Path(init).expanduser().exists():
        return []
    if HUB_ID.fullmatch(init):
        return [
            f"note: teacher.init={init} is no folder or file here: `make teacher` fetches it from Hugging Face's hub, or takes "
            f'it from the cache. Without a network name a folder, as in ARGS="teacher.init=/path/to/transformer"'
        ]
    return [f"note: teacher.init={init} does not exist, and is no hub id: `make teacher` would stop at it"]
