"""python -m tests.unit.demo.serve_fake --port N: the demo with the fake model, for those who build its page."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from configs.demo import DemoConfig
from demo.server.serve import run
from tests.unit.demo.fakes import FakePlayer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one chunk")
    parser.add_argument("--idle", type=float, default=DemoConfig.idle_seconds, help="demo.idle_seconds")
    parser.add_argument("--encoding", default=DemoConfig.encoding)
    options = parser.parse_args()
    cfg = DemoConfig(port=options.port, idle_seconds=options.idle, encoding=options.encoding)
    with tempfile.TemporaryDirectory() as folder:
        return run(lambda: FakePlayer(folder=Path(folder), seconds=options.seconds, settle_seconds=0.03), cfg)


if __name__ == "__main__":
    sys.exit(main())
