"""Connects the stages with infra: a pipeline calls its stages through a Run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from configs.settings import Config, as_yaml, changed
from infra import progress, tracking
from infra.codec import Codec
from infra.executor import Executor, StageTask, item_tasks
from infra.files import git_sha, lock_hash
from infra.items import finished
from infra.remote import RemoteFiles
from infra.store import Failure, Manifest, Step, Store
from stages import records
from stages.contracts import Config as StageConfig
from stages.contracts import Inputs, Output, Stage, StageSpec
from stages.data.cut import Segment
from stages.data.scene import SceneItem, Still
from stages.data.shard import ShardFile, ShardPlan
from stages.data.sources import Candidate, find_candidates, holds, listed
from stages.eval import RECORDS as EVAL_RECORDS
from stages.records import Checkpoint, Rejected, ShardSet
from stages.trackers.bench import TrackerBench, TrackerFigures

RECORDS = (
    *(kind for kind in vars(records).values() if isinstance(kind, type) and is_dataclass(kind)),
    *(Candidate, Segment, Still, SceneItem, ShardPlan, ShardFile, TrackerBench, TrackerFigures),
    *EVAL_RECORDS,
)
PRODUCTS = {"teacher": "motionstream-teacher", "student": "motionstream-student"}
EXPERIMENT = "motionstream"


class NotMade(Exception):
    """Raised in a dry run at a step that has no result yet, because the steps that depend on it cannot be computed."""

    def __init__(self, line: Line) -> None:
        self.line = line


@dataclass(frozen=True)
class Line:
    """One step in the table that a command prints at its end. state: cached, ran, or (in a dry run) would run."""

    target: str
    stage: str
    state: str
    seconds: float
    folder: Path
    note: str = ""


@dataclass
class Run:
    """Runs the steps of one command with one configuration.

    dry: raises NotMade at a step without a result instead of running it. retry_failed: runs steps again in which items
    failed without being rejected. target: the target that is being made. lines: every step that ran or was found
    finished.
    """

    cfg: Config
    store: Store
    executor: Executor
    tracking: tracking.Tracking
    console: progress.Console
    dry: bool = False
    retry_failed: bool = False
    target: str = ""
    lines: list[Line] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    remembered: dict[Any, Any] = field(default_factory=dict)

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Returns the result of `make()`, which is called once per name and command. name: hashable."""
        if name not in self.remembered:
            self.remembered[name] = make()
        return self.remembered[name]

    def step(
        self,
        stage: Stage[StageConfig, Inputs, Output],
        config: StageConfig,
        inputs: Inputs,
        key_inputs: Any = None,
        label: str = "",
    ) -> Output:
        """Returns the stage's records; the stage runs only if the step is not finished.

        key_inputs: replaces `inputs` in the key, where the inputs contain something that must not invalidate a result.
        label: distinguishes steps of one stage in the table and in the tracker.
        """
        return self._manifest(stage, config, inputs, inputs if key_inputs is None else key_inputs, label).records

    def items(
        self, stage: Stage[StageConfig, Any, Any], config: StageConfig, items: Sequence[Any], label: str = ""
    ) -> tuple[tuple[Any, ...], list[Rejected]]:
        """Runs a per-item stage on all items, and returns (records in order, items without a result). label: as in
        `step`."""
        manifest = self._manifest(stage, config, tuple(items), tuple(items), label)
        rejected = [_rejected(stage.name, failure) for failure in manifest.failures]
        self.rejected += rejected
        return manifest.records, rejected

    def chain(
        self, specs: Sequence[StageSpec], given: Sequence[Any], label: str
    ) -> list[tuple[tuple[Any, ...], list[Rejected]]]:
        """Runs a chain of per-item stages, each on the results of the previous one, and returns the result of `items`
        for each. The stages run concurrently: a later stage starts with the items that an earlier one has already
        finished."""
        if not self.dry:
            self._stream(specs, given)
        out: list[tuple[tuple[Any, ...], list[Rejected]]] = []
        for spec in specs:
            given = spec.items_of(out[-1][0]) if out else given
            out.append(self.items(spec.stage, spec.config, given, label))
        return out

    def _stream(self, specs: Sequence[StageSpec], given: Sequence[Any]) -> None:
        """Runs the unfinished items of all specs in one graph, starting at the first unfinished stage."""
        for number, spec in enumerate(specs):
            task = self._task(spec.stage, spec.config, tuple(given), tuple(given))
            found = self._load(task.step)
            if found is None:
                self.log(f"== {' + '.join(other.stage.name for other in specs[number:])}")
                return self.executor.stream(specs[number:], given, self.cfg.seed)
            if number + 1 < len(specs):
                given = specs[number + 1].items_of(found.records)
        return None

    @contextmanager
    def making(self, target: str) -> Iterator[None]:
        """Assigns the steps inside the block to this target. Blocks may be nested: a target that makes its missing
        inputs contains the blocks of other targets."""
        before, self.target = self.target, target
        try:
            yield
        finally:
            self.target = before

    def log(self, line: str) -> None:
        self.console.log(line)

    def candidates(self, src: str | None = None) -> tuple[list[Candidate], list[Rejected]]:
        """Returns (files that SRC names, rejected ones) without fetching any; the packaged clips where SRC is empty.

        src: replaces the configured SRC. Raises ValueError for a SRC that contains RUNS.
        """
        src, runs = self.cfg.src if src is None else src, self.store.root.parent
        if holds(src, runs):
            raise ValueError(f"SRC={src} holds RUNS={runs}: its videos would become sources; move one of them")
        return find_candidates(src, self.cfg.data.videos_root, RemoteFiles())

    def seconds(self) -> dict[str, float]:
        """Returns {target: seconds of work}, including the work of earlier commands on the same steps."""
        out: dict[str, float] = {}
        for line in self.lines:
            out[line.target] = round(out.get(line.target, 0.0) + line.seconds, 1)
        return out

    def finish(self, status: str) -> None:
        """Closes the tracker's run with this status, and stops Ray."""
        self.tracking.finish(status)
        self.executor.stop()

    def _manifest(
        self, stage: Stage[Any, Any, Any], config: Any, inputs: Any, key_inputs: Any, label: str = ""
    ) -> Manifest:
        task = self._task(stage, config, inputs, key_inputs)
        step = task.step
        found = self._load(step)
        if found is None and self.dry:
            raise NotMade(Line(self.target, stage.name, "would run", 0.0, step.folder, self._progress(task)))
        state = "cached"
        if found is None:
            with self.store.lock(step, self.log):
                found = self._load(step)  # another command may have made it while this one waited
                if found is None:
                    found, state = self._execute(task, label), "ran"
        if not any(line.folder == step.folder for line in self.lines):
            note = ", ".join(filter(None, (label, f"{len(found.failures)} rejected" if found.failures else "")))
            self.lines.append(Line(self.target, stage.name, state, found.seconds, step.folder, note))
        return found

    def _task(self, stage: Stage[Any, Any, Any], config: Any, inputs: Any, key_inputs: Any) -> StageTask:
        step = self.store.step(stage.name, stage.version, config, key_inputs, self.cfg.seed)
        return StageTask(stage, config, inputs, step, self.cfg.seed)

    def _load(self, step: Step) -> Manifest | None:
        found = self.store.load(step)
        stale = self.retry_failed and found is not None and any(not f.expected for f in found.failures)
        return None if stale else found

    def _progress(self, task: StageTask) -> str:
        if task.stage.how != "per_item":
            return ""
        tasks = item_tasks(self.store, task)
        return f"{sum(finished(t, self.store.codec) is not None for t in tasks)} of {len(tasks)} items done"

    def _execute(self, task: StageTask, label: str) -> Manifest:
        name = f"{task.stage.name} {label}".strip()
        self.log(f"== {name} ({task.step.name})")
        tags = {"stage": task.stage.name, "step_key": task.step.key, "folder": str(task.step.folder)}
        logger = self.tracking.stage(name, tags)
        provenance = {"mlflow_run": logger.address.run_id if logger else "", "seed": task.seed}
        status = "FAILED"
        try:
            if logger:
                _log_inputs(logger, task.inputs)
                logger.params({**leaves(task.step.config), "seed": task.seed})
            made = self.executor.run(task, logger, provenance)
            if logger:
                _log_outputs(logger, made.records, task.inputs, products={} if self.target == "nano-base" else PRODUCTS)
                logger.metrics(0, {"seconds": made.seconds})
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if logger:
                logger.text(json.dumps(task.step.config, indent=1), "step_config.json")
                logger.finish(status)
        return made


