"""motionstream demo: serves the demo's page. Its settings are those of the group `demo`."""

from __future__ import annotations

import argparse

from pipelines.commands.options import add_settings, configured

add_arguments = add_settings


def execute(options: argparse.Namespace) -> int:
    from demo.server.serve import serve

    return serve(configured(options))
