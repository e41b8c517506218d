"""What hands do on the picture, by mouse, touch and keyboard, and what comes of it at the model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext

from stages.data.files import write_mp4
from tests.browser.conftest import WatchedPlayer
from tests.browser.driver import Tab, until


def test_the_disc_follows_the_drag(tab: Tab, player: WatchedPlayer) -> None:
    """Through three corners, held at each until the picture has come after."""
    tab.start()
    corners = [(0.75, 0.5), (0.75, 0.3), (0.3, 0.3)]
    errors: list[float] = []

    def arrived() -> None:
        corner = np.array(corners[len(errors)])
        until(lambda: bool(np.linalg.norm(player.performance.centre - corner) < 0.02))
        tab.chunks(2)
        errors.append(float(np.linalg.norm(tab.disc() - corner)))

    assert tab.page.locator("#help").is_visible()
    tab.drag([(0.5, 0.5), *corners], lambda: player.performance.held, arrived, release=False)
    assert np.mean(errors) < 0.05, errors
    assert tab.coloured("green") > 20 and len(tab.read("points.green")) >= 1
    assert not tab.page.locator("#help").is_visible()
    tab.page.mouse.up()
    tab.wait("ms.points.green.length === 0")
    until(lambda: player.performance.heard[-1].pinned.all())


def test_a_brush_takes_many_points_and_a_brush_of_nothing_one(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.page.locator("#pin-rest").uncheck()
    tab.page.locator("#brush").fill("0.2")
    tab.drag([(0.5, 0.5), (0.6, 0.5)], release=False)
    until(lambda: len(player.performance.heard[-1].ids) > 3)
    tab.page.mouse.up()
    tab.page.locator("#brush").fill("0")
    tab.drag([(0.51, 0.47), (0.61, 0.47)], release=False)
    until(lambda: len(player.performance.heard[-1].ids) == 1)
    until(lambda: np.allclose(player.performance.heard[-1].xy, [[0.61, 0.47]], atol=0.005))  # the hand is steadied
    heard = player.performance.heard[-1]
    assert not heard.pinned.any() and heard.ids[0] > 0
    tab.page.mouse.up()


def test_everything_else_is_held_still_and_what_was_dragged_stays_where_it_is_let_go(
    tab: Tab, player: WatchedPlayer
) -> None:
    tab.start()
    until(lambda: len(player.performance.heard[-1].ids) == 40)
    before = player.performance.heard[-1]
    assert before.pinned.all(), "the grid is held before anything is touched"
    tab.drag([(0.5, 0.5), (0.55, 0.5)], release=False)
    until(lambda: not player.performance.heard[-1].pinned.all())
    first = player.performance.heard[-1]
    dragged, rest = first.ids[~first.pinned], first.ids[first.pinned]
    assert set(first.ids) == set(before.ids), "the same points, some of them taken hold of"
    tab.page.mouse.move(*tab.place(0.7, 0.5))
    until(lambda: player.performance.heard[-1].revision > first.revision)
    later = player.performance.heard[-1]
    assert set(later.ids[later.pinned]) == set(rest), "pins keep their names while they live"
    tab.page.mouse.up()
    until(lambda: player.performance.heard[-1].pinned.all())
    end = player.performance.heard[-1]
    was, now = (dict(zip(c.ids.tolist(), c.xy, strict=True)) for c in (before, end))
    for point in dragged.tolist():
        np.testing.assert_allclose(now[point] - was[point], [0.2, 0], atol=0.01)


def test_pins_are_painted_and_erased(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.page.locator("#pin-rest").uncheck()
    tab.tool("pin")
    tab.drag([(0.1, 0.1), (0.1, 0.6)])
    pins = len(tab.read("points.red"))
    assert pins >= 3 and tab.coloured("red") > 20
    until(lambda: len(player.performance.heard[-1].ids) == pins)
    assert player.performance.heard[-1].pinned.all()
    tab.tool("erase")
    tab.drag([(0.1, 0.1), (0.1, 0.6)])
    until(lambda: len(player.performance.heard[-1].ids) == 0)


def test_a_path_drawn_beforehand_begins_with_the_stream(tab: Tab, player: WatchedPlayer) -> None:
    tab.tool("path")
    tab.page.locator("#seconds").fill("1")
    tab.page.locator("#seconds").blur()
    tab.drag([(0.3, 0.5), (0.5, 0.4), (0.7, 0.5)])
    tab.drag([(0.2, 0.8), (0.6, 0.8)])
    assert tab.coloured("blue") > 100
    tab.start()
    paths = player.performance.heard[0].paths
    assert len(paths) == 2, "the first chunk knows of them"
    np.testing.assert_allclose([paths[0].line[0], paths[0].line[-1]], [[0.3, 0.5], [0.7, 0.5]], atol=0.02)
    assert paths[0].seconds == 1 and len(paths[0].members) >= 1
    tab.page.keyboard.press("p")
    until(lambda: {p.id for p in player.performance.heard[-1].paths}.isdisjoint(p.id for p in paths))
    tab.tool("erase")
    tab.drag([(0.2, 0.8), (0.25, 0.8)])
    until(lambda: len(player.performance.heard[-1].paths) == 1)
    tab.page.get_by_role("button", name="Clear points").click()
    until(lambda: not player.performance.heard[-1].paths)


def test_the_camera_springs_back(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.page.keyboard.down("ArrowRight")
    until(lambda: player.performance.heard[-1].camera is not None)
    camera = player.performance.heard[-1].camera
    assert camera is not None and camera.pan_x > 0 and camera.zoom == 0
    tab.page.keyboard.up("ArrowRight")
    until(lambda: player.performance.heard[-1].camera is None)
    box = tab.page.locator("#camera-zoom").bounding_box()
    assert box is not None
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    until(lambda: player.performance.heard[-1].camera is not None)
    assert player.performance.heard[-1].camera.zoom > 0.5  # type: ignore[union-attr]
    tab.page.mouse.up()
    until(lambda: player.performance.heard[-1].camera is None)
    assert tab.page.locator("#camera-zoom").input_value() == "0"


def test_two_fingers_drag_two_things(phone: BrowserContext, address: str, player: WatchedPlayer) -> None:
    tab = Tab(phone, address)
    tab.open("/")
    tab.page.locator("#start").tap()
    tab.wait("ms.state === 'streaming' && ms.counters.frames > 0")
    touch = phone.new_cdp_session(tab.page)

    def fingers(kind: str, *places: tuple[float, float]) -> None:
        points = [dict(zip(("x", "y"), tab.place(*place), strict=True), id=i) for i, place in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    tab.page.locator("#pin-rest").uncheck()
    tab.page.locator("#brush").fill("0")
    fingers("touchStart", (0.5, 0.5), (0.1, 0.2))
    until(lambda: len(player.performance.heard[-1].ids) == 2)
    fingers("touchMove", (0.7, 0.5), (0.1, 0.4))
    until(lambda: np.allclose(sorted(player.performance.heard[-1].xy.tolist()), [[0.1, 0.4], [0.7, 0.5]], atol=0.01))
    until(lambda: bool(abs(player.performance.centre[0] - 0.7) < 0.02))
    fingers("touchEnd")
    until(lambda: not len(player.performance.heard[-1].ids))
    tab.check()


def test_the_keyboard_alone_will_do(tab: Tab, player: WatchedPlayer) -> None:
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("() => document.activeElement.id") == "overlay":
            break
    assert tab.page.evaluate("() => document.activeElement.id") == "overlay"
    tab.start()
    tab.page.keyboard.press("g")
    assert len(tab.read("points.green")) >= 1
    until(lambda: player.performance.held)
    for _ in range(8):
        tab.page.keyboard.press("ArrowRight")
    until(lambda: bool(player.performance.centre[0] > 0.6))
    assert "Holding" in tab.page.locator("#announce").inner_text()
    tab.page.keyboard.press("g")
    until(lambda: bool(player.performance.heard[-1].pinned.all()))
    tab.page.keyboard.press("2")
    tab.page.keyboard.press("g")
    assert len(tab.read("points.red")) >= 1
    tab.page.keyboard.press("Space")
    assert tab.state == "paused"
    tab.page.keyboard.press("Enter")
    tab.wait("ms.state === 'ready'")


def picture(width: int, height: int, form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, form)
    return file.getvalue()


def test_an_uploaded_picture_is_cut_and_used(tab: Tab, player: WatchedPlayer) -> None:
    tab.page.set_input_files("#upload", {"name": "red.jpg", "mimeType": "image/jpeg", "buffer": picture(300, 500)})
    tab.page.wait_for_selector("text=300 × 500 pixels; its middle 300 × 188 is used.")
    tab.start()
    np.testing.assert_allclose(player.performance.start.frame[0, 0], [200, 30, 30], atol=6)


@pytest.mark.parametrize("kind", ["image/png", "text/plain"])
def test_what_is_no_picture_is_reported(tab: Tab, kind: str) -> None:
    tab.expected = "status of 4"
    chosen = tab.page.locator("[aria-checked=true]").get_attribute("aria-label")
    tab.page.set_input_files("#upload", {"name": "notes.png", "mimeType": kind, "buffer": b"no picture"})
    tab.page.wait_for_selector("#notes [role=alert]")
    assert tab.toast().startswith("notes.png: ")
    assert tab.page.locator("[aria-checked=true]").get_attribute("aria-label") == chosen
    tab.start()


def test_a_depth_map_is_used(tab: Tab, player: WatchedPlayer) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG")
    tab.page.set_input_files("#depth", {"name": "depth.png", "mimeType": "image/png", "buffer": file.getvalue()})
    tab.page.wait_for_selector("text=depth.png is used from the next start on.")
    tab.start()
    assert player.performance.start.depth is not None


def test_a_clips_motion_is_transferred(tab: Tab, player: WatchedPlayer, tmp_path: Path) -> None:
    write_mp4(tmp_path / "clip.mp4", np.zeros((8, 40, 64, 3), np.uint8), 24.0)
    tab.start()
    tab.page.get_by_text("Motion transfer").click()
    tab.page.set_input_files("#clip", tmp_path / "clip.mp4")
    tab.page.wait_for_selector("text=4 points over 24 frames.")
    until(lambda: player.performance.heard[-1].transfer == tab.page.locator("#motion").input_value())
    assert any(call.startswith("motion ") for call in player.performance.calls)
    tab.page.locator("#motion").select_option("")
    until(lambda: player.performance.heard[-1].transfer == "")


def test_the_webcam_is_sent_while_it_is_chosen(tab: Tab, context: BrowserContext, player: WatchedPlayer) -> None:
    context.grant_permissions(["camera"])
    tab.start()
    tab.page.get_by_text("Motion transfer").click()
    tab.page.locator("#motion").select_option("webcam")
    until(lambda: player.performance.calls.count("webcam (192, 256, 3)") >= 3)
    assert player.performance.heard[-1].transfer == "webcam"
    tab.page.locator("#motion").select_option("")
    until(lambda: player.performance.heard[-1].transfer == "")
    assert not tab.page.locator("#camera-view").is_visible()
