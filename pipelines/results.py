"""Finds the models and data sets of a run for the commands that work on finished results."""

from __future__ import annotations

from pathlib import Path

from infra.results import Published, published, published_models
from msmodel.causal import CausalDiT
from msmodel.dit import WanDiT
from msmodel.io.weights import read_config
from stages.records import Checkpoint, ShardSet
from stages.train.publish import weights_digest

Trained = Published[Checkpoint]


def teachers(root: Path) -> list[Trained]:
    """Returns the teachers of a run's folder, oldest first."""
    return published_models(root, Checkpoint, "teacher", WanDiT)


def students(root: Path) -> list[Trained]:
    """Returns the causal students of a run's folder, oldest first, whichever training made them."""
    return published_models(root, Checkpoint, "student", CausalDiT)


def checkpoint_in(folder: Path, known: list[Trained]) -> Trained:
    """Returns the checkpoint in a folder: the run's own record of it if `known` has one, else one made from its
    config.json.

    Raises ValueError where config.json holds no model sizes.
    """
    for trained in known:
        if Path(trained.record.folder).resolve() == folder.resolve():
            return trained
    config = read_config(folder)
    if "model" not in config:
        raise ValueError(
            f"{folder}: config.json holds no model sizes, so this is no checkpoint of a transformer of this project"
        )
    meta = config.get("meta", {})
    name, step = meta.get("name", folder.name), meta.get("step", 0)
    return Trained(Checkpoint(name, str(folder), step, weights_digest(folder)), {})


def newest_data(root: Path) -> list[ShardSet]:
    """Returns the shard sets (train and heldout) of the data set that was finished last in a run's folder.

    Raises ValueError where no data set is finished.
    """
    found = published(root, ShardSet)
    for last in reversed(found):
        if last.record.split == "heldout":
            return [other.record for other in found if other.manifest["key"] == last.manifest["key"]]
    raise ValueError(f"no finished data in {root}: `make data` makes them")