def open_run(cfg: Config, targets: Sequence[str], dry: bool = False, retry_failed: bool = False) -> Run:
    """Returns the Run of a command. It starts nothing: the first stage that runs starts Ray and MLflow."""
    console = progress.console()
    store = Store(cfg.root, Codec(RECORDS, cfg.root))
    executor = Executor(store, cfg.compute, console)
    name = f"{cfg.preset}: {' '.join(targets)}"
    tracker = tracking.Tracking(cfg.root.parent, EXPERIMENT, name, console.log)
    about = {"git_sha": git_sha(), "lock_hash": lock_hash(), "preset": cfg.preset, "seed": str(cfg.seed)}
    texts = {"config.yaml": as_yaml(cfg), "environment.json": json.dumps(about, indent=1)}
    tracker.describe(about, texts, {"preset": cfg.preset, **changed(cfg)})
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Run(cfg, store, executor, tracker, console, dry, retry_failed)


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the settings of an encoded step config by dotted name; lists stay whole, names of record types are left out."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    parts = (leaves(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items() if key != "@")
    return {name: value for part in parts for name, value in part.items()}


def _rejected(stage: str, failure: Failure) -> Rejected:
    """Returns the record of a rejected item. A stage's message names the item as the user does: "a.mp4: empty file"."""
    if failure.expected and ": " in failure.reason:
        return listed(stage, failure.reason)
    return Rejected(failure.name, stage, failure.reason)


