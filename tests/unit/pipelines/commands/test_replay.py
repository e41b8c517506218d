"""make eval ARGS=eval.replay=FOLDER: a step like any other, of the weights that the recording names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.settings import load
from demo.playing.model_player import make_player
from demo.playing.student import choose
from pipelines.evaluate import evaluate_or_replay
from tests.unit.demo.playing.test_model_player import session
from tests.unit.demo.playing.test_student import train
from tests.unit.pipelines.test_run import new_run
from tests.unit.stages.play import players


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run with two students, and a session of the older one."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)
        cfg = load("debug", ["data.grid_rows=4", "data.grid_cols=6"], runs=str(runs))
        train(runs, "old", "2026-01-01T00:00:00+00:00")
        chosen = choose(cfg, pytest.fail)
        folder = session(make_player(cfg, players.playable(chosen.student), chosen))
    train(runs, "new", "2026-02-01T00:00:00+00:00")
    return runs, folder


@pytest.fixture(autouse=True)
def no_text_encoder(monkeypatch):
    monkeypatch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)


@pytest.mark.slow
def test_a_session_is_replayed_by_the_weights_that_played_it_once(recorded, capsys):
    runs, folder = recorded
    for state in ("ran", "cached"):
        run = new_run(runs, False, False, f"eval.replay={folder}")
        figures = evaluate_or_replay(run)
        assert f"{folder.name}: identical, 8 chunks" in capsys.readouterr().out
        assert [(line.target, line.stage, line.state) for line in run.lines] == [("eval", "eval_replay", state)]
        made = Path(figures.file).parent
        assert json.loads((made / "replay.json").read_text())["identical"]
        assert {"replay.json", "video.mp4", "drawn.mp4"} <= {p.name for p in made.iterdir()}


@pytest.mark.slow
def test_a_difference_on_the_same_machine_stops_the_command(recorded, tmp_path):
    runs, folder = recorded
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in folder.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    values = json.loads((changed / "recording.json").read_text())
    (changed / "recording.json").write_text(json.dumps(values | {"seed": 77}))
    with pytest.raises(ValueError, match="different from chunk 0 on"):
        evaluate_or_replay(new_run(runs, False, False, f"eval.replay={changed}"))
    (changed / "recording.json").write_text(json.dumps(values | {"seed": 77, "device": "another"}))
    evaluate_or_replay(new_run(runs, False, False, f"eval.replay={changed}"))


@pytest.mark.slow
def test_other_presets_and_weights_and_no_recording_are_errors(recorded, tmp_path):
    runs, folder = recorded
    values = json.loads((folder / "recording.json").read_text())
    (tmp_path / "recording.json").write_text(json.dumps(values | {"preset": "nano"}))
    with pytest.raises(ValueError, match="recorded at PRESET=nano, and this is PRESET=debug"):
        evaluate_or_replay(new_run(runs, False, False, f"eval.replay={tmp_path}"))
    (tmp_path / "recording.json").write_text(json.dumps(values | {"digest": "e" * 64, "student": "/gone"}))
    with pytest.raises(ValueError, match=r"/gone .eeeeeeeeeeee., which was not found; found"):
        evaluate_or_replay(new_run(runs, False, False, f"eval.replay={tmp_path}"))
    with pytest.raises(ValueError, match=r"holds no recording\.json"):
        evaluate_or_replay(new_run(runs, False, False, f"eval.replay={tmp_path / 'none'}"))
