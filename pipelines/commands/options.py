"""Defines what all commands share: exit statuses, common options, and the configuration that the options describe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.settings import Config

OK, FAILED, BAD_CONFIG, INTERRUPTED = 0, 1, 2, 130
COMMON = {
    "--preset": {"default": "nano", "metavar": "NAME", "help": "a file in configs/preset (default: nano)"},
    "--runs": {"default": "runs", "metavar": "FOLDER", "help": "where results go (default: runs)"},
    "--src": {
        "default": "",
        "metavar": "SOURCE",
        "help": "folder, file, glob, list, table or address of your own videos (default: packaged clips)",
    },
    "--gpus": {
        "default": "",
        "metavar": "N",
        "help": "use at most N GPUs: N processes a training, one GPU each where there are GPUs (default: the preset's)",
    },
}
CONFIGURED = ("--preset", "--runs")


class UsageError(ValueError):
    """A mistake in the command or its settings, found before anything was started. The exit status is 2."""


def common_options(names: Sequence[str]) -> argparse.ArgumentParser:
    """Returns a parent parser with the named common options."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("configuration")
    for name in names:
        group.add_argument(name, **COMMON[name])  # type: ignore[arg-type]
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the positional arguments KEY=VALUE, which `configured` reads."""
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="settings, as in teacher.lr=1e-5 (all: motionstream config)"
    )


def configured(options: argparse.Namespace) -> Config:
    """Returns the configuration that a command's options and settings describe. Raises UsageError with every
    mistake."""
    from configs.settings import ConfigError, load  # imported late, because --help needs no torch

    gpus = vars(options).get("gpus", "")
    try:
        return load(options.preset, options.settings, vars(options).get("src", ""), options.runs, gpus)
    except ConfigError as error:
        raise UsageError(str(error)) from None
