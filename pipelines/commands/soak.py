"""motionstream soak: passes its arguments to demo/soak.py."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs the soak test of the demo and returns the exit status."""
    from demo import soak

    return soak.main(arguments)
