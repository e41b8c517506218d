"""motionstream client: the command line of demo/client.py."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    from demo import client

    return client.main(arguments)
