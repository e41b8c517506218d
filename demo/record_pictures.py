"""Records the README's moving picture of a drag, drag.webp, for `make pictures`.

The real demo runs with the shipped student, and headless Chromium drags a point on its page. Every frame that the page shows is
kept with the page's own overlay over it. The mouse follows the stream's clock, not the wall clock, and frames are laid out at
the clip's pace, so the picture does not depend on the machine's speed and claims nothing about it.
Needs playwright and Chromium (see CONTRIBUTING.md).
"""

from __future__ import annotations

import base64
import io
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from infra.files import CHECKOUT
from msmodel.pretrained import SHIPPED
from stages.data.files import write_webp

CHROMIUM = Path("/usr/bin/chromium")
PICTURE = "scene-heldout-00010-00-drag"  # one cream-coloured object on green
# Corners of the drag as (seconds of the stream, x, y in shares of the frame): hold, move, hold.
DRAG = ((0.0, 0.5, 0.66), (0.5, 0.5, 0.66), (3.1, 0.75, 0.45), (4.2, 0.75, 0.45))
SCALE = 8  # pixels of the recording for one of the clip
MAX_BYTES = 2_500_000
FPS = 24.0  # of the preset nano
# Keeps [seconds of the stream, PNG] of every frame that the page shows from now on, the overlay over it.
RECORD = """(scale) => {
  const [picture, overlay] = ["picture", "overlay"].map((id) => document.getElementById(id));
  const copy = document.createElement("canvas");
  Object.assign(copy, { width: picture.width * scale, height: picture.height * scale });
  const context = copy.getContext("2d");
  const kept = (window.kept = []);
  let last = -1;
  const keep = () => {
    const { position } = window.motionstream.counters;
    if (position !== last && window.motionstream.state === "streaming") {
      last = position;
      context.imageSmoothingEnabled = false;
      context.drawImage(picture, 0, 0, copy.width, copy.height);
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(overlay, 0, 0, copy.width, copy.height);
      kept.push([position, copy.toDataURL("image/png")]);
    }
    requestAnimationFrame(keep);
  };
  requestAnimationFrame(keep);
}"""


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """Runs the demo with the shipped student, and gives its address."""
    command = [sys.executable, "-m", "pipelines", "demo", "--preset", "nano", "--runs", str(runs)]
    command += ["demo.port=0", f"demo.student={SHIPPED}"]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        printed = []
        try:
            for line in server.stdout:
                printed.append(line)
                if address := re.search(r"serving on (http\S+)", line):
                    yield address[1]
                    return
            raise ValueError("the demo did not start: " + "".join(printed))
        finally:
            server.send_signal(signal.SIGINT)
            server.stdout.read()


def place_at(seconds: float) -> tuple[float, float]:
    """Returns where the mouse is at a time of the stream, in shares of the frame."""
    times, x, y = zip(*DRAG, strict=True)
    return float(np.interp(seconds, times, x)), float(np.interp(seconds, times, y))


def record(address: str) -> list[tuple[float, Image.Image]]:
    """Drags on the page. Returns the frames that it showed, with their times in the stream in seconds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector("#start:enabled")
        page.locator(f"[role=radio][data-id='{PICTURE}']").click()
        page.evaluate("() => document.activeElement.blur()")
        box = page.locator("#overlay").bounding_box()
        assert box is not None

        def move(seconds: float) -> None:
            x, y = place_at(seconds)
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])

        move(0.0)
        page.keyboard.press("Enter")
        page.wait_for_function("() => window.motionstream.counters.position > 0")
        page.evaluate(RECORD, SCALE)
        move(0.0)
        page.mouse.down()
        while (seconds := page.evaluate("() => window.motionstream.counters.position")) < DRAG[-1][0]:
            move(seconds)
            page.wait_for_timeout(15)
        kept = page.evaluate("() => window.kept")
        browser.close()
    return [(time, _opened(data)) for time, data in kept]


def _opened(data_url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2]))).convert("RGB")


def record_drag(file: Path) -> None:
    """Records the drag and writes it to a file. Raises ValueError or OSError where the demo or Chromium does not start."""
    if not CHROMIUM.exists():
        raise ValueError(f"{CHROMIUM} is not installed, so the drag cannot be recorded: apt-get install chromium")
    with tempfile.TemporaryDirectory() as runs, served(Path(runs)) as address:
        recorded = record(address)
    times, frames = zip(*recorded, strict=True)
    write_webp(file, frames, durations(times, FPS), MAX_BYTES)


def durations(times: Sequence[float], fps: float) -> list[int]:
    """Returns milliseconds for frames at these times in the stream: each lasts until the next one, the last 1 / fps."""
    return [round(1000 * (b - a)) for a, b in pairwise(times)] + [round(1000 / fps)]
