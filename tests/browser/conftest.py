"""The demo's page in Chromium, served with the fake model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from configs.demo import DemoConfig
from demo.playing.player import PlayedChunk, Start
from demo.server.serve import address_of, listen, make_server
from infra.files import CHECKOUT, git_sha
from msmodel.steering.steering import Controls
from tests.browser.driver import Tab
from tests.unit.demo.fakes import ABOUT, WAIT_SECONDS, FakePerformance, FakePlayer

SECONDS = float(os.environ.get("MS_DEMO_SECONDS", "12"))  # that the pace is measured for
CHROMIUM = Path("/usr/bin/chromium")
# No GPU, no voice, no call home; a camera that shows a test pattern.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--disable-sync",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
    ),
]


@dataclass
class WatchedPerformance(FakePerformance):
    """The fake, which remembers what it was asked for. heard: the controls of every chunk."""

    heard: list[Controls] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether a point holds the disc."""
        return bool(self.grips)

    def next_chunk(self, controls: Controls) -> PlayedChunk:
        self.heard.append(controls)
        return super().next_chunk(controls)


class WatchedPlayer(FakePlayer):
    def open(self, start: Start) -> FakePerformance:
        time.sleep(0.05)  # a model takes its time
        super().open(start)
        self.opened[-1] = WatchedPerformance(self, start)
        return self.opened[-1]

    @property
    def performance(self) -> WatchedPerformance:
        """The newest."""
        performance = self.opened[-1]
        assert isinstance(performance, WatchedPerformance)
        return performance


@pytest.fixture(scope="package")
def player(tmp_path_factory: pytest.TempPathFactory) -> WatchedPlayer:
    """Twice as fast as clips are, since tests wait for chunks."""
    about, folder = replace(ABOUT, fps=48.0), tmp_path_factory.mktemp("recordings")
    return WatchedPlayer(about, folder, seconds=0.03, settle_seconds=0.01)


@pytest.fixture(scope="package")
def address(player: WatchedPlayer) -> Iterator[str]:
    with serving(player, DemoConfig(port=0)) as address:
        yield address


@contextmanager
def serving(player: WatchedPlayer, cfg: DemoConfig) -> Iterator[str]:
    """In a thread. Gives its address."""
    with listen(cfg) as listener:
        ready = threading.Event()
        server = make_server(player, cfg, listener, ready.set)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        assert ready.wait(WAIT_SECONDS), "the server did not come up"
        yield address_of(listener)
        server.should_exit = True
        thread.join(WAIT_SECONDS)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Playwright runs a loop in this thread while it is open: not longer than the tests of this folder need it."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(1000 * WAIT_SECONDS)
    yield context
    context.close()


@pytest.fixture
def phone(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    context.set_default_timeout(1000 * WAIT_SECONDS)
    yield context
    context.close()


@pytest.fixture
def tab(context: BrowserContext, address: str) -> Iterator[Tab]:
    """The page, loaded. At the end it must have asked nobody else for anything, and not have complained."""
    tab = Tab(context, address)
    tab.open("/")
    yield tab
    tab.check()


@dataclass
class Demo:
    address: str
    process: psutil.Process
    runs: Path
    serving_seconds: float


def note(**figures: Any) -> None:
    """Prints figures, and keeps them with the commit."""
    print(json.dumps(figures))
    figures |= {"git_sha": git_sha()}
    path = os.environ.get("MS_DEMO_FIGURES")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """`make demo` without a run: the student that ships."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "pipelines", "demo", "--preset", "nano", "--runs", str(runs), "demo.port=0"]
    began = time.monotonic()
    server = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    printed: list[str] = []
    address = None
    for line in server.stdout:
        printed.append(line)
        if address := re.search(r"serving on (http\S+)", line):
            break
    assert address is not None, "".join(printed)
    yield Demo(address[1], psutil.Process(server.pid), runs, time.monotonic() - began)
    server.send_signal(signal.SIGINT)
    assert server.wait(WAIT_SECONDS) == 0, "".join([*printed, server.stdout.read()])


@pytest.fixture
def real_tab(chromium: Browser, demo: Demo) -> Iterator[Tab]:
    """The real demo's page, loaded."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(1000 * WAIT_SECONDS)
    tab = Tab(context, demo.address)
    tab.open("/")
    yield tab
    tab.check()
    context.close()
