"""Histograms of the data page: transparent PNGs whose lines and words are readable on a light and on a dark ground."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

GREY = "#8a8f98"
COLOURS = {"real": "#3b82c4", "rendered": "#e07b39", "generated": "#5a9e4b"}
LIMIT_COLOUR = "#c44e7a"
BINS = 30


def histogram(title: str, values: Mapping[str, Sequence[float]], limits: Mapping[str, float]) -> bytes:
    """Shares of clips by value, one outline a kind. values: kind -> finite figures; limits: setting -> threshold, dashed."""
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
