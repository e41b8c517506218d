"""motionstream ship: copies the newest student of RUNS/nano, and first frames of its held-out clips, to
msmodel/assets/nano.

With these files the demo plays without any training after a clone. Clips of unknown licence give no picture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from configs.settings import Config, load
from demo.playing import pictures
from msmodel.io.weights import read_config
from msmodel.pretrained import SHIPPED_FOLDER
from pipelines.commands.options import OK
from pipelines.nano_base import ASSETS, ship
from pipelines.results import newest_data, students

MOST_BYTES = 25_000_000  # of msmodel/assets together


def ship_student(cfg: Config, folder: Path = SHIPPED_FOLDER) -> None:
    """Copies the newest student to `folder` and writes provenance.json there. Raises ValueError where no student is
    trained."""
    made = students(cfg.root)
    if not made:
        raise ValueError(f"no trained student in {cfg.root}: `make distill` makes one")
    checkpoint, manifest = made[-1].record, made[-1].manifest
    ship(checkpoint, folder)
    provenance = {
        "preset": cfg.preset,
        "digest": checkpoint.digest,
        "step": checkpoint.step,
        "parents": list(checkpoint.parents),
        "seed": manifest["provenance"].get("seed", read_config(checkpoint.folder)["meta"].get("seed")),
        "key": manifest["key"],
        "git_sha": manifest["provenance"]["git_sha"],
        "finished": manifest["provenance"]["finished"],
        "data": {s.split: {"digest": s.digest, "clips": s.clips} for s in newest_data(cfg.root)},
        "config": manifest["config"],
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the preset is always nano, and --runs is a common option."""


def execute(options: argparse.Namespace) -> int:
    cfg = load("nano", runs=options.runs)
    ship_student(cfg)
    pictures.write(pictures.of_run(cfg.root, shippable=True), pictures.SHIPPED)
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    print(f"shipped to {ASSETS / 'nano'}; the assets are {size / 1e6:.1f} MB together")
    if size > MOST_BYTES:
        raise ValueError(f"that is more than {MOST_BYTES / 1e6:g} MB")
    return OK
