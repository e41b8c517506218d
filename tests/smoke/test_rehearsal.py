"""Both full presets, end to end at a small size: what a machine with eight GPUs would find after days, in minutes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from infra.files import CHECKOUT

LIMIT_SECONDS = 3600  # for a hang: a few minutes on two quiet cores


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("preset", ["wan21-1.3b", "wan22-5b"])
def test_a_full_preset_runs_whole_at_a_small_size(preset, tmp_path):
    """Ray, two processes of DeepSpeed's bfloat16 engine, a kill in the training, resume, evaluation, export."""
    command = [sys.executable, "-m", "pipelines", "rehearse", "--preset", preset, "--runs", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert f"rehearsal of {preset}: passed" in done.stdout and "not exercised:" in done.stdout
    assert "resumed after step" in done.stdout
    root = tmp_path / "rehearsal" / preset / "runs" / preset
    report = json.loads((root / "report" / "report.json").read_text())
    for kind in ("rendered", "real"):
        assert all(report[kind][model]["epe"] > 0 for model in ("teacher", "student"))
    exported = root / "export"
    assert {path.parent.name for path in exported.rglob("*.safetensors")} >= {"transformer"}
