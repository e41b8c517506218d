import csv
import json
from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from stages.data.card import MOST_REJECTED, card
from stages.data.catalogue import COLUMNS, FIGURES, sample_json, write_catalogue, write_rejected
from stages.data.gates import GateConfig, apply_gates
from stages.records import Clip, Rejected

REAL = Clip(
    "a-0", "", "a", "train", "real", "a | b", "ä b.mp4", "MIT", start_seconds=1.5, clip_seconds=1.2,
    tracker="lucas_kanade 2 (Apache-2.0)", tracks=160, visible_share=0.7, moving_px=2.5, segment=3,
    quality={"brightness": 0.4, "sharpness": 90.0, "back_px": 0.1, "visible_share": 0.7}, phash="0f" * 24,
    notes=("HDR (PQ)", "interlaced"),
)  # fmt: skip
RENDERED = Clip("s-0", "", "s", "heldout", "rendered", "c", "rendered from a", "MIT", recipe="drag", tracker="truth")
REJECTED = [
    Rejected('ü, "x".mp4', "ingest", "empty\nfile"),
    Rejected("a-1", "gates", "too dark: mean luma 0.01 is below min_brightness 0.04"),
]


@pytest.fixture
def path(tmp_path):
    write_catalogue(tmp_path / "catalogue.parquet", [RENDERED, REAL], REJECTED, {"a-0": "shard-000000.tar", "s-0": "x"})
    return tmp_path / "catalogue.parquet"


def test_every_figure_is_a_column_and_null_where_a_row_has_none(path):
    table = pq.read_table(path)
    assert table.schema.names == list(COLUMNS)
    assert {str(table.schema.field(n).type) for n in FIGURES} == {"float"}
    real, rendered, dropped, bad = table.to_pylist()
    assert real["brightness"] == pytest.approx(0.4)
    assert (real["segment"], real["phash"], real["notes"]) == (3, "0f" * 24, ["HDR (PQ)", "interlaced"])
    assert (real["overlay"], rendered["brightness"], rendered["phash"]) == (None, None, None)
    assert (dropped["name"], dropped["stage"], dropped["split"]) == ("a-1", "gates", None)
    assert "min_brightness 0.04" in dropped["reason"]
    assert bad["reason"] == "empty\nfile"


def test_statistics_are_on_and_pandas_opens_it(path):
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
    assert columns["sharpness"].min == columns["sharpness"].max == pytest.approx(90.0)
    assert columns["sharpness"].null_count == 3
    frame = pd.read_parquet(path)
    assert frame.brightness.isna().tolist() == [False, True, True, True]


def test_the_same_clips_give_the_same_bytes(path, tmp_path):
    shards = {"s-0": "x", "a-0": "shard-000000.tar"}
    write_catalogue(tmp_path / "again.parquet", [REAL, RENDERED], REJECTED[::-1], shards)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_figure_of_a_new_name_becomes_a_column(tmp_path):
    clip = replace(REAL, quality={"zeal": 1.5})
    write_catalogue(tmp_path / "c.parquet", [clip, RENDERED], [], {"a-0": "x", "s-0": "x"})
    assert pq.read_table(tmp_path / "c.parquet")["zeal"].to_pylist() == [1.5, None]


def test_a_dropped_clip_shows_its_figures(tmp_path):
    dark = replace(REAL, clip_id="a-1", quality={"brightness": 0.01})
    write_catalogue(tmp_path / "c.parquet", [RENDERED], REJECTED, {"s-0": "x"}, dropped=[dark])
    row = pq.read_table(tmp_path / "c.parquet", filters=[("name", "=", "a-1")]).to_pylist()[0]
    assert (row["status"], row["stage"], row["source"], row["shard"]) == ("rejected", "gates", "ä b.mp4", None)
    assert row["brightness"] == pytest.approx(0.01)


def test_rejected_inputs_are_a_csv(tmp_path):
    write_rejected(tmp_path / "rejected.csv", REJECTED)
    with open(tmp_path / "rejected.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.reader(f))
    assert rows == [["name", "stage", "reason"]] + [[r.name, r.stage, r.reason] for r in REJECTED[::-1]]
    write_rejected(tmp_path / "rejected.csv", [])
    assert (tmp_path / "rejected.csv").read_text() == "name,stage,reason\n"


def test_samples_have_the_same_fields_of_the_same_types():
    full, bare = json.loads(sample_json(REAL, "{}")), json.loads(sample_json(replace(RENDERED, quality={}), ""))
    assert {k: type(v) for k, v in full.items()} == {k: type(v) for k, v in bare.items()}
    assert json.loads(full["quality"]) == REAL.quality
    assert full["notes"] == "HDR (PQ); interlaced"
    assert "folder" not in full


def test_the_card_says_what_hugging_face_and_people_ask():
    text = card([REAL, RENDERED], REJECTED, (29, 40, 64), 24.0, GateConfig())
    assert "CLIP" not in text
    assert "{clip m 1280; float16}" in card([REAL], [], (29, 40, 64), 24.0, clip_dim=1280)
    front = yaml.safe_load(text.split("---")[1])
    assert front["size_categories"] == ["n<1K"]
    files = {f["split"]: f["path"] for f in front["configs"][0]["data_files"]}
    assert files == {"train": "train/*.tar", "heldout": "heldout/*.tar"}
    for part in (
        "lucas_kanade 2 (Apache-2.0): 1 clips",
        "| min_brightness | 0.04 | 1 |",
        "| min_sharpness | off | 0 |",
    ):
        assert part in text
    assert '- ü, "x".mp4 (ingest): empty file' in text
    assert all(f"| {name} |" in text for name in COLUMNS)
    assert "Removal" in text


def test_the_card_of_a_large_set_stays_short():
    many = [Rejected(f"v{i}.mp4", "ingest", "empty file") for i in range(1000)]
    clips = [replace(REAL, clip_id=f"c{i}", source=f"v{i}.mp4") for i in range(5000)]
    text = card([*clips, RENDERED], many, (29, 40, 64), 24.0)
    assert yaml.safe_load(text.split("---")[1])["size_categories"] == ["1K<n<10K"]
    assert f"and {1000 - MOST_REJECTED} more" in text
    assert len(text.splitlines()) < 400


def test_the_card_counts_what_the_gates_dropped():
    clips = [replace(REAL, clip_id=f"c{i}", scene=f"v{i}", phash="0f" * 24) for i in range(3)]
    clips.append(replace(REAL, clip_id="dark", quality={"brightness": 0.0}))
    kept, rejected = apply_gates(clips, GateConfig())
    text = card(kept, rejected, (29, 40, 64), 24.0, GateConfig())
    assert "| max_duplicate_bits | 6 of 192 | 2 |" in text
    assert "| min_brightness | 0.04 | 1 |" in text
