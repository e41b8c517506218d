"""A Run: what is cached, what a dry run sees, which seconds count for which target."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import fsspec
import pytest

from configs.settings import load
from infra.codec import Codec
from infra.distributed import StageFailed
from infra.executor import Executor
from infra.progress import PlainConsole
from infra.store import Store
from pipelines import summary
from pipelines.commands.plan import dry_run as plan
from pipelines.evaluate import publish
from pipelines.run import RECORDS, NotMade, Run, found_in, made_here, without_student
from pipelines.stamps import weights_stamp
from stages.contracts import Reject, Stage, StageSpec
from stages.records import Checkpoint, Rejected, Report, ShardSet


@dataclasses.dataclass(frozen=True)
class Settings:
    value: int = 1


class NoTracking:
    """A tracker that tracks nothing."""

    uri = "none"

    def stage(self, name: str, tags: dict[str, str]) -> None:
        return None

    def finish(self, status: str) -> None:
        """Nothing was begun."""


CALLS: list[str] = []


def make_video(cfg: Settings, item: str, ctx) -> str:
    CALLS.append(item)
    if item == "bad":
        raise Reject("bad.mp4: empty file")
    if item == "flaky" and not (ctx.workdir / "tried").exists():
        (ctx.workdir / "tried").touch()
        raise OSError("disk full")
    return item.upper()


def train(cfg: Settings, inputs: object, ctx) -> Checkpoint:
    CALLS.append(f"train {cfg.value}")
    return Checkpoint("teacher", str(ctx.workdir), cfg.value, "d")


VIDEOS = Stage("videos", 1, "per_item", make_video)
TRAIN = Stage("train", 1, "once", train)


def new_run(folder: Path, dry: bool = False, retry_failed: bool = False, *overrides: str) -> Run:
    cfg = load("debug", ["compute.executor=local", *overrides], runs=str(folder))
    store, console = Store(cfg.root, Codec(RECORDS, cfg.root)), PlainConsole()
    executor = Executor(store, cfg.compute, console)
    return Run(cfg, store, executor, NoTracking(), console, dry, retry_failed)  # type: ignore[arg-type]


def fetched(cfg: Settings, item: str, ctx) -> str:
    return str(ctx.fetch(item))


@pytest.mark.slow
def test_a_worker_fetches_an_address_to_the_runs_folder_of_sources(tmp_path):
    fsspec.filesystem("memory").pipe("/films/a.mp4", b"1234")
    run = new_run(tmp_path / "runs")
    remote, local = run.items(Stage("get", 1, "per_item", fetched), Settings(), ["memory://films/a.mp4", "/a.mp4"])[0]
    assert Path(remote).is_relative_to(tmp_path / "runs" / "sources") and Path(remote).read_bytes() == b"1234"
    assert local == "/a.mp4"


@pytest.mark.slow
def test_a_run_lists_its_source_and_refuses_one_that_holds_its_results(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").touch()
    (tmp_path / "t.csv").write_text("video\na.mp4\n")
    run = new_run(tmp_path / "runs", False, False, f"data.videos_root={tmp_path}/v")
    listed = dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, src=f"{tmp_path}/t.csv"))
    assert [c.path for c in listed.candidates()[0]] == [f"{tmp_path}/v/a.mp4"]
    for src in (f"{tmp_path}", f"{tmp_path}/**/*.mp4"):
        with pytest.raises(ValueError, match="holds RUNS"):
            dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, src=src)).candidates()


def data(run: Run, names: tuple[str, ...] = ("a", "bad")) -> tuple[str, ...]:
    with run.making("data"):
        return run.items(VIDEOS, Settings(), names)[0]


def teacher(run: Run, value: int = 1, note: str = "") -> Checkpoint:
    with run.making("teacher"):
        return run.step(TRAIN, Settings(value), (data(run), note), key_inputs=data(run))


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


@pytest.mark.slow
def test_the_second_command_does_nothing_and_says_so(tmp_path, capsys):
    first = teacher(new_run(tmp_path))
    assert CALLS == ["a", "bad", "train 1"]
    again = new_run(tmp_path)
    assert teacher(again) == first
    assert CALLS == ["a", "bad", "train 1"]
    summary.summarise(again, 0.1, "FINISHED")
    assert "nothing to do: all 2 steps are up to date" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_count_for_their_own_target(tmp_path):
    run = new_run(tmp_path)
    teacher(run)
    assert [(line.target, line.stage, line.state) for line in run.lines] == [
        ("data", "videos", "ran"),
        ("teacher", "train", "ran"),
    ]
    assert set(run.seconds()) == {"data", "teacher"}
    cached = new_run(tmp_path)
    teacher(cached)
    assert cached.seconds() == run.seconds()


@pytest.mark.slow
def test_only_what_follows_a_change_runs(tmp_path):
    teacher(new_run(tmp_path))
    CALLS.clear()
    teacher(new_run(tmp_path), value=2)
    assert CALLS == ["train 2"]


@pytest.mark.slow
def test_what_is_left_out_of_the_key_makes_nothing_stale(tmp_path):
    teacher(new_run(tmp_path), note="one commit")
    CALLS.clear()
    teacher(new_run(tmp_path), note="the next")
    assert CALLS == []


@pytest.mark.slow
def test_rejected_items_carry_the_name_the_stage_gave(tmp_path):
    run = new_run(tmp_path)
    data(run)
    assert run.rejected == [Rejected("bad.mp4", "videos", "empty file")]
    cached = new_run(tmp_path)
    data(cached)
    assert cached.rejected == run.rejected


@pytest.mark.slow
def test_unexpected_failures_stop_the_command_and_the_next_tries_them_again(tmp_path):
    with pytest.raises(StageFailed, match="flaky: OSError: disk full"):
        data(new_run(tmp_path), ("a", "flaky"))
    assert data(new_run(tmp_path), ("a", "flaky")) == ("A", "FLAKY")
    assert CALLS == ["a", "flaky", "flaky"]


@pytest.mark.slow
def test_unexpected_failures_that_were_allowed_are_tried_again_when_asked(tmp_path):
    allow = "compute.max_failed_share=0.5"
    assert data(new_run(tmp_path, False, False, allow), ("a", "flaky")) == ("A",)
    assert data(new_run(tmp_path, False, False, allow), ("a", "flaky")) == ("A",)
    assert data(new_run(tmp_path, False, True, allow), ("a", "flaky")) == ("A", "FLAKY")
    assert CALLS == ["a", "flaky", "flaky"]


@pytest.mark.slow
def test_what_is_made_once_a_command_is_made_once(tmp_path):
    run, made = new_run(tmp_path), []
    assert [run.once("x", lambda: made.append(1) or len(made)) for _ in range(3)] == [1, 1, 1]
    assert new_run(tmp_path).once("x", lambda: 5) == 5


@pytest.mark.slow
def test_a_dry_run_lists_and_makes_nothing(tmp_path):
    run = new_run(tmp_path, dry=True)
    with pytest.raises(NotMade):
        teacher(run)
    lines = plan.dry_run(run, {"teacher": teacher}, {"data": (VIDEOS,), "teacher": (TRAIN,)})
    assert [(line.stage, line.state, line.note) for line in lines] == [
        ("videos", "would run", "0 of 2 items done"),
        ("train", "would run", "after the step above it"),
    ]
    assert CALLS == []
    assert list(tmp_path.iterdir()) == []
    teacher(new_run(tmp_path))
    cached = plan.dry_run(new_run(tmp_path, dry=True), {"teacher": teacher}, {"data": (VIDEOS,), "teacher": (TRAIN,)})
    assert [line.state for line in cached] == ["cached", "cached"]


@pytest.mark.slow
def test_a_dry_run_takes_steps_that_the_target_borrows_from_another(tmp_path):
    lines = plan.dry_run(new_run(tmp_path, dry=True), {"teacher": teacher}, {"teacher": (TRAIN,)})
    assert [line.stage for line in lines] == ["videos", "train"]


@pytest.mark.slow
def test_a_plan_says_which_weights_are_not_there(tmp_path):
    assert plan.hints(load("nano")) == plan.hints(load("debug")) == []
    assert "fetches it from Hugging Face's hub" in plan.hints(load("wan21-1.3b"))[0]
    assert "would stop at it" in plan.hints(load("wan21-1.3b", [f"teacher.init={tmp_path}/none"]))[0]
    assert plan.hints(load("wan21-1.3b", [f"teacher.init={tmp_path}"])) == []


@pytest.mark.slow
def test_the_teacher_does_not_see_what_only_the_student_reads():
    wide, narrow = load("nano", ["student.window=2", "student.steps=2"]), load("nano")
    assert without_student(wide, "chunk") == without_student(narrow, "chunk")
    assert without_student(wide, "chunk", "steps") != without_student(narrow, "chunk", "steps")


def test_shipped_weights_count_by_content(tmp_path):
    assert "vae.safetensors:" in weights_stamp("embedded:nano", "vae")
    assert weights_stamp("Wan-AI/Wan2.1", "vae") == "Wan-AI/Wan2.1"
    (tmp_path / "w.safetensors").write_bytes(b"1")
    before = weights_stamp(str(tmp_path), "dit")
    (tmp_path / "w.safetensors").write_bytes(b"12")
    assert weights_stamp(str(tmp_path), "dit") != before


def test_records_are_found_wherever_they_hide():
    shards = ShardSet("f", "train", (), 0, 0, 0, "d", "c")
    checkpoint = Checkpoint("teacher", "f", 1, "d")
    assert list(found_in({"a": [(shards, 1)], "b": checkpoint}, ShardSet)) == [shards]


def test_a_result_that_mentions_its_checkpoint_does_not_make_it():
    given, made = Checkpoint("teacher", "f", 1, "d"), Checkpoint("student", "g", 1, "e")
    assert made_here({"item": given, "new": made}, {"teacher": given}, Checkpoint) == [made]


def test_the_report_lies_where_scripts_look_for_it(tmp_path):
    names = ("report.json", "report.html", "overview.png")
    for name in names:
        (tmp_path / name).write_text(name)
    made = Report(str(tmp_path), *(str(tmp_path / name) for name in names))
    published = publish(made, tmp_path / "nano" / "report")
    assert Path(published.json).read_text() == "report.json"
    assert sorted(p.name for p in Path(published.folder).iterdir()) == sorted(names)


def test_reports_of_other_settings_are_kept_and_named(tmp_path, capsys):
    """The copy in report/ is the newest one's; the summary says where it stays, and how many others there are."""
    names = ("report.json", "report.html", "overview.png")
    for key in ("first", "second"):
        step = tmp_path / "nano" / "eval_report" / key
        step.mkdir(parents=True)
        for name in names:
            (step / name).write_text(key)
        publish(Report(str(step), *(str(step / name) for name in names)), tmp_path / "nano" / "report")
    assert (tmp_path / "nano" / "report" / "report.json").read_text() == "second"
    assert (tmp_path / "nano" / "eval_report" / "first" / "report.json").read_text() == "first"
    summary.reports(tmp_path / "nano", step)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith(f"copies of the one kept in {step}")
    assert shown[1] == f"reports of other settings: 1, in {step.parent}/*/report.html"


