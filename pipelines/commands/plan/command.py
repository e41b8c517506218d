"""motionstream plan: prints the steps that would run, the cached ones, all mistakes in the settings, and the estimated
cost.

It starts nothing.
"""

from __future__ import annotations

import argparse

from pipelines.commands.options import OK, configured
from pipelines.commands.targets import MAIN, TARGETS, functions, split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="TARGET | KEY=VALUE",
        help=f"targets to plan for ({', '.join(TARGETS)}; default: {', '.join(MAIN)}), and settings",
    )


def execute(options: argparse.Namespace) -> int:
    named, options.settings = split(options.words)
    cfg = configured(options)

    from pipelines.commands.plan import dry_run
    from pipelines.run import open_run
    from pipelines.summary import table

    names, known = named or list(MAIN), functions()
    last = max((MAIN.index(n) for n in names if n in MAIN), default=-1)
    order = [*MAIN[: last + 1], *(n for n in names if n not in MAIN)]
    run = open_run(cfg, names, dry=True)
    table(dry_run.dry_run(run, {n: known[n][0] for n in order}, {n: known[n][1] for n in order}))
    for line in ["", *dry_run.describe(cfg, bool(options.gpus)), *dry_run.hints(cfg)]:
        print(line)
    return OK
