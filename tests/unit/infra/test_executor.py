"""Killed at any moment, run again: nothing lost, nothing doubled. One slow test goes through Ray itself."""

from __future__ import annotations

import inspect
import io
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infra.distributed import StageFailed
from infra.executor import item_tasks
from infra.files import CHECKOUT
from infra.items import ItemJob, run_item
from stages.contracts import Resources, Stage, StageError, StageSpec
from tests.unit.infra import fakes


def lines(root: Path) -> list[str]:
    return [line for path in sorted(root.rglob("done.txt")) for line in path.read_text().split()]


def kill_and_rerun(root: Path, stage: str, executor: str, after: list[float]) -> str:
    """Kills the driver some seconds after the first work shows, again and again, then lets it finish."""
    command = [sys.executable, "-m", "tests.unit.infra.fakes", str(root), stage, executor]
    for seconds in after:
        had = len(lines(root)) if root.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=CHECKOUT)
        while process.poll() is None and len(lines(root)) == had:
            time.sleep(0.02)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800, cwd=CHECKOUT).stdout


def test_per_item_stage_survives_kill_9(tmp_path):
    moments = [random.Random(7).uniform(0, 0.4) for _ in range(2)]
    out = kill_and_rerun(tmp_path, "square", "local", moments)
    assert "items are done already" in out
    assert sorted(lines(tmp_path)) == sorted(i.name for i in fakes.items(30))  # each exactly once
    expected = tuple(fakes.Item(i.name + "2", i.number**2) for i in fakes.items(30))
    assert fakes.drive(tmp_path, fakes.SQUARE, fakes.SLOW, fakes.items(30)).records == expected


def test_once_stage_survives_kill_9(tmp_path):
    kill_and_rerun(tmp_path, "once", "local", [0.05])
    whole = fakes.drive(tmp_path / "whole", fakes.ONCE, fakes.FakeConfig(), ())
    killed = fakes.drive(tmp_path, fakes.ONCE, fakes.SLOW, ())
    assert killed.records.metrics == whole.records.metrics
    steps = [int(x) for x in next(tmp_path.glob("once/*/done.txt")).read_text().split()]
    assert sorted(set(steps)) == list(range(1, 11))


def test_finished_work_is_not_done_again(tmp_path):
    first = fakes.drive(tmp_path, fakes.ONCE, fakes.FakeConfig(), ())
    before = lines(tmp_path)
    assert fakes.drive(tmp_path, fakes.ONCE, fakes.FakeConfig(), ()) == first
    assert lines(tmp_path) == before
    fakes.drive(tmp_path, fakes.ONCE, fakes.FakeConfig(scale=3.0), ())
    assert len(lines(tmp_path)) == 2 * len(before)


def test_a_new_item_costs_only_itself(tmp_path):
    fakes.drive(tmp_path, fakes.SQUARE, fakes.FakeConfig(), fakes.items(3))
    records = fakes.drive(tmp_path, fakes.SQUARE, fakes.FakeConfig(), fakes.items(4)).records
    assert [r.number for r in records] == [0, 1, 4, 9]
    assert sorted(lines(tmp_path)) == ["i0", "i1", "i2", "i3"]


def test_broken_items_that_are_allowed_are_listed_and_the_rest_goes_on(tmp_path):
    given = [*fakes.items(2), fakes.Item("empty", 0), fakes.Item("bug", 0)]
    manifest = fakes.drive(tmp_path, fakes.SQUARE, fakes.FakeConfig(), given, max_failed_share=0.25)
    assert len(manifest.records) == 2
    found = {f.name: (f.reason, f.expected) for f in manifest.failures}
    assert found == {"empty": ("holds nothing", True), "bug": ("TypeError: planted bug", False)}


def test_a_stage_that_times_things_gets_a_quiet_machine(tmp_path, monkeypatch):
    store, runner = fakes.world(tmp_path)
    stopped: list[str] = []
    monkeypatch.setattr(runner.session, "stop", lambda: stopped.append("ray"))
    for stage in (fakes.ONCE, fakes.TIMED):
        runner.run(fakes.work(store, stage, fakes.FakeConfig(), ()), None, {})
    assert stopped == ["ray"]