@pytest.mark.slow
def test_a_chain_gives_each_stage_what_the_one_before_made(tmp_path):
    """As one after the other: cached by stage, told in the table with its label, seen by a dry run."""
    second = Stage("second", 1, "per_item", lambda cfg, item, ctx: item + "!")
    links = (
        StageSpec(VIDEOS, Settings(), tuple),
        StageSpec(second, Settings(), lambda made: [m for m in made if m != "B"]),
    )
    run = new_run(tmp_path)
    with run.making("data"):
        first, last = run.chain(links, ("a", "b", "bad"), "real")
    assert first == (("A", "B"), [Rejected("bad.mp4", "videos", "empty file")])
    assert last == (("A!",), [])
    assert [(line.stage, line.note) for line in run.lines] == [("videos", "real, 1 rejected"), ("second", "real")]
    CALLS.clear()
    with pytest.raises(NotMade):
        new_run(tmp_path, dry=True).chain(links, ("a", "b", "c"), "real")
    assert new_run(tmp_path, dry=True).chain(links, ("a", "b", "bad"), "real") == [first, last]
    assert CALLS == []


@pytest.mark.slow
def test_a_manifest_keeps_the_seed(tmp_path):
    teacher(new_run(tmp_path, False, False, "seed=7"))
    for manifest in tmp_path.glob("debug/*/*/manifest.json"):
        assert json.loads(manifest.read_text())["provenance"]["seed"] == 7
