"""motionstream soak: the command line of demo/soak.py."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    from demo import soak

    return soak.main(arguments)
