"""Copies saved training states to storage behind an address (s3://, gs://, file://...), and restores them on a new
machine.

A copied save consists of its files below ADDRESS/<name>/ and of the marker ADDRESS/<name>.json. The marker lists the
files with their sizes and is written last: without it the save does not count. The last two saves are kept, as in the
step's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.remote import open_address, translated

KEEP = 2


def keep(folder: Path, address: str) -> None:
    """Copies a complete save to `address` and deletes all but the last KEEP there. Raises OSError where the storage
    cannot be written."""
    fs, root = open_address(address, "compute.checkpoints")
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
    translated(fs.makedirs, f"{root}/{folder.name}", exist_ok=True)
    for name in files:
        translated(fs.put_file, str(folder / name), f"{root}/{folder.name}/{name}")
    translated(fs.pipe_file, f"{root}/{folder.name}.json", json.dumps(files).encode())
    for old in _kept(fs, root)[:-KEEP]:
        translated(fs.rm_file, f"{root}/{old}.json")
        translated(fs.rm, f"{root}/{old}", recursive=True)


def recall(address: str, folder: Path, log: Callable[[str], None]) -> None:
    """Copies the newest save into `folder`, unless the folder already holds one. Raises OSError where the storage
    cannot be read or a file of the save is incomplete."""
    if any(p.is_dir() for p in folder.glob("step-*")):
        return
    fs, root = open_address(address, "compute.checkpoints")
    kept = _kept(fs, root)
    if not kept:
        return
    name = kept[-1]
    aside = folder / f".fetching-{name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for file, size in json.loads(translated(fs.cat_file, f"{root}/{name}.json")).items():
        translated(fs.get_file, f"{root}/{name}/{file}", str(aside / file))
        if (aside / file).stat().st_size != size:
            raise OSError(f"{address}/{name}/{file} has not the {size} bytes that were written")
    aside.rename(folder / name)
    log(f"took the save {name} from {address}")


def _kept(fs: Any, root: str) -> list[str]:
    """Returns the names of the complete saves, oldest first."""
    fs.invalidate_cache()
    if not translated(fs.exists, root):
        return []
    names = (str(path).rpartition("/")[2] for path in translated(fs.ls, root, detail=False))
    return sorted(n.removesuffix(".json") for n in names if n.startswith("step-") and n.endswith(".json"))
