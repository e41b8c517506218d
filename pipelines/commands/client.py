"""motionstream client: passes its arguments to demo/client.py."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs the demo's client and returns the exit status."""
    from demo import client

    return client.main(arguments)
