"""make eval ARGS=eval.replay=FOLDER: replays a session that the demo recorded, bit for bit, in place of an
evaluation."""

from __future__ import annotations

import json
from pathlib import Path

from demo.playing.student import by_digest
from pipelines.run import Run
from stages import eval as ev
from stages.play.recordings import read_recording, replay_digest
from stages.play.replay import REPLAY, ReplayInputs


def replay(run: Run) -> ev.Figures:
    """Replays the recording in eval.replay and returns its figures.

    Raises ValueError where the folder holds no recording, where it was recorded with another preset or with weights
    that are not available, or where a chunk differs although the device and the version of torch are the same.
    """
    cfg = run.cfg
    folder = Path(cfg.eval.replay).expanduser().resolve()
    recording = read_recording(folder)
    if recording.preset != cfg.preset:
        raise ValueError(
            f"eval.replay: {folder} was recorded at PRESET={recording.preset}, and this is PRESET={cfg.preset}: "
            f"give PRESET={recording.preset}"
        )
    chosen = by_digest(cfg, recording.digest, recording.student)
    with run.making("eval"):
        inputs = ReplayInputs(str(folder), replay_digest(folder), chosen.student, chosen.tiny_vae)
        figures = run.step(REPLAY, ev.ReplayRun(cfg.model, cfg.eval.measure), inputs, label=recording.id)
    found = json.loads(Path(figures.file).read_text())
    same = found["recorded_on"]["device"] == found["played_on"]["device"]
    same = same and found["recorded_on"]["torch"] == found["played_on"]["torch"]
    what = "identical" if found["identical"] else f"different from chunk {found['first_difference']} on"
    line = f"{recording.id}: {what}, {found['chunks']} chunks; {figures.file}"
    if not found["identical"] and same:
        raise ValueError(line)
    run.log(line)
    return figures
