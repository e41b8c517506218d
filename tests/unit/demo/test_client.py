"""The client without a browser: what it shows, measures and reports. Its pace is judged by tests/browser/pace.py."""

from __future__ import annotations

import asyncio
import json

import decord
import numpy as np
import pytest

from demo import client as demo_client
from demo.client import Client, drag
from tests.unit.demo.fakes import WAIT_SECONDS, FakePlayer, disc_centre
from tests.unit.demo.serving import serving


def realistic() -> FakePlayer:
    """As nano on two cores: a chunk of 250 ms takes 100 ms, and 30 ms more for the cache."""
    return FakePlayer(seconds=0.1, settle_seconds=0.03)


@pytest.mark.slow
def test_a_control_is_seen_in_the_next_chunk_that_begins():
    async def scene(url: str):
        async with Client(url) as client:
            await client.enter()
            await client.start("moss")
            held = await client.control({1: (0.5, 0.5)}, {2: (0.1, 0.1)})
            shown = [await client.chunk()]
            while shown[-1].chunk.revision < held:
                shown.append(await client.chunk())
            dragging = asyncio.create_task(drag(client, (0.5, 0.5, 0.8, 0.5), [(0.1, 0.1)], 2.0))
            while not dragging.done():
                shown.append(await client.chunk())
            last = await client.control({1: (0.8, 0.5)}, {2: (0.1, 0.1)})
            while shown[-1].chunk.revision < last:
                shown.append(await client.chunk())
            shown.append(await client.chunk())
            return client.figures, shown

    with serving(realistic(), margin_ms=30.0) as served:
        figures, shown = asyncio.run(asyncio.wait_for(scene(served.url), WAIT_SECONDS))
        metrics = served.ask("GET", "/metrics")[2].decode()
    revisions = [s.chunk.revision for s in shown]
    assert revisions == sorted(revisions) and len(set(revisions)) > 3
    for before, after in zip(shown, shown[1:], strict=False):
        used = after.chunk
        assert used.heard_ms <= used.begun_ms < used.server_ms, "a chunk follows the newest controls when it begins"
        assert used.begun_ms >= before.chunk.server_ms, "chunks are made one after another"
    assert len(figures.control_ms) == revisions[-1] > 10 and min(figures.control_ms) > 0
    assert figures.summary()["control_to_pixel_p50_ms"] > 0 and figures.summary()["fps"] > 0
    assert "demo_control_to_pixel_seconds_count" in metrics
    frames = np.concatenate([s.frames for s in shown])
    assert disc_centre(frames[0])[0] == pytest.approx(0.5, abs=0.02)
    assert disc_centre(frames[-1])[0] == pytest.approx(0.8, abs=0.03)


@pytest.mark.slow
def test_the_command_uploads_plays_drags_and_writes(tmp_path, capsys):
    from tests.unit.demo.server.test_uploads import quarters, written

    (tmp_path / "mine.png").write_bytes(written(quarters(40, 64)))
    words = [
        "--picture",
        str(tmp_path / "mine.png"),
        "--seconds",
        "0.6",
        "--drag",
        "0.5,0.5,0.7,0.5",
        "--pin",
        "0.1,0.1",
    ]
    with serving(realistic(), token="secret") as served:
        common = ["--url", served.url, "--token", "secret"]
        assert demo_client.main([*common, *words, "--out", str(tmp_path / "out.mp4")]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out[out.index("{") :])
    assert figures["frames"] > 0 and figures["control_to_pixel_p50_ms"] > 0
    assert len(decord.VideoReader(str(tmp_path / "out.mp4"))) == figures["frames"]


def test_what_goes_wrong_is_one_line(capsys, tmp_path):
    with serving(realistic(), token="secret") as served:
        assert demo_client.main(["--url", served.url]) == 1
        assert "token" in capsys.readouterr().err
        assert (
            demo_client.main(["--url", served.url, "--token", "secret", "--picture", str(tmp_path / "none.png")]) == 1
        )
        assert "none.png" in capsys.readouterr().err
    assert demo_client.main(["--url", served.url]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
