"""The modules that know no page: playback clock, controls, figures, and the wire against the server's own code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from demo.server import protocol as wire
from tests.browser.driver import Tab


@pytest.fixture(scope="module")
def run(chromium: Browser, address: str) -> Iterator[Any]:
    """run(module, body, argument): what JavaScript `body` returns, in which m is the module and a the argument."""

    context = chromium.new_context()
    tab = Tab(context, address)
    tab.open("/gallery")

    def run(module: str, body: str, argument: Any = None) -> Any:
        script = f"async (a) => {{ const m = await import('/static/js/{module}.js'); {body} }}"
        return tab.page.evaluate(script, argument)

    yield run
    tab.check()
    context.close()


CHUNK = "const chunk = (name, count) => ({ name, frames: Array.from({ length: count }, (_, i) => `${name}${i}`) });"
TAKE = """const take = (now) => {
  const taken = play.take(now);
  return taken && [taken.chunk.frames[taken.index], taken.begun.map((chunk) => chunk.name).join('')];
};"""


def test_chunks_are_shown_without_a_gap(run: Any) -> None:
    shown = run(
        "playback",
        f"""{CHUNK}{TAKE}
      const play = new m.Playback(10), out = [];
      play.push(chunk("a", 2), 1000);
      for (const now of [1000, 1050, 1100]) out.push(take(now));
      play.push(chunk("b", 2), 1150);
      for (const now of [1199, 1201, 1301, 1500]) out.push(take(now));
      return [out, play.underruns, play.position];""",
    )
    assert shown == [[["a0", "a"], None, ["a1", ""], None, ["b0", "b"], ["b1", ""], None], 0, pytest.approx(0.4)]


def test_after_an_underrun_the_clock_starts_again(run: Any) -> None:
    shown = run(
        "playback",
        f"""{CHUNK}{TAKE}
      const play = new m.Playback(10), out = [];
      play.push(chunk("a", 1), 0);
      out.push(take(0));
      play.push(chunk("b", 2), 500);
      for (const now of [510, 590, 605]) out.push(take(now));
      return [out, play.underruns];""",
    )
    assert shown == [[["a0", "a"], ["b0", "b"], None, ["b1", ""]], 1]


def test_a_late_page_leaves_frames_out_but_acknowledges_every_chunk(run: Any) -> None:
    shown = run(
        "playback",
        f"""{CHUNK}{TAKE}
      const play = new m.Playback(10);
      play.push(chunk("a", 3), 0);
      play.push(chunk("b", 3), 10);
      return take(450);""",
    )
    assert shown == ["b1", "ab"]


def test_a_pause_moves_the_clock_and_flushing_forgets_what_waits(run: Any) -> None:
    shown = run(
        "playback",
        f"""{CHUNK}{TAKE}
      const play = new m.Playback(10), out = [];
      play.push(chunk("a", 3), 0);
      out.push(take(0));
      play.pause(60);
      out.push(take(400));
      play.resume(1060);
      for (const now of [1090, 1101]) out.push(take(now));
      play.push(chunk("b", 3), 1110);
      play.flush();
      return [out, play.waiting, take(2000)];""",
    )
    assert shown == [[["a0", "a"], None, None, ["a1", ""]], 0, None]


def test_a_snapshot_is_what_the_server_reads(run: Any) -> None:
    """A drag, a pin, a path and a camera, through the page's encoder and the server's decoder."""
    data = run(
        "controls",
        """
      const wire = await import('/static/js/protocol.js');
      const controls = new m.Controls(1.6, 200);
      controls.setGrid(8);
      controls.pinRest = false;
      controls.grab(1, [0.52, 0.5], 10);
      controls.drag(1, [0.62, 0.4], 20);
      controls.brush = 0;
      controls.pin([0.1, 0.2], 30);
      controls.startPath(2, [0.2, 0.8]);
      for (const x of [0.201, 0.3, 0.4]) controls.extendPath(2, [x, 0.8]);
      controls.finishPath(2, 40);
      controls.setCamera({ zoom: -0.5 }, 50);
      const snapshot = controls.snapshot();
      return [Array.from(wire.encodeControls(snapshot)), snapshot.inputAt, controls.snapshot()];""",
    )
    message, payload = wire.decode(bytes(data[0]), wire.FROM_CLIENT)
    assert isinstance(message, wire.Controls) and data[1:] == [10, None], "nothing is sent twice"
    controls = wire.controls_of(message, payload, 200)
    assert controls.revision == 1 and len(controls.ids) == 3 and controls.pinned.tolist() == [False, False, True]
    np.testing.assert_allclose(controls.xy, [[0.5375, 0.4], [0.6625, 0.4], [0.1, 0.2]], atol=1e-6)
    assert controls.camera is not None and controls.camera.zoom == -0.5
    np.testing.assert_allclose(controls.paths[0].line, [[0.2, 0.8], [0.3, 0.8], [0.4, 0.8]], atol=1e-6)
    np.testing.assert_allclose(controls.paths[0].members, [[0.2, 0.8]], atol=1e-6)


def test_points_stay_below_the_limit(run: Any) -> None:
    sizes = run(
        "controls",
        """
      const controls = new m.Controls(1.6, 30);
      controls.setGrid(8);
      controls.brush = 2;
      controls.startPath(1, [0.5, 0.5]);
      controls.extendPath(1, [0.7, 0.5]);
      const refused = controls.finishPath(1, 0);
      controls.brush = 0.2;
      controls.grab(2, [0.5, 0.5], 0);
      const { points } = controls.snapshot();
      return [refused, points.length, points.filter((p) => !p.pinned).length];""",
    )
    assert sizes[0] == "full" and sizes[1] == 30 and 0 < sizes[2] < 30


def test_the_server_s_messages_are_read(run: Any) -> None:
    frames = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    parts = wire.encode_frames(frames, "rgb8", 90)
    tracks = wire.tracks_payload(np.array([[[1.5, 1.0]], [[3.0, 0.5]]], np.float32), np.array([[True], [False]]), 2, 3)
    header = wire.Chunk(
        **dict.fromkeys(("seq", "chunk", "revision", "cache_bytes"), 1),
        **dict.fromkeys(("heard_ms", "begun_ms", "server_ms", "dit_ms", "decode_ms"), 0.5),
        frames=2, height=2, width=3, lengths=tuple(map(len, parts)), points=1,
    )  # fmt: skip
    read = run("protocol", """
      const message = m.decode(new Uint8Array(a).buffer);
      const { frames, tracks } = m.splitChunk(message.header, message.payload);
      return [message.name, frames.map((f) => Array.from(m.rgbToRgba(f))), tracks.map((t) => Array.from(t))];""",
      list(wire.encode(header, [*parts, tracks])))  # fmt: skip
    rgba = np.array(read[1]).reshape(2, 2, 3, 4)
    assert read[0] == "chunk" and (rgba[..., :3] == frames).all() and (rgba[..., 3] == 255).all()
    np.testing.assert_allclose(read[2], [[0.5, 0.5, 1], [1, 0.25, 0]])


def test_every_kind_has_the_server_s_number_and_other_versions_are_refused(run: Any) -> None:
    numbers = run("protocol_numbers", "return m;")
    names = {"RefreshSink": "refresh_sink", "NewPrompt": "prompt"}
    kinds = {names.get(k.__name__, k.__name__.lower()): k.kind for k in (*wire.FROM_CLIENT, *wire.FROM_SERVER)}
    assert numbers["KIND"] == kinds and numbers["VERSION"] == wire.VERSION
    newer = [*b"MS", wire.VERSION + 1, 64, 0, 0, 0, 0]
    logged = run(
        "protocol", "try { m.decode(new Uint8Array(a).buffer); } catch (error) { return error.message; }", newer
    )
    assert f"version {wire.VERSION + 1}" in logged


def test_figures(run: Any) -> None:
    samples = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    figures = run("meters", """
      const rate = new m.Rate();
      for (let t = 0; t <= 2000; t += 50) rate.tick(t);
      const delay = new m.ControlToPixel();
      [[1, 100], [2, 150], [3, 300]].forEach(([revision, at]) => delay.sent(revision, at));
      return [m.quantile(a, 0.5), m.quantile(a, 0.95), rate.at(2000), rate.at(3500), delay.shown(2, 400),
        delay.shown(3, 500)];""", samples)  # fmt: skip
    assert figures[:2] == pytest.approx([np.quantile(samples, 0.5), np.quantile(samples, 0.95)])
    assert figures[2:] == [20, 0, [300, 250], [200]]
