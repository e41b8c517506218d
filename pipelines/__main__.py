"""`python -m pipelines` is `motionstream`: see pipelines/commands/cli.py."""

import sys

from pipelines.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