def test_items_that_break_stop_the_stage_and_are_tried_again_while_the_rest_is_kept(tmp_path):
    given = [*fakes.items(2), fakes.Item("bug", 0)]
    with pytest.raises(StageFailed, match=r"(?s)1 of 3 items broke:.*bug: TypeError: planted bug.*same command"):
        fakes.drive(tmp_path, fakes.SQUARE, fakes.FakeConfig(), given)
    assert not list(tmp_path.glob("square/*/manifest.json"))
    assert sorted(lines(tmp_path)) == ["i0", "i1"]
    assert len(fakes.drive(tmp_path, fakes.SQUARE, fakes.FakeConfig(), fakes.items(2)).records) == 2
    assert sorted(lines(tmp_path)) == ["i0", "i1"]  # not done again


def test_users_mistake_arrives_as_it_was_reported(tmp_path):
    with pytest.raises(ValueError, match=r"^your clip is too short$"):
        fakes.drive(tmp_path, fakes.ONCE, fakes.FakeConfig(fatal="your clip is too short"), ())
    assert issubclass(StageError, ValueError)


def noted_type(cfg: fakes.FakeConfig, item: object, ctx) -> fakes.Item:
    return fakes.Item(str(ctx.dtype), 0)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
@pytest.mark.parametrize("how", ["once", "per_item"])
def test_a_stage_gets_the_type_of_its_models(how, precision, tmp_path):
    given = fakes.items(1) if how == "per_item" else ()
    records = fakes.drive(tmp_path, Stage("types", 1, how, noted_type), fakes.FakeConfig(), given, precision=precision)
    found = records.records[0] if how == "per_item" else records.records
    assert found.name == ("torch.bfloat16" if precision == "bf16" else "torch.float32")


def test_an_item_that_kills_its_worker_again_and_again_is_given_up(tmp_path):
    store, _ = fakes.world(tmp_path)
    [task] = item_tasks(store, fakes.work(store, fakes.SQUARE, fakes.FakeConfig(), [fakes.Item("poison", 0)]))
    job = ItemJob(fakes.square, fakes.FakeConfig(), store.codec, 1, "attempt", False, "auto")
    task.step.folder.mkdir(parents=True)
    (task.step.folder / ".begun-attempt").write_text("xxx")  # as its dead workers left it
    failure = run_item(job, task)
    assert failure is not None
    assert failure.reason == "the worker died 3 times on this item"


@pytest.mark.slow
def test_through_ray(tmp_path):
    """Ray Data with a worker that dies, and Ray Train with DeepSpeed: a rank that dies. (A user's mistake:
    test_distributed.py.)"""
    logged = io.StringIO()
    store, runner = fakes.world(tmp_path, "ray", logged)
    given = [*fakes.items(3), fakes.Item("die", 5), fakes.Item("empty", 0)]
    try:
        manifest = runner.run(fakes.work(store, fakes.SQUARE, fakes.FakeConfig(), given), None, {})
        assert [r.number for r in manifest.records] == [0, 1, 4, 25]
        reasons = {f.name: f.reason for f in manifest.failures}
        assert reasons == {"empty": "holds nothing"}

        dying = runner.run(fakes.work(store, fakes.DISTRIBUTED, fakes.FakeConfig(scale=2.0), ()), None, {})
        assert list(tmp_path.glob("distributed/*/died"))
        whole = fakes.drive(tmp_path / "whole", fakes.ONCE, fakes.FakeConfig(scale=2.5), ())
        assert dying.records.metrics["value"] / 2.0 == pytest.approx(whole.records.metrics["value"] / 2.5)
        steps = next(tmp_path.glob("distributed/*/done.txt")).read_text().split()
        assert [int(s) for s in steps] == list(range(1, 11))
        assert "engine DeepSpeedEngine, threads 2" in logged.getvalue()
        assert "steps: 10/10" in logged.getvalue() or "steps: 6/10" in logged.getvalue()
    finally:
        runner.stop()


def chained(store, runner, given, seconds=0.0) -> list[tuple]:
    """Both stages' manifests' records, after the graph has been through."""
    cfg = fakes.FakeConfig(seconds=seconds)
    runner.stream((StageSpec(fakes.HALVES, cfg, fakes.each), StageSpec(fakes.SQUARE, cfg, fakes.each)), given, 0)
    before = lines(store.root)
    first = runner.run(fakes.work(store, fakes.HALVES, cfg, given), None, {})
    second = runner.run(fakes.work(store, fakes.SQUARE, cfg, list(first.records)), None, {})
    return [before, lines(store.root), first, second]


