"""Stage SWEEP_REPORT (once): one table and one plot of all settings of a sweep: sweep.json, sweep.html, sweep.png."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.contracts import (
    Context,
    Stage,
)
from stages.data.contact_sheets import data_uri
from stages.eval.epe import TrackError, average, finite_mean
from stages.eval.items import CLIP_KINDS, Figures, Measured
from stages.eval.plots import sweep_plot
from stages.eval.summary import clean
from stages.eval.sweep import row
from stages.records import Report

TEMPLATE = Path(__file__).with_name("sweep.html.j2")


@dataclass(frozen=True)
class Guided:
    """The teacher measured under one pair of weights."""

    weights: str
    measured: tuple[Measured, ...]


@dataclass(frozen=True)
class SweepReportRun:
    """What the page says of its setting."""

    preset: str
    steps: int  # Euler steps of the teacher
    horizons: int
    raster: tuple[int, int]


@dataclass(frozen=True)
class SweepReportInputs:
    points: tuple[Figures, ...]
    guided: tuple[Guided, ...]
    git_sha: str = "unknown"


def run(cfg: SweepReportRun, inputs: SweepReportInputs, ctx: Context) -> Report:
    """Writes the three files into ctx.workdir and hands them to the tracker."""
    found = {p.name: json.loads(Path(p.file).read_text()) for p in inputs.points}
    report: dict[str, Any] = {
        "preset": cfg.preset,
        "git_sha": inputs.git_sha,
        "seed": ctx.seed,
        "horizons": cfg.horizons,
        "students": {name: clean(row(figures)) for name, figures in found.items()},
        "guidance": {g.weights: clean(guided_row(g)) for g in inputs.guided},
    }
    files = [ctx.workdir / name for name in ("sweep.json", "sweep.html", "sweep.png")]
    picture = sweep_plot(report)
    files[0].write_text(json.dumps(report, indent=1, allow_nan=False))
    files[1].write_text(page(cfg, report, picture))
    files[2].write_bytes(picture)
    for file in files:
        ctx.artifact(file, "sweep")
    return Report(str(ctx.workdir), *(str(file) for file in files))


def guided_row(guided: Guided) -> dict[str, float]:
    """EPE and perceptual distance of each kind of clips; NaN where there are none."""
    out: dict[str, float] = {}
    for kind in CLIP_KINDS:
        parts = [json.loads(Path(m.file).read_text()) for m in guided.measured if m.item.kind == kind]
        rows = [clip for part in parts for clip in part.values()]
        out[f"{kind}_epe"] = average([TrackError(**r["epe"]) for r in rows]).epe
        out[f"{kind}_perceptual"] = finite_mean([r["perceptual"] for r in rows])
    return out


def page(cfg: SweepReportRun, report: Mapping[str, Any], picture: bytes) -> str:
    """The HTML page. Nothing in it is fetched from elsewhere."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = lambda value, digits=2: "–" if value is None else f"{value:,.{digits}f}"
    return environment.from_string(TEMPLATE.read_text()).render(
        r=report, cfg=cfg, kinds=CLIP_KINDS, plot=data_uri(picture, "image/png")
    )


SWEEP_REPORT = Stage("eval_sweep_report", version=1, how="once", run=run)
