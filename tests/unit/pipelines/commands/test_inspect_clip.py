"""make inspect: the newest finished data, one clip of them drawn, and plain words for every way to ask wrongly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cv2
import pytest

from infra.codec import Codec
from infra.store import Store
from pipelines.commands import cli
from pipelines.run import RECORDS
from stages.data.gates import GateConfig
from stages.data.pack import PACK, PackRun
from stages.data.video import read_container, read_timestamps
from stages.records import Rejected
from tests.unit.pipelines.commands.test_cli import make
from tests.unit.stages.data.fakes import CLIP, finished_clip
from tests.unit.stages.data.fakes import packed as pack_clips

DROPPED = Rejected("clip-train-009", "gates", "too dark: mean luma 0.01 is below min_brightness 0.04")


def publish(runs, clips, finished: str) -> None:
    """Packs the clips as `make data PRESET=debug` would, finished at a given time."""
    store = Store(runs / "debug", Codec(RECORDS, runs / "debug"))
    config = PackRun(CLIP, GateConfig())
    step = store.step(PACK.name, PACK.version, config, tuple(clips), 0)
    step.folder.mkdir(parents=True)
    sets = pack_clips(clips, step.folder, [DROPPED], clips_per_shard=2, lossless=False)
    store.publish(step, sets, 1.0, provenance={"finished": finished})


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("runs")
    clips = [finished_clip(folder, i, "train", ("real", "rendered")[i % 2]) for i in range(4)]
    clips[0] = replace(clips[0], quality={"brightness": 0.25}, notes=("HDR (PQ)", "interlaced"))
    held = finished_clip(folder, 50, "heldout", "real")
    publish(runs, [*clips, held], "2026-02-02T00:00:00+00:00")
    publish(runs, [clips[1], held], "2026-01-01T00:00:00+00:00")
    return runs


@pytest.fixture
def runs(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "runs")


def inspect(runs, clip: str, capsys) -> tuple[int, str, str]:
    status = cli.main(["inspect", "--preset", "debug", "--runs", str(runs), "--clip", clip])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.slow
def test_a_clip_is_drawn_and_its_row_printed(runs, capsys):
    status, out, _ = inspect(runs, "clip-train-000", capsys)
    assert status == cli.OK
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}
    assert rows["brightness"] == "0.25"
    assert rows["notes"] == "HDR (PQ), interlaced"
    film, strip = (runs / "debug" / "inspect" / f"clip-train-000.{ending}" for ending in ("mp4", "png"))
    assert str(film) in out
    assert len(read_timestamps(str(film))) == CLIP.frames
    assert read_container(str(film)).height == 320
    assert cv2.imread(str(strip)).shape[0] > 150


@pytest.mark.slow
def test_without_an_id_some_are_listed(runs, capsys):
    status, out, _ = inspect(runs, "", capsys)
    assert status == cli.OK
    for line in ("real: 3 clips", "  clip-heldout-050", "rendered: 2 clips", "rejected: 1", "  clip-train-009"):
        assert line in out.splitlines()


@pytest.mark.slow
def test_a_dropped_clip_tells_why(runs, capsys):
    status, out, _ = inspect(runs, DROPPED.name, capsys)
    assert (status, out.strip()) == (cli.OK, f"{DROPPED.name} was rejected by gates: {DROPPED.reason}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("clip-trian-001", "clip-train-001"),
        ("heldout", "clip-heldout-050"),
        ("???", "without CLIP some ids are listed"),
    ],
)
def test_an_unknown_id_is_an_error_with_close_ones(runs, capsys, asked, words):
    status, _, err = inspect(runs, asked, capsys)
    assert status == cli.FAILED
    assert f"no clip {asked!r}" in err
    assert words in err


@pytest.mark.slow
def test_no_data_and_a_damaged_shard_name_make_data(runs, tmp_path, capsys):
    status, _, err = inspect(tmp_path / "empty", "x", capsys)
    assert status == cli.FAILED
    assert "make data" in err
    for shard in runs.rglob("pack/*/*/shard-*.tar"):
        shard.write_bytes(shard.read_bytes()[:700])
    status, _, err = inspect(runs, "clip-train-000", capsys)
    assert status == cli.FAILED
    assert "shard-00000" in err
    assert "make data" in err


@pytest.mark.slow
def test_unfinished_data_do_not_count(runs, capsys):
    for path in runs.rglob("manifest.json"):
        if json.loads(path.read_text())["provenance"]["finished"].startswith("2026-02"):
            path.unlink()
    assert "real: 1 clips" in inspect(runs, "", capsys)[1]


def test_make_hands_the_id_on():
    words = ".venv/bin/motionstream inspect{} --preset 'debug' --runs 'runs'"
    assert make("inspect", "PRESET=debug", "CLIP=a-0") == [words.format(" --clip 'a-0'")]
    assert make("inspect", "PRESET=debug") == [words.format("")]
