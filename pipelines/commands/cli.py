"""Implements the command line `motionstream COMMAND ...`, which is the same as `python -m pipelines COMMAND ...`.

Each command is a module with add_arguments(parser) and execute(options), imported only when the command is called. The
exit status is 0 for success, 1 for a failure, 2 for a mistake in the command or its settings (nothing was started), and
130 for an interruption.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from pipelines.commands.options import BAD_CONFIG, CONFIGURED, FAILED, INTERRUPTED, OK, UsageError, common_options

EVERYTHING = (*CONFIGURED, "--src", "--gpus")


@dataclass(frozen=True)
class Command:
    """One command. module: name of its module in pipelines.commands. common: the common options that apply to it."""

    name: str
    group: str
    summary: str
    module: str
    common: tuple[str, ...] = CONFIGURED


PIPELINE, CHECKS, RESULTS, DEMO, BENCHMARKS = (
    "Pipeline (several may be named in one command; each makes its missing inputs first)",
    "Before a run",
    "Results",
    "Demo",
    "Benchmarks and ablations",
)
COMMANDS = (
    Command("data", PIPELINE, "pack videos into shards: clips, tracks, latents", "targets", EVERYTHING),
    Command("teacher", PIPELINE, "train the bidirectional teacher to follow tracks", "targets", EVERYTHING),
    Command("distill", PIPELINE, "distil the teacher into a causal few-step student", "targets", EVERYTHING),
    Command("eval", PIPELINE, "measure both and write report.html", "targets", EVERYTHING),
    Command(
        "run", PIPELINE, "run the targets that follow, as in: run data teacher distill eval", "targets", EVERYTHING
    ),
    Command("nano-base", PIPELINE, "pretrain what the preset nano starts from", "targets", EVERYTHING),
    Command("plan", CHECKS, "say what would run, and its memory, time and disk", "plan.command", EVERYTHING),
    Command("plan-check", CHECKS, "compare the plan's memory with real training steps", "plan.check", ()),
    Command("rehearse", CHECKS, "run a full preset end to end at a small size on this CPU", "rehearse.command"),
    Command("gpu-check", CHECKS, "run on one GPU what is worth knowing, in nine minutes", "gpu_check", ("--runs",)),
    Command("config", CHECKS, "print every setting with its value", "config", EVERYTHING),
    Command("inspect", RESULTS, "draw one clip with its tracks and print its catalogue row", "inspect_clip"),
    Command("export", RESULTS, "write trained models for diffusers, with model cards", "export"),
    Command("ship", RESULTS, "copy the nano run's newest student into the package", "ship", ("--runs",)),
    Command("tracks", RESULTS, "convert tracks between this project's format, ATI's and Wan-Move's", "tracks", ()),
    Command(
        "decode-latents", RESULTS, "decode a published set of latents to videos for data.synthetic", "decode_latents"
    ),
    Command("pictures", RESULTS, "make the README's two moving pictures, from a run and from the demo", "pictures"),
    Command("demo", DEMO, "serve the page on which points are dragged", "demo"),
    Command("generate", DEMO, "make a video from a picture and a motion or tracks, without a page", "generate"),
    Command("client", DEMO, "play a session of a running demo without a browser", "client", ()),
    Command("jitter", DEMO, "measure what input smoothing does to an unsteady drag", "jitter"),
    Command("soak", DEMO, "play many chunks and measure pace and memory", "soak", ()),
    Command("sweep", BENCHMARKS, "ablate one trained student and teacher", "targets", EVERYTHING),
    Command("bench", BENCHMARKS, "time cache, transformer and decoder at the preset's size", "targets"),
    Command("bench-data", BENCHMARKS, "time the data stages with one and two workers", "targets"),
    Command("bench-trackers", BENCHMARKS, "measure every point tracker on rendered scenes", "targets", EVERYTHING),
)
BY_NAME = {command.name: command for command in COMMANDS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status. Raises SystemExit(2) for options that the command does not have."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("-h", "--help"):
        print(help_text())
        return OK
    command = BY_NAME.get(words[0]) if words else None
    if command is None:
        print(unknown(words), file=sys.stderr)
        return BAD_CONFIG
    warnings.filterwarnings("ignore", category=FutureWarning)
    module = import_module(f"pipelines.commands.{command.module}")
    if hasattr(module, "main"):  # the module parses its own options
        return module.main(words[1:])
    options = parse(command, words[1:])
    try:
        return module.execute(options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return BAD_CONFIG
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return FAILED


def parser_of(command: Command) -> argparse.ArgumentParser:
    """Returns the parser of a command, with its own options and the common ones that apply to it."""
    module = import_module(f"pipelines.commands.{command.module}")
    parser = argparse.ArgumentParser(
        f"motionstream {command.name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog=vars(module).get("EPILOG"),
        parents=[common_options(command.common)],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def parse(command: Command, words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed options of a command, with its name as `command`. Raises SystemExit(2) for unknown options."""
    parser = parser_of(command)
    options, rest = parser.parse_known_intermixed_args(words)
    for word in rest:
        name = word.partition("=")[0]
        takes = [c.name for c in COMMANDS if name in c.common]
        if takes:
            parser.error(f"{name} ({name.strip('-').upper()}= of make) has no effect on {command.name}: "
                         f"it belongs to {', '.join(takes)}")  # fmt: skip
        near = difflib.get_close_matches(name, parser._option_string_actions, n=1)
        parser.error(f"unknown argument {word}" + (f": did you mean {near[0]}?" if near else ""))
    options.command = command.name
    return options


def unknown(words: Sequence[str]) -> str:
    """Returns the error message for a first word that is no command, or for none."""
    if not words:
        return f"no command was named\n\n{help_text()}"
    if "=" in words[0] or words[0].startswith("-"):
        return f"no command was named before {words[0]}: write it first, as in `motionstream data {words[0]}`"
    near = difflib.get_close_matches(words[0], BY_NAME, n=1, cutoff=0.5)
    return f"unknown command {words[0]}" + (f"; did you mean {near[0]}?" if near else "; see motionstream --help")


def help_text() -> str:
    """Returns the table of commands, grouped by purpose."""
    lines = ["usage: motionstream COMMAND [options] [KEY=VALUE ...]"]
    for group in dict.fromkeys(command.group for command in COMMANDS):
        lines += ["", f"{group}:"]
        lines += [f"  {c.name:15} {c.summary}" for c in COMMANDS if c.group == group]
    return "\n".join([*lines, "", "motionstream COMMAND --help lists the options of a command."])
