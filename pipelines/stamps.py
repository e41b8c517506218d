"""Identifies weights from outside the run by text that changes with them, for use in a step's key."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from msmodel.io.packages import sha256

EMBEDDED = "embedded:"


def weights_stamp(source: str, part: str) -> str:
    """Returns text that identifies the weights of a source.

    For embedded:NAME it holds the SHA-256 digests of the files in msmodel/assets/NAME/<part>, for a file or folder the
    names, sizes and modification times, and for a hub id the id itself. It is "" where embedded weights are missing:
    the stage that reads them raises the error.
    """
    if source.startswith(EMBEDDED):
        folder = Path(str(resources.files("msmodel"))) / "assets" / source.removeprefix(EMBEDDED) / part
        return " ".join(f"{p.name}:{sha256(str(p))}" for p in _files(folder))
    place = Path(source).expanduser()
    if not place.exists():
        return source
    files = [place] if place.is_file() else _files(place)
    return " ".join(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files)


def _files(folder: Path) -> list[Path]:
    """Returns the files of weights and configs in a folder and its subfolders (diffusers uses vae/,
    text_encoder/...)."""
    return sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json"))
