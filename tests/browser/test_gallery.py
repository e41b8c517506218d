"""Saving, the gallery, and both pages on a small screen."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import BrowserContext

from configs.demo import DemoConfig
from tests.browser.conftest import WatchedPlayer, serving
from tests.browser.driver import Tab


def test_a_saved_session_plays_in_the_gallery(tab: Tab, player: WatchedPlayer) -> None:
    tab.start()
    tab.chunks(4)
    tab.page.locator("#title").fill("A disc")
    tab.page.get_by_role("button", name="Save").click()
    tab.page.wait_for_selector("text=Saved.")
    tab.page.get_by_role("link", name="See it in the gallery").click()
    card = tab.page.locator("article").first
    card.wait_for()
    recording = player.recordings()[0]
    assert "A disc" in card.inner_text() and "a disc, dusk" in card.inner_text()
    assert f'make eval PRESET=fake ARGS="eval.replay={recording["folder"]}"' in card.inner_text()
    assert recording["student"] in card.inner_text() and f"{recording['frames']} frames" in card.inner_text()
    played = card.locator("video").evaluate(
        "async (video) => { await video.play();"
        " await new Promise((done) => (video.ontimeupdate = () => video.currentTime > 0 && done()));"
        " return [video.currentTime, video.videoWidth, video.error]; }"
    )
    assert played[0] > 0 and played[1:] == [64, None]
    links = [link.get_attribute("href") for link in card.locator(".links a").all()]
    assert len(links) >= 4
    for link in links:
        assert link is not None and tab.page.request.get(f"{tab.address}/{link}").ok


def test_an_empty_gallery_says_what_to_do(context: BrowserContext, address: str) -> None:
    tab = Tab(context, address)
    tab.page.route("**/api/recordings", lambda route: route.fulfill(json=[]))
    tab.open("/gallery")
    tab.page.wait_for_selector("text=Nothing is saved yet")
    tab.page.get_by_role("link", name="Go and stream").click()
    tab.page.wait_for_url(f"{address}/")
    tab.check()


@pytest.mark.parametrize("path", ["/", "/gallery"])
def test_nothing_is_wider_than_a_small_screen(context: BrowserContext, address: str, path: str) -> None:
    tab = Tab(context, address)
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.open(path)
    if path == "/":
        tab.page.evaluate("() => document.querySelectorAll('details').forEach((details) => (details.open = true))")
        tab.tool("path")
    assert tab.page.evaluate("() => document.documentElement.scrollWidth") == 390
    tab.check()


def test_a_server_that_is_gone_is_reported(context: BrowserContext, address: str) -> None:
    tab = Tab(context, address)
    tab.expected = "Failed to load|ERR_FAILED"
    tab.page.route("**/api/about", lambda route: route.abort())
    tab.page.goto(f"{address}/")
    tab.page.wait_for_selector("#notes [role=alert]")
    assert re.search("could not begin", tab.toast())
    tab.check()


def test_a_page_with_the_token_may_do_all(context: BrowserContext, player: WatchedPlayer) -> None:
    with serving(player, DemoConfig(port=0, token="secret")) as address:
        stranger = Tab(context, address)
        stranger.expected = "status of 401"
        stranger.page.goto(f"{address}/")
        stranger.page.wait_for_selector("text=/token is missing/")
        stranger.check()
        tab = Tab(context, address)
        tab.open("/?token=secret")
        assert "token" not in tab.page.url
        tab.start()
        tab.check()
        tab.page.close()
