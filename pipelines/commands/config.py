"""motionstream config: prints the resolved configuration as YAML."""

from __future__ import annotations

import argparse

from pipelines.commands.options import OK, add_settings, configured

add_arguments = add_settings


def execute(options: argparse.Namespace) -> int:
    from configs.settings import as_yaml

    print(as_yaml(configured(options)))
    return OK
