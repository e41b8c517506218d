"""Weights that come from outside the run, as text that changes when they do, so that they count in a step's key."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from msmodel.io.packages import sha256

EMBEDDED = "embedded:"


def weights_stamp(source: str, part: str) -> str:
    """embedded:NAME: digest of msmodel/assets/NAME/<part>; a folder or file: names, sizes and times; a hub id: itself.

    "" where embedded weights are not there: the stage that reads them says so.
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
    """Weights and their configs, also in subfolders (diffusers keeps vae/, text_encoder/...)."""
    return sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json"))
