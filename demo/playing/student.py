"""Which weights are played: those named, the run's newest student, or at nano the one that ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs.settings import Config
from infra.files import CHECKOUT
from infra.results import published
from msmodel.io.weights import read_config
from pipelines.results import students
from stages.records import Checkpoint
from stages.train.publish import weights_digest

SHIPPED = "embedded:nano-student"
SHIPPED_FOLDER = CHECKOUT / "msmodel" / "assets" / "nano" / "student"


@dataclass(frozen=True)
class Chosen:
    """name: where the student is from, for people. tiny_vae: the run's newest, if any."""

    student: Checkpoint
    name: str
    tiny_vae: Checkpoint | None


def choose(cfg: Config, log: Callable[[str], None]) -> Chosen:
    """By `demo.student`, else the run's newest, else the shipped one. ValueError where there is none, or no student in
    a folder."""
    if cfg.demo.student == SHIPPED:
        return shipped()
    if cfg.demo.student:
        return from_folder(Path(cfg.demo.student).expanduser().resolve(), cfg)
    made = students(cfg.root)
    if made:
        return from_folder(Path(made[-1].record.folder), cfg)
    if cfg.preset != "nano":
        raise ValueError(
            f"no student in {cfg.root}: `make distill PRESET={cfg.preset}` makes one, or name a folder: demo.student=FOLDER"
        )
    log(f"no student in {cfg.root} yet: playing the one that ships ({SHIPPED})")
    return shipped()


def by_digest(cfg: Config, digest: str, recorded: str) -> Chosen:
    """The student with these weights: of the run, the shipped one, or in the folder that a recording names. ValueError
    names both what was asked for and what there is."""
    trained = [t.record for t in students(cfg.root)]
    folders = [Path(c.folder) for c in trained] + [SHIPPED_FOLDER]
    if recorded != SHIPPED:
        folders.append(Path(recorded))
    there = {folder: weights_digest(folder) for folder in folders if folder.is_dir()}
    for folder, found in there.items():
        if found == digest:
            return shipped() if folder == SHIPPED_FOLDER else from_folder(folder, cfg)
    names = ", ".join(f"{folder} ({found[:12]})" for folder, found in there.items()) or "none"
    raise ValueError(
        f"it was recorded with the student {recorded} ({digest[:12]}), which is not here; there is: {names}"
    )


def from_folder(folder: Path, cfg: Config) -> Chosen:
    if read_config(folder).get("class") != "CausalDiT":
        raise ValueError(f"demo.student: {folder} holds no student (its config.json names another class)")
    tiny = [p.record for p in published(cfg.root, Checkpoint) if p.record.name == "tiny_vae"]
    student = Checkpoint("student", str(folder), 0, weights_digest(folder))
    return Chosen(student, str(folder), tiny[-1] if tiny else None)


def shipped() -> Chosen:
    """The student in msmodel/assets/nano/student."""
    return Chosen(Checkpoint("student", str(SHIPPED_FOLDER), 0, weights_digest(SHIPPED_FOLDER)), SHIPPED, None)
