import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.data import contact_sheets, page
from stages.data.contact_sheets import clips_contact_sheet, tracked
from stages.data.gates import GateConfig
from stages.data.page import DataPageRun
from stages.records import Rejected, ShardSet
from tests.fakes import FakeContext
from tests.unit.stages.data.fakes import CLIP, finished_clip

RUN = DataPageRun(CLIP, GateConfig())
SETS = tuple(ShardSet("", s, ("shard-000000.tar",), 1, 1, 0, 2 * "abcdef", "") for s in ("train", "heldout"))
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    out = []
    for i in range(8):
        clip = finished_clip(folder, i, "train" if i < 6 else "heldout", ("real", "rendered")[i % 2])
        figures = {"brightness": 0.1 * i, "sharpness": 100.0 * i, "letterbox": 0.0, "back_px": float("nan")}
        out.append(replace(clip, quality=figures, source=f"<b>{i % 3}</b>.mp4", notes=("HDR (PQ)",) if i == 2 else ()))
    return out


def made(inputs, folder: Path):
    ctx = FakeContext(folder)
    record = page.run(RUN, inputs, ctx)
    return record, Path(record.html).read_text(encoding="utf-8"), ctx


@pytest.mark.slow
def test_the_page_shows_counts_figures_clips_and_reasons(clips, tmp_path):
    rejected = [
        Rejected("ü.mp4", "ingest", "empty <file>"),
        Rejected("clip-9", "gates", "too dark: mean luma 0.01 is below min_brightness 0.04"),
    ]
    record, text, ctx = made([*clips, *rejected, *SETS], tmp_path)
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r'"data:[^"]*"', "", text))
    assert not re.findall(r"""(?:src|href)="(?!data:)""", text)
    assert "empty &lt;file&gt;" in text
    assert "&lt;b&gt;0&lt;/b&gt;.mp4" in text
    assert [f"histogram of {name}" in text for name in ("brightness", "letterbox", "back_px")] == [True, True, False]
    assert text.count("contact sheet of") == 2
    assert "HDR (PQ)" in text
    assert cv2.imread(record.picture) is not None
    assert ctx.metrics["data/real"] == 4
    assert ctx.metrics["data/rejected"] == 2
    assert ctx.metrics["data/dropped/min_brightness"] == 1
    assert ctx.metrics["data/median/sharpness"] == pytest.approx(350)
    assert "data/clips" in ctx.pictures


def test_one_clip_and_nothing_rejected(clips, tmp_path):
    _, text, _ = made([replace(clips[1], quality={})], tmp_path)
    assert "Left out: 0" in text
    assert "Nothing was left out." in text
    assert "histogram of" not in text
    assert text.count("contact sheet of") == 1


@pytest.mark.slow
def test_a_large_set_makes_a_small_page_and_reads_only_what_is_drawn(clips, tmp_path, monkeypatch):
    many = [
        replace(clips[i % 8], clip_id=f"c{i:06d}", source=f"v{i}.mp4", quality={"brightness": (i % 997) / 997})
        for i in range(20_000)
    ]
    bad = [Rejected(f"bad-{i}.mp4", "ingest", "empty file") for i in range(5_000)]
    read: list[str] = []
    frames_of = contact_sheets.read_clip_frames
    monkeypatch.setattr(contact_sheets, "read_clip_frames", lambda clip: read.append(clip.clip_id) or frames_of(clip))
    _, text, ctx = made([*many, *bad], tmp_path)
    assert 0 < len(read) <= 2 * page.SHEET_ROWS + 8
    assert len(text) < 4e6  # frames of noise: the largest there are
    assert ctx.metrics["data/real"] == 10_000
    assert "9960 others" in text


def test_contact_sheets_are_of_one_size_whatever_the_clips():
    xy = np.random.default_rng(0).uniform(0, 40, (5, 200, 2)).astype(np.float32)
    seen = np.ones((5, 200), bool)
    small, large = np.zeros((5, 40, 64, 3), np.uint8), np.zeros((5, 480, 832, 3), np.uint8)
    assert tracked(small, xy, seen).shape == (5, 120, 192, 3)
    assert tracked(large, xy * 12, seen).shape == (5, 120, 208, 3)
    assert tracked(small, xy, seen).any()


def test_a_sheet_takes_clips_from_the_whole_set(clips):
    every, two = clips_contact_sheet(clips, rows=8), clips_contact_sheet(clips, rows=2)
    assert np.array_equal(two, np.concatenate([every[: len(every) // 8], every[-len(every) // 8 :]]))


@pytest.mark.slow
def test_the_page_opens_in_a_browser(clips, tmp_path):
    """In headless Chromium where there is one; else that it is well-formed enough to parse."""
    record, text, _ = made([*clips, *SETS], tmp_path / "page")
    if not CHROMIUM.exists():
        HTMLParser().feed(text)
        return
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    dom = subprocess.run(
        [*command, "--virtual-time-budget=3000", "--dump-dom", Path(record.html).as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert "What was packed" in dom
    assert dom.count("<table") >= 5