def found_in(value: Any, kind: type) -> Iterator[Any]:
    """Yields every record of type `kind` inside nested records and containers."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from found_in(v, kind)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from found_in(v, kind)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from found_in(vars(value)[f.name], kind)


def made_here(made: Any, inputs: Any, kind: type) -> list[Any]:
    """Returns the records of type `kind` in a step's result that are not in its inputs: results may mention their
    sources."""
    given = {record.digest for record in found_in(inputs, kind)}
    return [record for record in _unique(found_in(made, kind)) if record.digest not in given]


def _unique(values: Iterable[Any]) -> list[Any]:
    return list({v.digest: v for v in values}.values())


def _log_inputs(logger: tracking.RunLogger, inputs: Any) -> None:
    for shards in _unique(found_in(inputs, ShardSet)):
        logger.dataset(shards.split, shards.folder, shards.digest, shards.split)


def _log_outputs(logger: tracking.RunLogger, made: Any, inputs: Any, products: Mapping[str, str]) -> None:
    """Logs shard sets as data sets, and checkpoints as models linked to their training data.

    products: name of a checkpoint -> its name in the model registry.
    """
    for shards in made_here(made, inputs, ShardSet):
        logger.dataset(shards.split, shards.folder, shards.digest, shards.split)
    train = next((s for s in found_in(inputs, ShardSet) if s.split != "heldout"), None)
    parents = {f"parent.{c.name}": c.digest for c in _unique(found_in(inputs, Checkpoint))}
    for checkpoint in made_here(made, inputs, Checkpoint):
        logger.checkpoint(
            tracking.TrackedModel(
                name=checkpoint.name,
                folder=checkpoint.folder,
                step=checkpoint.step,
                digest=checkpoint.digest,
                metrics=checkpoint.metrics,
                tags=parents,
                registered_as=products.get(checkpoint.name, ""),
                dataset=train.split if train else "",
                dataset_digest=train.digest if train else "",
            )
        )


def without_student(cfg: Config, *kept: str) -> Any:
    """Returns the model's settings with the student's reset to their defaults, except `kept`. A stage that does not
    depend on the student gets them as its config, so that it is not repeated when only the student changes."""
    mine = dataclasses.asdict(cfg.student)
    student = type(cfg.student)(**{name: mine[name] for name in kept})
    return dataclasses.replace(cfg.model, student=student)
