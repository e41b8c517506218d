"""A command that does not fit is refused before it starts anything, with the settings that would."""

from __future__ import annotations

import pytest

from configs.settings import load
from pipelines.commands import cli
from pipelines.commands.plan import refusal

SMALL = ["clip.frames=5", "dmd.batch=8"]


def test_without_a_gpu_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(refusal, "training_memory", None)
    assert refusal.refusal(load("nano"), ["eval"]) == ""


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_the_nearest_settings(monkeypatch, tmp_path, capsys):
    cfg = load("debug", SMALL)
    where = refusal.layout(cfg, 1, gpu=True)
    peaks = {name: refusal.training_memory(cfg, name, where).peak for name in refusal.TRAININGS}
    assert max(peaks, key=lambda name: peaks[name]) == "dmd"
    monkeypatch.setattr(refusal, "gpu_bytes", lambda: 0.97 * peaks["dmd"] / (1 - cfg.plan.spare))
    words = ["run", "teacher", "distill", "--preset", "debug", "--runs", str(tmp_path), *SMALL]
    assert cli.main(words) == cli.BAD_CONFIG
    shown = capsys.readouterr().err
    assert "dmd will not fit" in shown
    assert 'the nearest settings that fit: ARGS="' in shown
    assert "plan.enforce=false" in shown
    assert not list(tmp_path.iterdir())
    assert refusal.refusal(load("debug", [*SMALL, "plan.enforce=false"]), ["distill"]) == ""
    assert refusal.refusal(cfg, ["data", "teacher"]) == ""  # DMD is not among them
