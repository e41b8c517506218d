"""Chooses the weights that the demo plays: those named, the run's newest student, or at nano the shipped one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs.settings import Config
from infra.results import published, published_models
from msmodel.causal import CausalDiT
from msmodel.io.weights import read_config
from msmodel.pretrained import SHIPPED, SHIPPED_FOLDER
from stages.records import Checkpoint
from stages.train.publish import weights_digest


@dataclass(frozen=True)
class ChosenStudent:
    """The student to play. name: where it is from, for people. tiny_vae: the run's newest, if any."""

    student: Checkpoint
    name: str
    tiny_vae: Checkpoint | None


def choose(cfg: Config, log: Callable[[str], None]) -> ChosenStudent:
    """Returns the student that `demo.student` names, else the run's newest, else the shipped one. log: called where the
    shipped one is used. Raises ValueError where there is none, or where the named folder holds no student."""
    if cfg.demo.student == SHIPPED:
        return shipped()
    if cfg.demo.student:
        return from_folder(Path(cfg.demo.student).expanduser().resolve(), cfg)
    made = students(cfg.root)
    if made:
        return from_folder(Path(made[-1].folder), cfg)
    if cfg.preset != "nano":
        raise ValueError(
            f"no student in {cfg.root}: `make distill PRESET={cfg.preset}` makes one, or name a folder: demo.student=FOLDER"
        )
    log(f"no student in {cfg.root} yet: playing the shipped one ({SHIPPED})")
    return shipped()


def by_digest(cfg: Config, digest: str, recorded: str) -> ChosenStudent:
    """Returns the student with these weights: one of the run, the shipped one, or the one in the folder that a recording names.
    Raises ValueError, which names the wanted weights and those found."""
    folders = [Path(c.folder) for c in students(cfg.root)] + [SHIPPED_FOLDER]
    if recorded != SHIPPED:
        folders.append(Path(recorded))
    there = {folder: weights_digest(folder) for folder in folders if folder.is_dir()}
    for folder, found in there.items():
        if found == digest:
            return shipped() if folder == SHIPPED_FOLDER else from_folder(folder, cfg)
    names = ", ".join(f"{folder} ({found[:12]})" for folder, found in there.items()) or "none"
    raise ValueError(
        f"it was recorded with the student {recorded} ({digest[:12]}), which was not found; found: {names}"
    )


def students(root: Path) -> list[Checkpoint]:
    """Returns the students in a run's folder, oldest first, whichever training made them."""
    return [p.record for p in published_models(root, Checkpoint, "student", CausalDiT)]


def from_folder(folder: Path, cfg: Config) -> ChosenStudent:
    """Returns the student in a folder, with the run's newest tiny VAE. Raises ValueError where the folder holds none."""
    if read_config(folder).get("class") != CausalDiT.__name__:
        raise ValueError(f"demo.student: {folder} holds no student: its config.json names another class than CausalDiT")
    tiny = [p.record for p in published(cfg.root, Checkpoint) if p.record.name == "tiny_vae"]
    student = Checkpoint("student", str(folder), 0, weights_digest(folder))
    return ChosenStudent(student, str(folder), tiny[-1] if tiny else None)


def shipped() -> ChosenStudent:
    """Returns the student in msmodel/assets/nano/student."""
    return ChosenStudent(Checkpoint("student", str(SHIPPED_FOLDER), 0, weights_digest(SHIPPED_FOLDER)), SHIPPED, None)
