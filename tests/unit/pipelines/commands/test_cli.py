"""The command line: mistakes end with status 2 before anything starts; make runs all goals in one command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.files import CHECKOUT
from pipelines.commands import cli, targets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no command was named"),
        (["run"], "no target was named"),
        (["teachr"], "unknown command teachr; did you mean teacher?"),
        (["data", "export"], "unknown target export"),
        (["plan", "dta"], "unknown target dta: did you mean data?"),
        (["run", "bench", "--gpus", "2"], "--gpus (GPUS= of make) has no effect on bench"),
        (["data", "--preset", "nona"], "preset: 'nona' does not exist"),
        (["data", "teachr"], "unknown target teachr"),
        (["teacher.phase1_steps=3"], "no command was named before teacher.phase1_steps=3"),
        (["data", "teacher.stps=3", "student.window=-1"], "has 2 problems"),
    ],
)
def test_mistakes_stop_before_anything_starts(words, part, tmp_path, capsys):
    assert cli.main([*words, "--runs", str(tmp_path / "runs")] if words else []) == cli.BAD_CONFIG
    assert part in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_config_prints_the_resolved_configuration(capsys):
    assert cli.main(["config", "--preset", "debug", "teacher.phase1_steps=9"]) == cli.OK
    assert "phase1_steps: 9" in capsys.readouterr().out


@pytest.mark.slow
def test_a_source_that_does_not_exist_is_one_line(tmp_path, capsys):
    words = ["data", "--preset", "debug", "--src", str(tmp_path / "no"), "--runs", str(tmp_path / "runs")]
    assert cli.main(words) == cli.FAILED
    captured = capsys.readouterr()
    assert "no such folder" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.slow
def test_a_source_that_holds_the_results_is_refused(tmp_path, capsys):
    """Else the clips made by one run would be videos of the next."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    words = ["data", "--preset", "debug", "--src", str(tmp_path), "--runs", str(tmp_path / "deep" / "runs")]
    assert cli.main(words) == cli.FAILED
    assert "holds RUNS" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("src", ["/no films/**/*.mp4", "s3://bucket/[ab]*/?.mp4", "films.csv", "a b.txt"])
def test_make_hands_a_source_on_as_it_is(src):
    words = ["make", "-s", "-o", ".venv/.stamp", "data", "MOTIONSTREAM=printf '<%s>'", f"SRC={src}"]
    out = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert out.endswith(f"<--src><{src}>")


def make(*words: str) -> list[str]:
    """What make would run, environment set-up aside."""
    out = subprocess.run(["make", "-n", *words], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return [" ".join(line.split()) for line in out.splitlines() if line.startswith(".venv/bin/motionstream")]


def test_make_runs_all_goals_in_one_command():
    found = make("data", "teacher", "distill", "eval", "PRESET=debug", "ARGS=a.b=1 c=2", "SRC=/my films")
    assert found == [
        ".venv/bin/motionstream data teacher distill eval --preset 'debug' --runs 'runs' --src '/my films' a.b=1 c=2"
    ]


def test_make_plan_only_plans():
    assert make("plan", "data") == [".venv/bin/motionstream plan data --preset 'nano' --runs 'runs'"]


@pytest.mark.slow
def test_a_report_goes_no_further_than_data(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"x")
    words = ["teacher", "data.report_only=true", "--preset", "debug", "--src", str(tmp_path / "v")]
    assert cli.main([*words, "--runs", str(tmp_path / "runs")]) == cli.FAILED
    assert "data.report_only packs nothing" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda c: c.name)
