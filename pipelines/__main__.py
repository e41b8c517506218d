"""Runs the command line `motionstream` as `python -m pipelines` (pipelines/commands/cli.py)."""

import sys

from pipelines.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
