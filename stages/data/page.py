"""Stage DATA_PAGE (once): writes data.html, one self-contained page that shows what was packed and what was left out."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msmodel.config import ClipConfig
from stages.contracts import Context, Stage
from stages.data.catalogue import COLUMNS, FIGURES, in_order, kinds_of
from stages.data.contact_sheets import clips_contact_sheet, data_uri, jpeg, png
from stages.data.gates import GATES, GateConfig, dropped_by, thresholds
from stages.records import Clip, DataPage, Rejected, ShardSet

GREY = "#8a8f98"
COLOURS = {"real": "#3b82c4", "rendered": "#e07b39", "generated": "#5a9e4b"}
LIMIT_COLOUR = "#c44e7a"
BINS = 30


def histogram(title: str, values: Mapping[str, Sequence[float]], limits: Mapping[str, float]) -> bytes:
    """Draws a histogram, as PNG: shares of clips by value, one outline a kind.

    values: kind -> finite figures. limits: setting -> threshold, drawn as a dashed line.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("none")
    axis.tick_params(colors=GREY, labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    every = np.concatenate([np.asarray(v, float) for v in values.values()])
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + max(0.1, 0.1 * abs(low)), BINS + 1)
    for kind, figures in values.items():
        if len(figures):
            shares = 100 * np.histogram(figures, edges)[0] / len(figures)
            axis.stairs(shares, edges, fill=True, color=COLOURS[kind], alpha=0.45, label=kind)
    for setting, limit in limits.items():
        axis.axvline(limit, color=LIMIT_COLOUR, linestyle="--", linewidth=1.2, label=f"{setting} {limit:g}")
    axis.set_title(title, color=GREY, fontsize=9)
    axis.set_ylabel("% of clips", color=GREY, fontsize=8)
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False, labelcolor=GREY)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=144, transparent=True)
    return out.getvalue()


SHEET_ROWS = 10  # clips drawn of a kind
MOST_ROWS = 40  # of a table of counts
MOST_REJECTED = 300  # rows of the table; the catalogue and rejected.csv have all
TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class DataPageRun:
    """Settings of DATA_PAGE: the clips' size, and the gates to show."""

    clip: ClipConfig
    gates: GateConfig


def run(cfg: DataPageRun, inputs: Sequence[Clip | Rejected | ShardSet], ctx: Context) -> DataPage:
    """Writes the page from the packed clips, what was rejected, and the shard sets. Page and figures also go to MLflow.

    Only the folders of the few clips that are drawn are read; figures are of all clips.
    """
    clips = [r for r in inputs if isinstance(r, Clip)]
    rejected = [r for r in inputs if isinstance(r, Rejected)]
    sets = [r for r in inputs if isinstance(r, ShardSet)]
    ctx.workdir.mkdir(parents=True, exist_ok=True)
    by_kind = {kind: [c for c in clips if c.kind == kind] for kind in kinds_of(clips)}
    contact_sheets = {kind: jpeg(clips_contact_sheet(mine, SHEET_ROWS)) for kind, mine in by_kind.items() if mine}
    html, picture = ctx.workdir / "data.html", ctx.workdir / "data.png"
    html.write_text(page(cfg, clips, rejected, sets, contact_sheets), encoding="utf-8")
    overview = clips_contact_sheet(clips)
    picture.write_bytes(png(overview))
    ctx.image("data/clips", overview)
    ctx.artifact(html, "data")
    ctx.emit(0, counted(clips, rejected))
    return DataPage(str(ctx.workdir), str(html), str(picture))


def counted(clips: Sequence[Clip], rejected: Sequence[Rejected]) -> dict[str, float]:
    """Returns metrics for MLflow: clips by kind, rejected, dropped by each gate, and the median of each figure."""
    out = {f"data/{kind}": float(sum(c.kind == kind for c in clips)) for kind in kinds_of(clips)}
    out["data/rejected"] = float(len(rejected))
    out |= {f"data/dropped/{name}": float(n) for name, n in dropped_by(rejected).items()}
    for name in FIGURES:
        if some := [v for values in figures(clips, name).values() for v in values]:
            out[f"data/median/{name}"] = float(np.median(some))
    return out


