"""Prints the summary at the end of a command: the steps with their times and folders, and the rejected inputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from infra.progress import duration
from pipelines.run import Line, Run

REASONS_SHOWN = 12


def summarise(run: Run, seconds: float, status: str) -> None:
    """Prints the table of steps, the rejected inputs, the times, the reports, and whether there was nothing to do."""
    if not run.lines:
        return
    table(run.lines)
    rejected(run)
    by_target = ", ".join(f"{target} {duration(s)}" for target, s in run.seconds().items())
    print(f"seconds of work: {by_target} | this command: {duration(seconds)}")
    for line in run.lines:
        if line.stage == "eval_report":
            reports(run.store.root, line.folder)
    ran = [line for line in run.lines if line.state == "ran"]
    if ran:
        print(f"MLflow: make ui (or MLFLOW_TRACKING_URI={run.tracking.uri})")
    elif status == "FINISHED":
        print(f"nothing to do: all {len(run.lines)} steps are up to date")


def reports(root: Path, kept: Path) -> None:
    """Prints the path of the report, the folder that keeps it when later settings replace the copy, and the number of
    reports of other settings."""
    copy = root / "report" / "report.html"
    if not copy.is_file():
        return
    print(f"report: {_short(copy)} and report.json next to it, copies of the one kept in {_short(kept)}")
    others = [page for page in kept.parent.glob("*/report.html") if page.parent != kept]
    if others:
        print(f"reports of other settings: {len(others)}, in {_short(kept.parent)}/*/report.html")


def rejected(run: Run) -> None:
    """Prints the rejected inputs with their reasons, at most REASONS_SHOWN."""
    if not run.rejected:
        return
    counts = Counter((r.name, r.stage, r.reason) for r in run.rejected)
    print(f"rejected: {len(counts)} (all of them are in the catalogue)")
    for name, stage, reason in list(counts)[:REASONS_SHOWN]:
        print(f"  {name} [{stage}]: {reason.splitlines()[0] if reason else ''}")
    if len(counts) > REASONS_SHOWN:
        print(f"  and {len(counts) - REASONS_SHOWN} more")


def table(lines: Sequence[Line]) -> None:
    """Prints one line per step: target, step, state, time, folder and note."""
    rows = [("target", "step", "state", "time", "where", "note")]
    for line in lines:
        time = duration(line.seconds) if line.seconds else ""
        rows.append((line.target, line.stage, line.state, time, _short(line.folder), line.note))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
