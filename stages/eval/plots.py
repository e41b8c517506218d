"""Plots of the report pages: transparent PNGs that are readable on a light and on a dark background."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.eval.counterfactual import KINDS

GREY = "#8a8f98"
COLOURS = {"teacher": "#3b82c4", "student": "#e07b39", "real": "#3fa66b"}
SETTING_COLOURS = ("#e07b39", "#8b62c9", "#3b82c4", "#c44e7a")


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for a in axes:
        a.set_facecolor("none")
        a.tick_params(colors=GREY, labelsize=8)
        a.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        a.set_axisbelow(True)
        for side, spine in a.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GREY)
        for label in (a.xaxis.label, a.yaxis.label, a.title):
            label.set_color(GREY)
            label.set_fontsize(9)
    return figure, axes


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=144, transparent=True)
    return out.getvalue()


def _legend(axis: Any) -> None:
    axis.legend(fontsize=8, frameon=False, labelcolor=GREY)


def epe_bars(report: Mapping[str, Any], kinds: Sequence[str]) -> bytes:
    """Returns a plot of EPE by variant for teacher and student, one panel per kind.

    Dashed: the noise floor, which is the EPE of the re-tracked real clips.
    """
    figure, axes = _figure(len(kinds), 10.5, 3.0)
    names = ("own tracks", "no tracks", *(k.replace("_", " ") for k in KINDS))
    for axis, kind in zip(axes, kinds, strict=True):
        for i, model in enumerate(("teacher", "student")):
            m = report[kind][model]
            values = [m["epe"], m["epe_no_tracks"], *(m["epe_counterfactual"][k] for k in KINDS)]
            at = np.arange(len(names)) + (i - 0.5) * 0.38
            heights = [np.nan if v is None else v for v in values]
            axis.bar(at, heights, 0.36, color=COLOURS[model], label=model)
        frozen = [_frozen(report[kind], k) for k in ("tracks", "no_tracks", *KINDS)]
        axis.plot(range(len(names)), frozen, "_", color=GREY, markersize=26, mew=1.6, label="frozen first frame")
        floor = report[kind]["noise_floor"]["epe_retracked"]
        if floor is not None:
            axis.axhline(floor, color=COLOURS["real"], linestyle="--", linewidth=1.2, label="re-tracked real clip")
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_title(kind)
        axis.set_ylabel("EPE, px of the raster")
    _legend(axes[0])
    return _png(figure)


def _frozen(kind: Mapping[str, Any], variant: str) -> float:
    """Returns the EPE of a video that stays at its first frame, NaN if the variant was not measured."""
    for model in ("teacher", "student"):
        error = kind[model]["details"]["epe"].get(variant)
        if error is not None and error["frozen"] is not None:
            return error["frozen"]
    return np.nan


def latency_plot(seconds: Sequence[float], alongside: Sequence[float], slope_pct: float, ci: Sequence[float]) -> bytes:
    """Returns a plot of each chunk's latency over that of the young stream's paired chunk, with the fitted line."""
    figure, (axis,) = _figure(1, 10.5, 2.6)
    ratio = np.asarray(seconds) / np.asarray(alongside)
    at = np.arange(len(ratio))
    axis.plot(at, ratio, ".", markersize=2.5, color=COLOURS["student"], alpha=0.55, label="chunk")
    fit = np.median(ratio) * (1 + slope_pct / 100 * (at - at.mean()) / 100)
    label = f"slope {slope_pct:+.2f}% per 100 chunks, 95% interval {ci[0]:+.2f} to {ci[1]:+.2f}"
    axis.plot(at, fit, color=COLOURS["teacher"], linewidth=1.4, label=label)
    axis.set_ylim(0, float(np.percentile(ratio, 99.5)) * 1.25)
    axis.set_xlabel("chunk")
    axis.set_ylabel("latency / young stream's")
    _legend(axis)
    return _png(figure)


def drift_plot(long_run: Mapping[str, Any]) -> bytes:
    """Returns a plot with one panel per figure and one line per setting, over the windows.

    Dashed: the real clip played back and forth.
    """
    titles = {
        "epe": "EPE, px of the raster",
        "perceptual": "perceptual distance",
        "lab_shift": "Lab colour shift",
        "saturation": "saturation",
        "sharpness": "Laplacian variance",
    }
    figure, axes = _figure(len(titles), 13.0, 2.6)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for i, (setting, drift) in enumerate(long_run["drift"].items()):
            values = _numbers(drift[name]["values"])
            axis.plot(
                range(1, len(values) + 1),
                values,
                "o-",
                markersize=3,
                linewidth=1.4,
                color=SETTING_COLOURS[i % 4],
                label=setting,
            )
        if name in long_run.get("reference", {}):
            reference = _numbers(long_run["reference"][name]["values"])
            axis.plot(range(1, len(reference) + 1), reference, "--", color=COLOURS["real"], linewidth=1.1, label="real")
        axis.set_title(title)
        axis.set_xlabel("horizon")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(bottom=0)
    _legend(axes[0])
    return _png(figure)


def sweep_plot(report: Mapping[str, Any]) -> bytes:
    """Returns bars of EPE, perceptual distance and latency by student's setting, and of the teacher's EPE by guidance."""
    figure, axes = _figure(4, 14.0, 3.4)
    students, guidance = report["students"], report["guidance"]
    titles = {
        "epe": "EPE, px of the raster",
        "perceptual": "perceptual distance",
        "latency_ms": "latency of a chunk, ms",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=False):
        errors = [s["latency_std_ms"] for s in students.values()] if name == "latency_ms" else None
        axis.bar(
            range(len(students)),
            _numbers([s[name] for s in students.values()]),
            0.7,
            yerr=errors,
            ecolor=GREY,
            color=COLOURS["student"],
        )
        axis.set_xticks(range(len(students)), list(students), rotation=60, ha="right")
        axis.set_title(title)
    for i, kind in enumerate(("rendered", "real")):
        at = np.arange(len(guidance)) + (i - 0.5) * 0.38
        values = _numbers([g[f"{kind}_epe"] for g in guidance.values()])
        axes[3].bar(at, values, 0.36, color=SETTING_COLOURS[1 + i], label=kind)
    axes[3].set_xticks(range(len(guidance)), list(guidance), rotation=60, ha="right")
    axes[3].set_title("teacher: EPE by text / track weights")
    _legend(axes[3])
    return _png(figure)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [np.nan if v is None else v for v in values]