def figures(clips: Collection[Clip], name: str) -> dict[str, list[float]]:
    """Returns kind -> the figure `name` of every clip that has it."""
    out: dict[str, list[float]] = {kind: [] for kind in kinds_of(clips)}
    for clip in clips:
        value = clip.quality.get(name, math.nan)
        if math.isfinite(value):
            out[clip.kind].append(value)
    return out


def page(
    cfg: DataPageRun,
    clips: Sequence[Clip],
    rejected: Sequence[Rejected],
    sets: Sequence[ShardSet],
    contact_sheets: Mapping[str, bytes],
) -> str:
    """Returns the HTML page, which loads nothing from elsewhere. contact_sheets: kind -> JPEG."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        clip=cfg.clip,
        sets=sets,
        shards=sum(len(s.shards) for s in sets),
        clips=len(clips),
        kinds=kinds_of(clips),
        split_kind=Counter((c.split, c.kind) for c in clips),
        rejected=in_order(rejected)[:MOST_REJECTED],
        rejected_count=len(rejected),
        rejected_by=Counter(r.stage for r in rejected).most_common(),
        counts={
            "Licences": _counts(clips, lambda c: c.licence),
            "Point trackers": _counts(clips, lambda c: c.tracker),
            "Recipes": _counts(clips, lambda c: f"{c.kind}: {c.recipe or 'plain'}"),
            "Notes": _counts(clips, lambda c: "; ".join(c.notes)),
            "Sources": _counts((c for c in clips if c.kind != "rendered"), lambda c: c.source),
        },
        gates=_gates(cfg.gates, clips, rejected),
        plots=[(name, data_uri(content, "image/png")) for name, content in _plots(cfg.gates, clips)],
        contact_sheets={kind: data_uri(content, "image/jpeg") for kind, content in contact_sheets.items()},
        sheet_rows=SHEET_ROWS,
        columns={name: meaning for name, (_, meaning) in COLUMNS.items()},
    )


def _counts(clips: Iterable[Clip], of: Callable[[Clip], str]) -> list[tuple[str, int]]:
    """Returns the most frequent values with their counts, and the rest as one row. Empty values are not counted."""
    found = Counter(value for c in clips if (value := of(c)))
    rows = sorted(found.items(), key=lambda row: (-row[1], row[0]))
    rest = sum(n for _, n in rows[MOST_ROWS:])
    return rows[:MOST_ROWS] + ([(f"{len(rows) - MOST_ROWS} others", rest)] if rest else [])


def _gates(cfg: GateConfig, clips: Sequence[Clip], rejected: Sequence[Rejected]) -> list[dict[str, Any]]:
    """Returns a row a gate: setting, threshold, clips dropped, and percentiles (5, 50, 95) of its figure in real clips kept."""
    dropped, figure_of = dropped_by(rejected), {g.setting: g.figure for g in GATES}
    rows = []
    for setting, limit in thresholds(cfg).items():
        values = figures(clips, figure_of[setting])["real"] if setting in figure_of else []
        spread = [f"{v:.4g}" for v in np.percentile(values, (5, 50, 95))] if values else ["–"] * 3
        rows.append({"setting": setting, "limit": limit, "dropped": dropped[setting], "spread": spread})
    return rows


def _plots(cfg: GateConfig, clips: Sequence[Clip]) -> list[tuple[str, bytes]]:
    """Returns (figure, PNG) of every figure that some clip has, with its thresholds."""
    out = []
    for name in FIGURES:
        values = figures(clips, name)
        if any(values.values()):
            limits = {g.setting: vars(cfg)[g.setting] for g in GATES if g.figure == name and not g.off(cfg)}
            out.append((name, histogram(name.replace("_", " "), values, limits)))
    return out


DATA_PAGE = Stage("data_page", 1, "once", run)