def spans(root, stage) -> list[tuple[float, float]]:
    """(begin, end) of every item of a stage, in seconds."""
    ends = [
        (path.stat().st_mtime, json.loads(path.read_text())["seconds"]) for path in root.glob(f"{stage}/**/item.json")
    ]
    return sorted((end - seconds, end) for end, seconds in ends)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["auto", "actors"])
def test_a_graph_leaves_what_the_stages_leave_one_after_the_other(tmp_path, pool):
    """With a worker that dies and an item that is rejected; the stages' own runs find all done."""
    given = [*fakes.items(5), fakes.Item("die", 5), fakes.Item("empty", 0)]
    logged = io.StringIO()
    store, runner = fakes.world(tmp_path / "graph", "ray", logged, pool=pool)
    try:
        before, after, first, second = chained(store, runner, given, seconds=0.6)
    finally:
        runner.stop()
    reference = [fakes.Item(f"{i.name}2-{k}", i.number**2 + k) for i in given if i.name != "empty" for k in range(2)]
    assert list(first.records) == reference
    assert [f.reason for f in first.failures] == ["holds nothing"]
    assert list(second.records) == [fakes.Item(r.name + "2", r.number**2) for r in reference]
    assert before == after
    assert sorted(before) == sorted([*(i.name for i in given if i.name != "empty"), *(r.name for r in reference)])
    assert "halves: 7/7" in logged.getvalue() and "square 12 of 12" in logged.getvalue()
    halves, squares = spans(store.root, "halves"), spans(store.root, "square")
    assert squares[0][1] < halves[-1][1], "the second stage waited for the whole first one"


def test_ray_data_has_the_switch_that_we_turn():
    from ray.data._internal.execution import streaming_executor_state

    assert "timeout=WAIT_FOR_TASK_COMPLETION_TIMEOUT_S" in inspect.getsource(streaming_executor_state)


def test_without_ray_a_graph_does_nothing_and_the_stages_do_it(tmp_path):
    store, runner = fakes.world(tmp_path)
    before, after, _, second = chained(store, runner, fakes.items(3))
    assert before == [] and len(after) == 9 and len(second.records) == 6


def test_stages_of_a_graph_share_the_gpus_and_keep_their_models_there(tmp_path, monkeypatch):
    _, runner = fakes.world(tmp_path, "ray", item_gpus=0.5)
    monkeypatch.setattr(runner.session, "resources", lambda: (8.0, 2.0))
    seen = []

    def keep(operators, *_):
        seen.extend(operators)
        return [0.0] * len(operators)

    monkeypatch.setattr("infra.executor.run_graph", keep)
    needs = (Resources(), Resources(gpus=0.5), Resources(gpus=1.0))
    stages = [replace(fakes.SQUARE, name=f"s{i}", resources=r) for i, r in enumerate(needs)]
    runner.stream([StageSpec(s, fakes.FakeConfig(), fakes.each) for s in stages], fakes.items(2), 0)
    assert [(o.workers, o.gpus, o.actors) for o in seen] == [(8, 0.0, False), (4, 0.25, True), (2, 0.5, True)]
    monkeypatch.setattr(runner.session, "resources", lambda: (8.0, 0.0))
    seen.clear()
    runner.stream([StageSpec(s, fakes.FakeConfig(), fakes.each) for s in stages], fakes.items(2), 0)
    assert [(o.workers, o.gpus, o.actors) for o in seen] == [(8, 0.0, False)] * 3


def test_a_gang_takes_no_more_workers_than_it_has_work_for(tmp_path, monkeypatch):
    store, runner = fakes.world(tmp_path, "ray", workers=64)
    monkeypatch.setattr(runner.session, "resources", lambda: (64.0, 64.0))
    asked = []
    monkeypatch.setattr("infra.distributed.over_ray", lambda job, session, workers, *_: asked.append(workers))
    for most in (0, 8, 100):
        stage = replace(fakes.DISTRIBUTED, resources=Resources(most=most))
        runner.run(fakes.work(store, stage, fakes.FakeConfig(), most), None, {})
    assert asked == [64, 8, 64]
