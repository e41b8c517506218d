"""Implements the commands that run stages (data, teacher, distill, eval and others), alone or in order as one MLflow
run."""

from __future__ import annotations

import argparse
import difflib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.commands.options import FAILED, INTERRUPTED, OK, UsageError, configured

MAIN = ("data", "teacher", "distill", "eval")
TARGETS = (*MAIN, "sweep", "nano-base", "bench", "bench-data", "bench-trackers")
WITHOUT_GPUS = ("bench", "bench-data")  # they set the number of processes themselves
EPILOG = """\
A target makes its missing inputs first; what is finished is not made again.
Targets that are named together run in order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="TARGET | KEY=VALUE",
        help=f"more targets ({', '.join(TARGETS)}), and settings, as in teacher.lr=1e-5",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="try items again that failed without being rejected"
    )


def execute(options: argparse.Namespace) -> int:
    first = [] if options.command == "run" else [options.command]
    names, options.settings = split([*first, *options.words])
    if not names:
        raise UsageError(f"run: no target was named; there are {', '.join(TARGETS)}")
    if vars(options).get("gpus") and set(names) <= set(WITHOUT_GPUS):
        raise UsageError(f"--gpus (GPUS= of make) has no effect on {', '.join(names)}: leave it out")
    cfg = configured(options)
    from pipelines.commands.plan.refusal import refusal

    if problem := refusal(cfg, names):
        raise UsageError(problem)
    return run_targets(cfg, names, options.retry_failed)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (targets, settings) of a command's words. Raises UsageError for a word that is neither."""
    names = [w for w in words if "=" not in w and not w.startswith(("+", "~"))]
    for name in names:
        if name not in TARGETS:
            near = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TARGETS)}; settings read key=value"
            raise UsageError(f"unknown target {name}: {hint}")
    return names, [w for w in words if w not in names]


def run_targets(cfg: Any, names: Sequence[str], retry_failed: bool) -> int:
    """Makes the targets in order as one run, prints the summary, and returns the exit status."""
    from infra.distributed import StageFailed
    from pipelines.run import open_run
    from pipelines.summary import summarise

    table = functions()
    run = open_run(cfg, names, retry_failed=retry_failed)
    started, status = time.monotonic(), "FAILED"
    try:
        for name in names:
            table[name][0](run)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        print("\ninterrupted: run the same command again; it resumes", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, StageFailed) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(
            f"\nstopped: {error}. Fix that (is the disk full?) and run the same command again; it resumes",
            file=sys.stderr,
        )
        return FAILED
    finally:
        summarise(run, time.monotonic() - started, status)
        run.finish(status)
    return OK


def functions() -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """Returns {target: (its function of a Run, its stages in order)}."""
    from pipelines import data, distill, evaluate, nano_base, sweep, teacher
    from pipelines.commands import bench, bench_data, bench_trackers

    return {
        "data": (data.data_or_report, data.STAGES),
        "teacher": (teacher.teacher, teacher.STAGES),
        "distill": (distill.distill, distill.STAGES),
        "eval": (evaluate.evaluate_or_replay, evaluate.STAGES),
        "bench": (bench.bench, bench.STAGES),
        "bench-trackers": (bench_trackers.bench_trackers, bench_trackers.STAGES),
        "bench-data": (bench_data.bench_data, bench_data.STAGES),
        "sweep": (sweep.sweep, sweep.STAGES),
        "nano-base": (nano_base.nano_base, nano_base.STAGES),
    }
