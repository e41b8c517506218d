"""Files inside installed packages (clips, weights). They are found through the packages' metadata, without an import."""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path


@lru_cache(maxsize=64)
def sha256(path: str) -> str:
    """Returns the hex digest of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def packaged_file(package: str, ending: str, digest: str = "") -> Path:
    """Returns the one file of an installed distribution whose path ends in `ending`.

    digest: expected SHA-256 (hex, or a prefix of it). Raises ValueError naming the package and what to do.
    """
    fix = "run `make setup` to install the packaged clips and weights (infra/env/assets.txt)"
    try:
        dist = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise ValueError(f"package {package} is not installed: {fix}") from None
    found = [p for f in dist.files or () if str(f).endswith(ending) and (p := Path(str(dist.locate_file(f)))).is_file()]
    found = found or [p for p in (Path(sys.prefix) / ending,) if p.is_file()]
    if not found:
        raise ValueError(f"package {package} {dist.version} holds no file {ending}: {fix}")
    path = found[0].resolve()
    if digest and not sha256(str(path)).startswith(digest):
        raise ValueError(f"{path} has SHA-256 {sha256(str(path))[:16]}, expected {digest[:16]}: {fix}")
    return path
