"""motionstream jitter, from the command line."""

from __future__ import annotations

import json

import pytest

from configs.settings import load
from demo.playing.player import Picture
from msmodel.causal import CausalDiT
from msmodel.io.weights import save_weights
from pipelines.commands import cli, jitter
from tests.unit.msmodel.models import randomise
from tests.unit.stages.eval import world
from tests.unit.stages.play import players


@pytest.mark.slow
def test_tracks_and_video_are_figured_and_a_sheet_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)
    monkeypatch.setattr(jitter, "SEEDS", 2)
    monkeypatch.setattr("demo.playing.model_player.pictures.pictures", lambda cfg, size: [picture(size)])
    save_weights(randomise(CausalDiT(load("debug").model)), tmp_path / "student", {"name": "student", "step": 1})
    words = ["jitter", "--preset", "debug", "--runs", str(tmp_path), "--student", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--at", "0.3,0.5", f"demo.student={tmp_path / 'student'}"]) == 0
    logged = json.loads(capsys.readouterr().out)
    assert logged["tracks"]["treated"]["path"] < logged["tracks"]["raw"]["path"]
    assert set(logged["video"]) == set(logged["tracks"])
    assert all(v["frozen_meant"] > 0 and v["to_meant"] >= 0 for v in logged["video"].values())
    assert (tmp_path / "out" / "jitter.png").is_file()
    assert cli.main([*words, "--picture", "b", f"demo.student={tmp_path / 'student'}"]) == 1
    assert capsys.readouterr().err.endswith("--picture: no picture 'b'; there are a\n")


def test_mistakes_are_one_line(tmp_path, capsys):
    assert cli.main(["jitter", "--preset", "none"]) == cli.BAD_CONFIG
    assert capsys.readouterr().err.startswith("the configuration has 1 problem")


def picture(size):
    return Picture("a", "A", "a hall", world.texture(1, *size).astype("uint8"))
