"""make export: writes trained models in the formats of other projects.

Each model is written to RUNS/PRESET/export/<name>: a diffusers folder, one file under Wan's original parameter names,
both with averaged and with raw weights, and a model card.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.settings import Config
from infra.files import read_json
from msmodel.dit import WanDiT
from msmodel.io.backbones import HEAD
from msmodel.io.export import write_diffusers, write_original
from msmodel.io.weights import fit_state, load_teacher, read_config
from pipelines.commands.model_card import Facts, card
from pipelines.commands.options import OK, add_settings, configured
from pipelines.results import Trained, checkpoint_in, students, teachers
from stages.records import Checkpoint
from stages.train.raw import raw_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="FOLDER",
        help="a folder with weights (default: the newest teacher and student)",
    )
    add_settings(parser)


def execute(options: argparse.Namespace) -> int:
    export(configured(options), options.checkpoint)
    return OK


def export(cfg: Config, folder: str) -> list[Path]:
    """Exports the checkpoint in `folder`, or for "" the run's newest teacher and student. Returns the folders written.

    Raises ValueError where there is nothing to export, or where the folder holds no transformer of this project.
    """
    teaching, streaming = teachers(cfg.root), students(cfg.root)
    made = [*teaching, *streaming]
    newest = [*teaching[-1:], *streaming[-1:]]
    chosen = [checkpoint_in(Path(folder).expanduser(), made)] if folder else newest
    if not chosen:
        raise ValueError(f"no trained teacher or student in {cfg.root}: `make teacher` and `make distill` make them")
    out = []
    for trained in chosen:
        final = cfg.root / "export" / trained.record.name
        with written_aside(final) as aside:
            _write(trained, made, cfg, aside)
        print(f"{trained.record.name}, step {trained.record.step}: {final}")
        out.append(final)
    return out


@contextmanager
def written_aside(final: Path) -> Iterator[Path]:
    """Yields a temporary folder, which replaces `final` when the block ends without an error."""
    aside, old = (final.with_name(f".{final.name}.{os.getpid()}.{what}") for what in ("writing", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if final.exists():
            final.rename(old)
        aside.rename(final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write(trained: Trained, made: list[Trained], cfg: Config, folder: Path) -> None:
    checkpoint = trained.record
    source, name = Path(checkpoint.folder), checkpoint.name
    config = read_config(source)
    model, meta = load_teacher(source), config["meta"]
    write_diffusers(model, folder, cfg.export.shard_gb, config["class"])
    write_original(model, folder / "wan" / f"{name}.safetensors")
    raw = _write_raw(checkpoint, model, cfg, folder / "raw")
    tracker = cfg.data.tracker
    facts = Facts(
        name=name,
        preset=cfg.preset,
        model=model.cfg,
        digest=checkpoint.digest,
        meta=meta,
        licence=cfg.export.licence,
        raw=raw,
        tracker=f"{tracker.name} ({tracker.licence})",
        head=any(name.startswith(HEAD) for name in model.state_dict()),
        run=trained.manifest,
        start=_start(checkpoint, meta, made),
        figures=_figures(checkpoint, cfg.root / "report" / "report.json"),
    )
    (folder / "README.md").write_text(card(facts), encoding="utf-8")


def _write_raw(checkpoint: Checkpoint, model: WanDiT, cfg: Config, folder: Path) -> str:
    """Writes the weights before averaging, if the training's saves still hold them. Returns text on them for the
    card."""
    try:
        step, state = raw_weights(Path(checkpoint.folder).parent)
        model.to(next(iter(state.values())).dtype)
        fit_state(model, state, "the training's newest save")
    except ValueError as reason:
        return f"not there: {reason}"
    write_diffusers(model, folder, cfg.export.shard_gb, read_config(checkpoint.folder)["class"])
    write_original(model, folder / "wan" / f"{checkpoint.name}.safetensors")
    return f"the same three of the weights before averaging, as saved after step {step}"


def _start(checkpoint: Checkpoint, meta: dict[str, Any], made: list[Trained]) -> dict[str, Any]:
    """Returns the report on the weights that the training started from: the model's own, else that of its parent, else
    {}."""
    if "start" in meta:
        return meta["start"]
    parents = (t.record for t in made if t.record.digest in checkpoint.parents)
    found = (read_config(parent.folder)["meta"].get("start") for parent in parents)
    return next((start for start in found if start), {})


def _figures(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Returns the figures of report.json for this checkpoint, {} where the report is on weights with another digest."""
    report = read_json(path)
    judged = report["provenance"]["checkpoints"].get(checkpoint.name, {}) if report else {}
    if judged.get("digest") != checkpoint.digest:
        return {}
    return {kind: report[kind].get(checkpoint.name) or {} for kind in ("real", "rendered")}
