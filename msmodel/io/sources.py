"""Sources of pretrained models: a local folder or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def is_folder(source: str, setting: str) -> bool:
    """Returns True for an existing folder, False for a possible hub id (owner/name).

    Raises ValueError naming `setting` where `source` is neither.
    """
    if Path(source).is_dir():
        return True
    if HUB_ID.fullmatch(source) and not source.startswith("."):
        return False
    raise ValueError(f"{setting}: {source!r} is neither an existing folder nor a hub id (owner/name)")


def first_line(error: Exception) -> str:
    """Returns the first line of a library's error, which states what is wrong."""
    return (str(error).splitlines() or [type(error).__name__])[0]
