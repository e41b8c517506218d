"""`make data` over a bucket of good and bad videos, from the command line: gates, report, page, dead letters, a second run."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from stages.data.files import write_mp4
from tests.smoke.kills import FPS, ROOT, make_videos
from tests.unit.stages.data.fakes import ffmpeg

LIMIT_SECONDS = 1800  # for a hang


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """s3://films/some with four good videos, a copy of one at a lower quality, a black one, a text, and one that s3://films/made
    holds as generated; and its environment."""
    folder = make_videos(tmp_path_factory.mktemp("films") / "src", 5)
    ffmpeg("-i", str(folder / "film-00.mp4"), "-crf", "32", str(folder / "again.mp4"))
    write_mp4(folder / "black.mp4", np.full((FPS * 2, 96, 128, 3), 3, np.uint8), FPS)
    (folder / "words.mp4").write_text("no film. " * 100)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    here = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    s3 = boto3.client(
        "s3",
        endpoint_url=here["AWS_ENDPOINT_URL"],
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
    )
    s3.create_bucket(Bucket="films")
    for file in folder.iterdir():
        s3.upload_file(str(file), "films", f"some/{file.name}")
    s3.upload_file(str(folder / "film-04.mp4"), "films", "made/walk.mp4")
    yield {**os.environ, **here, "AWS_DEFAULT_REGION": "us-east-1"}
    server.stop()


def data(runs: Path, environment: dict[str, str], *more: str) -> str:
    words = [sys.executable, "-m", "pipelines", "data", "--preset", "debug", "--src", "s3://films/some"]
    done = subprocess.run(
        [*words, "--runs", str(runs), "compute.executor=local", *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT_SECONDS)
def test_a_bucket_becomes_shards_and_what_is_left_out_is_reported(bucket, tmp_path):
    generated = "data.synthetic=s3://films/made"
    report = data(tmp_path, bucket, generated, "data.report_only=true")
    assert "min_brightness" in report and "max_duplicate_bits" in report
    assert not (tmp_path / "debug" / "pack").exists()

    out = data(tmp_path, bucket, generated)
    assert "items are done already" in out  # what the report has made
    with open(tmp_path / "debug" / "report" / "rejected.csv", encoding="utf-8", newline="") as f:
        lost = {row["name"]: (row["stage"], row["reason"]) for row in csv.DictReader(f)}
    assert lost["words.mp4"] == ("ingest", "text, not a video")
    dark = [name for name, (stage, why) in lost.items() if stage == "gates" and "min_brightness" in why]
    copies = [name for name, (stage, why) in lost.items() if stage == "gates" and "max_duplicate_bits" in why]
    assert dark and all(name.startswith("black") for name in dark)
    assert lost["film-04.mp4"] == ("sources", "same content as walk.mp4")
    assert copies and {name.split("-")[0] for name in copies} <= {"again", "film"}
    rows = pq.read_table(next(tmp_path.rglob("catalogue.parquet"))).to_pylist()
    kept = [r for r in rows if r["status"] == "kept" and r["kind"] == "real"]
    assert len({r["scene"] for r in kept}) == 4  # each film once
    assert all(r["brightness"] > 0.1 and r["tracker"] and r["phash"] for r in kept)
    made = [r for r in rows if r["kind"] == "generated"]
    assert {r["source"] for r in made} == {"walk.mp4"} and {r["split"] for r in made} == {"train"}
    assert all(r["tracker"].startswith("lucas_kanade") and r["shard"] for r in made)
    (parts,) = tmp_path.glob("debug/pack_parts/*")
    of = {path.parent.name: json.loads(path.read_text())["shards"] for path in parts.glob("*/index.json")}
    kinds = {name: {kind for shard in shards for kind in shard["kinds"]} for name, shards in of.items()}
    assert kinds == {"train_real": {"real"}, "train_synthetic": {"generated", "rendered"}}
    page = (tmp_path / "debug" / "report" / "data.html").read_text()
    assert "black" in page and 'src="http' not in page

    shutil.rmtree(tmp_path / "sources")  # may be deleted at any time
    assert "nothing to do" in data(tmp_path, bucket, generated)
