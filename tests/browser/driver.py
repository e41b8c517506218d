"""Drives the page, and reads what it shows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from playwright.sync_api import BrowserContext, ConsoleMessage

from tests.unit.demo.fakes import WAIT_SECONDS

# Middle of the fake model's disc in the picture, x and y as shares; null where there is none.
DISC = """() => {
  const { width, height } = document.getElementById("picture");
  const data = document.getElementById("picture").getContext("2d").getImageData(0, 0, width, height).data;
  let [n, x, y] = [0, 0, 0];
  for (let i = 0; i < width * height; i++) {
    const [red, , blue] = data.slice(4 * i, 4 * i + 3);
    if (red > 120 && red - blue > 80) [n, x, y] = [n + 1, x + (i % width) + 0.5, y + Math.floor(i / width) + 0.5];
  }
  return n ? [x / n / width, y / n / height] : null;
}"""
# How many pixels of the overlay have a colour, near enough.
COUNT = """([red, green, blue]) => {
  const overlay = document.getElementById("overlay");
  const data = overlay.getContext("2d").getImageData(0, 0, overlay.width, overlay.height).data;
  let n = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (Math.abs(data[i] - red) + Math.abs(data[i + 1] - green) + Math.abs(data[i + 2] - blue) < 24 && data[i + 3] > 200) n++;
  }
  return n;
}"""
COLOURS = {"green": (47, 213, 118), "red": (255, 90, 90), "blue": (91, 155, 255)}


class Tab:
    """One page. expected: what it may complain of, a regular expression."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page = context.new_page()
        self.address = address
        self.expected = "(?!)"
        self._complaints: list[str] = []
        self._asked: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self._complaints.append(str(error)))
        self.page.on("request", lambda request: self._asked.append(request.url))
        self.page.on("websocket", lambda socket: self._asked.append(socket.url.replace("ws:", "http:", 1)))

    def _listen(self, message: ConsoleMessage) -> None:
        own = "willReadFrequently" in message.text  # of `disc` and `coloured`
        if message.type in ("error", "warning") and not own:
            self._complaints.append(message.text)

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)
        if "gallery" not in path:
            self.page.wait_for_selector("#start:enabled")

    def check(self) -> None:
        unexpected = [c for c in self._complaints if not re.search(self.expected, c)]
        assert unexpected == [], unexpected
        strange = [
            url for url in self._asked if not url.startswith((f"{self.address}/", "data:", f"blob:{self.address}/"))
        ]
        assert strange == []

    def read(self, name: str) -> Any:
        """Of window.motionstream."""
        return self.page.evaluate(f"() => window.motionstream.{name}")

    @property
    def state(self) -> str:
        return self.read("state")

    @property
    def frames(self) -> int:
        return self.read("counters.frames")

    def wait(self, condition: str, timeout: float = 1000 * WAIT_SECONDS) -> None:
        """condition: JavaScript, in which ms is window.motionstream."""
        self.page.wait_for_function(f"() => {{ const ms = window.motionstream; return {condition}; }}", timeout=timeout)

    def start(self) -> None:
        """And the first frame is there."""
        self.page.keyboard.press("Enter")
        self.wait("ms.state === 'streaming' && ms.counters.frames > 0")

    def chunks(self, more: int = 1) -> None:
        """Waits until so many more chunks have come."""
        self.wait(f"ms.counters.chunks >= {self.read('counters.chunks') + more}")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of the window at a share of the picture."""
        box = self.page.locator("#overlay").bounding_box()
        assert box is not None
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def drag(
        self,
        line: list[tuple[float, float]],
        held: Callable[[], bool] = lambda: True,
        each: Callable[[], None] = lambda: None,
        release: bool = True,
    ) -> None:
        """With the mouse, through shares of the picture. held: waited for before it moves; each: called at every corner."""
        mouse = self.page.mouse
        mouse.move(*self.place(*line[0]))
        mouse.down()
        self.page.wait_for_timeout(20)
        until(held)
        for corner in line[1:]:
            mouse.move(*self.place(*corner), steps=3)
            each()
        if release:
            mouse.up()

    def disc(self) -> np.ndarray:
        """Middle of the disc that is seen, shares."""
        middle = self.page.evaluate(DISC)
        assert middle is not None, "no disc is seen"
        return np.array(middle)

    def coloured(self, colour: str) -> int:
        """Pixels of the overlay in a colour of points."""
        return self.page.evaluate(COUNT, list(COLOURS[colour]))

    def tool(self, name: str) -> None:
        self.page.locator(f"input[name=tool][value={name}]").check(force=True)
        self.page.evaluate("() => document.activeElement.blur()")

    def toast(self) -> str:
        """Text of the newest message."""
        return self.page.locator("#notes .note p").last.inner_text()


def until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Waits until a condition of the server holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
