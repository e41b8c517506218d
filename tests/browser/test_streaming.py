"""Start, pause, reset, stop, the queue, a broken connection: what the page shows of the session."""

from __future__ import annotations

import numpy as np
from playwright.sync_api import BrowserContext, WebSocketRoute

from configs.demo import DemoConfig
from tests.browser.conftest import WatchedPlayer, serving
from tests.browser.driver import Tab, until


def test_the_first_frame_is_the_picture(tab: Tab) -> None:
    tab.start()
    assert tab.read("counters.firstFrameMs") > 0
    np.testing.assert_allclose(tab.disc(), [0.5, 0.5], atol=0.03)


def test_jpeg_frames_are_shown_in_order(context: BrowserContext, player: WatchedPlayer) -> None:
    with serving(player, DemoConfig(port=0, encoding="jpeg")) as address:
        tab = Tab(context, address)
        tab.open("/")
        tab.start()
        tab.drag([(0.5, 0.5), (0.7, 0.5)], lambda: player.performance.held, release=False)
        until(lambda: player.performance.centre[0] > 0.68)
        tab.chunks(2)
        np.testing.assert_allclose(tab.disc(), player.performance.centre, atol=0.03)
        tab.check()
        tab.page.close()


def test_space_pauses_within_a_chunk_and_resumes_where_it_was(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.chunks(2)
    tab.page.keyboard.press("Space")
    assert tab.state == "paused" and tab.page.locator("#state").inner_text() == "Paused"
    frames, chunks = tab.frames, player.performance.index
    tab.page.wait_for_timeout(400)
    assert tab.frames == frames and player.performance.index - chunks <= 1
    made = player.performance.index
    tab.page.keyboard.press("Space")
    tab.wait(f"ms.counters.frames > {frames}")
    # What waited is shown first: not one frame is left out.
    tab.chunks(1)
    assert tab.frames <= frames + 6 * (player.performance.index - made + 2)
    assert tab.read("counters.chunks") <= player.performance.index


def test_reset_goes_back_to_the_first_frame(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.drag([(0.5, 0.5), (0.75, 0.5)], lambda: player.performance.held, release=False)
    until(lambda: player.performance.centre[0] > 0.7)
    tab.page.mouse.up()
    tab.page.keyboard.press("r")
    until(lambda: "reset" in player.performance.calls)
    tab.chunks(2)
    tab.page.wait_for_timeout(300)
    np.testing.assert_allclose(tab.disc(), [0.5, 0.5], atol=0.03)


def test_refresh_of_the_sink_and_what_refuses_it(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.chunks(3)
    tab.page.keyboard.press("s")
    until(lambda: "sink" in player.performance.calls)
    tab.page.keyboard.press("r")
    tab.page.keyboard.press("s")
    tab.page.wait_for_selector("#notes [role=alert]")
    assert "too few" in tab.toast()
    tab.page.get_by_role("button", name="Dismiss").click()
    assert tab.page.locator("#notes .note").count() == 0 and tab.state == "streaming"


def test_another_prompt_is_typed_and_holds_from_the_next_chunk_on(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.page.locator("#prompt").fill("")
    tab.page.locator("#prompt").press_sequentially("stars r s")
    assert tab.state == "streaming" and player.performance.calls == []
    tab.page.keyboard.press("Enter")
    until(lambda: player.performance.prompt == "stars r s")
    tab.page.wait_for_selector("text=/In force from chunk \\d+ on/")
    assert tab.state == "streaming"


def test_enter_stops_and_starts_again(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    first = player.performance
    tab.page.keyboard.press("Enter")
    tab.wait("ms.state === 'ready'")
    assert tab.page.locator("#start").inner_text().startswith("Start") and tab.page.locator("#save").is_enabled()
    made = first.index
    tab.page.wait_for_timeout(250)
    assert first.index == made
    tab.start()
    until(lambda: first.closed)
    assert player.performance is not first and tab.read("counters.firstFrameMs") > 0


def test_another_picture_begins_again_with_it(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.page.get_by_role("radio", name="Moss").click()
    until(lambda: player.performance.prompt == "a disc, moss")
    tab.wait("ms.state === 'streaming' && ms.counters.frames > 0")
    assert player.performance.start.frame[0, 0].tolist() == [30, 80, 40]


def test_a_lost_connection_is_shown_and_made_again(context: BrowserContext, address: str) -> None:
    tab, routes = Tab(context, address), []

    def between(route: WebSocketRoute) -> None:
        route.connect_to_server()
        routes.append(route)

    tab.page.route_web_socket("**/ws", between)
    tab.open("/")
    tab.start()
    routes[0].close(code=4000, reason="idle")
    tab.wait("ms.state === 'lost'")
    assert (
        tab.page.locator("#curtain").is_visible()
        and "nothing happened" in tab.page.locator("#curtain-text").inner_text()
    )
    tab.page.get_by_role("button", name="Reconnect").click()
    tab.wait("ms.state === 'streaming' && ms.counters.frames > 0")
    assert not tab.page.locator("#curtain").is_visible()
    tab.check()


def test_the_second_page_waits_for_its_turn(tab: Tab, context: BrowserContext, address: str) -> None:
    tab.start()
    other = Tab(context, address)
    other.open("/")
    other.page.keyboard.press("Enter")
    other.wait("ms.state === 'queued'")
    assert "You are next" in other.page.locator("#curtain-text").inner_text()
    assert other.page.locator("#state").inner_text() == "Waiting, number 1"
    tab.page.close()
    other.wait("ms.state === 'streaming' && ms.counters.frames > 0")
    other.check()


def test_a_page_that_nobody_sees_goes_on(tab: Tab, player: WatchedPlayer) -> None:
    """No animation frames come there. Chromium without a window does not hide tabs: it is said to be hidden."""
    tab.start()
    tab.page.evaluate(
        "() => { Object.defineProperty(document, 'hidden', { value: true }); window.requestAnimationFrame = () => 0; }"
    )
    tab.page.wait_for_timeout(200)
    made = player.performance.index
    until(lambda: player.performance.index >= made + 4)
    assert tab.read("counters.waiting") <= 12


def test_the_figures_show_latency_rate_and_cache(tab: Tab) -> None:
    tab.start()
    tab.chunks(2)
    tab.drag([(0.5, 0.5), *((0.5 + 0.02 * i, 0.5) for i in range(12))])
    tab.chunks(3)
    tab.page.wait_for_timeout(400)
    latencies = tab.read("latencies")
    assert len(latencies) > 2 and all(ms > 0 for ms in latencies)
    assert tab.page.locator("#latency-ms").inner_text().endswith("ms")
    assert float(tab.page.locator("#fps").inner_text()) > 0
    assert tab.page.locator("#cache").inner_text() == "1.0 kB"
