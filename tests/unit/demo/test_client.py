"""The client without a browser: real time, and what the issue asks of latency, at a realistic speed of the model."""

from __future__ import annotations

import asyncio
import json

import decord
import numpy as np
import pytest

from demo import client as demo_client
from demo.client import (
    Client,
    drag,
)
from tests.unit.demo.fakes import (
    ABOUT,
    FakePlayer,
    disc_centre,
)
from tests.unit.demo.serving import serving


def realistic() -> FakePlayer:
    """As nano on two cores: a chunk of 250 ms takes 100 ms, and 30 ms more for the cache."""
    return FakePlayer(seconds=0.1, settle_seconds=0.03)


def test_a_control_is_seen_within_one_and_a_half_chunks_and_100_ms():
    async def scene(url: str):
        async with Client(url) as client:
            await client.enter()
            await client.start("moss")
            hand = asyncio.create_task(drag(client, (0.5, 0.5, 0.8, 0.5), [(0.1, 0.1)], 5.0))
            frames = [(await client.chunk()).frames for _ in range(20)]
            hand.cancel()
            return client.figures, np.concatenate(frames)

    with serving(realistic(), margin_ms=30.0) as served:
        figures, frames = asyncio.run(scene(served.url))
        metrics = served.ask("GET", "/metrics")[2].decode()
    told = figures.summary()
    assert told["control_to_pixel_p95_ms"] <= 1.5 * ABOUT.chunk_seconds * 1000 + 100, told
    assert len(figures.control_ms) > 100
    assert 21.5 < told["fps"] < 24.3, told  # a machine that does other things too makes some chunks late
    assert told["late_chunks"] <= 5, told
    assert "demo_control_to_pixel_seconds_count" in metrics
    assert disc_centre(frames[0])[0] == pytest.approx(0.5, abs=0.02)
    assert disc_centre(frames[-1])[0] == pytest.approx(0.8, abs=0.03)


def test_the_command_uploads_plays_drags_and_writes(tmp_path, capsys):
    from tests.unit.demo.server.test_uploads import (
        quarters,
        written,
    )

    (tmp_path / "mine.png").write_bytes(written(quarters(40, 64)))
    words = [
        "--picture",
        str(tmp_path / "mine.png"),
        "--seconds",
        "1.2",
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
    assert figures["frames"] >= 24 and figures["control_to_pixel_p50_ms"] > 0
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
