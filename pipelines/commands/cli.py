"""python -m pipelines TARGET... [--preset nano] [--src FOLDER] [--runs runs] [key=value ...]

Targets run in order in one command, which is one parent run in MLflow. Each makes its missing inputs first.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

OK, FAILED, BAD_CONFIG, INTERRUPTED = 0, 1, 2, 130
TARGETS = ("data", "teacher", "distill", "eval")
OTHERS = (
    "plan",
    "config",
    "inspect",
    "export",
    "demo",
    "generate",
    "sweep",
    "bench",
    "bench-data",
    "bench-trackers",
    "nano-base",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 a mistake in the command or the configuration (nothing was started)."""
    options = _parser().parse_intermixed_args(arguments)
    names = [w for w in options.words if "=" not in w and not w.startswith(("+", "~"))]
    overrides = [w for w in options.words if w not in names]
    unknown = [n for n in names if n not in (*TARGETS, *OTHERS)]
    if unknown or not names:
        what = f"unknown target {', '.join(unknown)}" if unknown else "no target"
        print(f"{what}: there are {', '.join((*TARGETS, *OTHERS))}; settings read key=value", file=sys.stderr)
        return BAD_CONFIG
    warnings.filterwarnings("ignore", category=FutureWarning)
    from configs.settings import (
        ConfigError,
        load,
    )

    try:
        cfg = load(options.preset, overrides, options.src, options.runs, options.gpus)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD_CONFIG
    if "plan" in names:
        return _plan(cfg, names, bool(options.gpus))
    return _dispatch(cfg, names, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m pipelines", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", help=f"targets ({', '.join((*TARGETS, *OTHERS))}) and key=value overrides")
    parser.add_argument("--preset", default="nano", help="a file in configs/preset (default: nano)")
    parser.add_argument(
        "--src", default="", help="folder, glob, list, table or address of your own videos (default: packaged clips)"
    )
    parser.add_argument("--runs", default="runs", help="where results go (default: runs)")
    parser.add_argument("--gpus", default="", help="how many GPUs, in place of compute.workers")
    parser.add_argument("--clip", default="", help="inspect: the clip's id (default: list some)")
    parser.add_argument("--checkpoint", default="", help="export: its folder (default: the newest teacher and student)")
    made = parser.add_argument_group("generate")
    made.add_argument(
        "--image", default="", help="the first frame: PNG, JPEG or WebP, or the id of one of the demo's pictures"
    )
    made.add_argument(
        "--motion", default="", help="pan, zoom, rotate, orbit, drag or still, as in pan:0.1,0 or drag:0.5,0.5,0.8,0.5"
    )
    made.add_argument(
        "--tracks", default="", help="tracks to follow in place of a motion: npz, or Wan-Move's or ATI's files"
    )
    made.add_argument("--prompt", default="", help="text (default: the picture's own, if it has one)")
    made.add_argument("--seconds", type=float, default=10.0, help="length (default: 10)")
    made.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    made.add_argument("--out", default="out.mp4", help="the film (default: out.mp4)")
    parser.add_argument("--retry-failed", action="store_true", help="try items again that failed unexpectedly")
    return parser


def _dispatch(cfg: Any, names: list[str], options: argparse.Namespace) -> int:
    if "config" in names:
        from configs.settings import as_yaml

        print(as_yaml(cfg))
        return OK
    if "inspect" in names:
        from pipelines.commands.inspect_clip import inspect

        return _said(lambda: inspect(cfg, options.clip))
    if "export" in names:
        from pipelines.commands.export import export

        return _said(lambda: export(cfg, options.checkpoint))
    if "generate" in names:
        from pipelines.commands.generate import (
            Job,
            generate,
        )

        return _said(lambda: generate(cfg, Job.of(options)))
    if "demo" in names:
        from demo.server.serve import serve

        return serve(cfg)
    from infra.distributed import StageFailed
    from pipelines.run import open_run

    targets = _targets()
    run = open_run(cfg, names, retry_failed=options.retry_failed)
    started, status = time.monotonic(), "FAILED"
    try:
        for name in names:
            targets[name][0](run)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        print("\ninterrupted: run the same command to go on from here", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, StageFailed) as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(
            f"\nstopped: {error}. Mend that (disk full?) and give the same command again: it goes on", file=sys.stderr
        )
        return FAILED
    finally:
        from pipelines.summary import summarise

        summarise(run, time.monotonic() - started, status)
        run.finish(status)
    return OK


def _said(job: Callable[[], Any]) -> int:
    """Does a job that starts nothing; a mistake is one line."""
    try:
        job()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return FAILED
    return OK


def _targets() -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """Name -> (function of a Run, its stages in order)."""
    from pipelines import (
        data,
        distill,
        evaluate,
        nano_base,
        sweep,
        teacher,
    )
    from pipelines.commands import (
        bench,
        bench_data,
        bench_trackers,
    )

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


def _plan(cfg: Any, words: list[str], gpus: bool) -> int:
    """gpus: whether their number was given."""
    from pipelines.commands.plan import dry_run as plan
    from pipelines.run import open_run
    from pipelines.summary import table

    targets = _targets()
    names = [n for n in words if n in targets] or list(TARGETS)
    run = open_run(cfg, names, dry=True)
    last = max((TARGETS.index(n) for n in names if n in TARGETS), default=-1)
    order = [*TARGETS[: last + 1], *(n for n in names if n not in TARGETS)]
    try:
        lines = plan.dry_run(run, {n: targets[n][0] for n in order}, {n: targets[n][1] for n in order})
    except ValueError as error:
        print(error, file=sys.stderr)
        return FAILED
    table(lines)
    for line in ["", *plan.describe(cfg, gpus), *plan.hints(cfg)]:
        print(line)
    return OK