def test_help_of_a_command_shows_its_own_options_only(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command.name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == cli.OK
    for option in ("--preset", "--runs", "--src", "--gpus"):
        if command.name != "soak":  # its command line is the demo's
            assert (option in text) == (option in command.common)
    for option, owner in (("--image", "generate"), ("--checkpoint", "export"), ("--clip ", "inspect")):
        assert (option in text) == (command.name == owner)


def test_help_is_a_table_of_all_commands_by_purpose(capsys):
    assert cli.main(["--help"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert all(f"  {c.name:15} {c.summary}" in lines for c in cli.COMMANDS)
    assert len([line for line in lines if line.endswith(":")]) == len({c.group for c in cli.COMMANDS})
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["data", "--prest", "debug"], "did you mean --preset?"),
        (["export", "--gpus", "2"], "--gpus (GPUS= of make) has no effect on export: it belongs to data, teacher"),
        (["inspect", "--src=/films"], "--src (SRC= of make) has no effect on inspect"),
        (["data", "--image", "a.png"], "unknown argument --image"),
        (["generate", "--seconds", "long"], "invalid float value"),
    ],
)
def test_options_that_a_command_does_not_have_are_refused(words, part, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == cli.BAD_CONFIG
    assert part in capsys.readouterr().err


@pytest.mark.slow
def test_several_targets_are_one_run_however_they_are_named(monkeypatch):
    calls = []
    monkeypatch.setattr(targets, "run_targets", lambda cfg, names, retry: calls.append((cfg, names, retry)) or cli.OK)
    common = ["--preset", "debug", "--retry-failed", "teacher.lr=0.5"]
    assert cli.main(["data", "teacher", *common]) == cli.main(["run", *common, "data", "teacher"]) == cli.OK
    assert calls[0] == calls[1]
    assert calls[0][0].teacher.lr == 0.5 and calls[0][1:] == (["data", "teacher"], True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [ValueError("bad"), OSError("full"), KeyboardInterrupt()], ids=["value", "os", "ctrl-c"]
)
def test_how_a_command_ends_is_its_exit_status(error, monkeypatch, capsys):
    def stop(cfg):
        raise error

    monkeypatch.setattr("configs.settings.as_yaml", stop)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert cli.main(["config"]) == (cli.INTERRUPTED if interrupted else cli.FAILED)
    assert capsys.readouterr().err == ("" if interrupted else f"{error}\n")


def test_the_module_is_the_same_command_line():
    words = [sys.executable, "-m", "pipelines", "--help"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == cli.help_text() + "\n"


MADE_BY_MAKE = [
    c.name
    for c in cli.COMMANDS
    if c.name not in ("run", "config", "ship", "tracks", "client", "jitter", "soak", "decode-latents")
]


@pytest.mark.parametrize("name", MADE_BY_MAKE)
def test_every_target_of_make_is_a_command_that_takes_what_make_gives(name):
    """The options of each line that make would run are the command's own."""
    gpus = ["GPUS=2"] if "--gpus" in cli.BY_NAME[name].common else []
    (line,) = make(name, "SRC=films", "CLIP=a", "CHECKPOINT=b", *gpus)
    words = line.split()[1:]
    options = cli.parse(cli.BY_NAME[words[0]], [w.strip("'") for w in words[1:]])
    assert options.command == name
    assert vars(options).get("gpus", "") == ("2" if gpus else "")
    assert vars(options).get("src", "") == ("films" if "--src" in cli.BY_NAME[name].common else "")


def test_make_uses_gpus_wherever_it_can_and_refuses_it_elsewhere():
    assert make("data", "teacher", "GPUS=1")[0].endswith("data teacher --preset 'nano' --runs 'runs' --gpus '1'")
    assert "--gpus '2'" in make("teacher", "export", "GPUS=2")[0]
    words = ["make", "-n", "export", "GPUS=1"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "GPUS=1 has no effect on export: it belongs to data teacher" in done.stderr
    text = Path(CHECKOUT / "Makefile").read_text()
    taking = next(line for line in text.splitlines() if line.startswith("TAKE_GPUS")).split()[2:]
    assert sorted(taking) == sorted(
        c.name for c in cli.COMMANDS if "--gpus" in c.common and c.name not in ("run", "config")
    )
