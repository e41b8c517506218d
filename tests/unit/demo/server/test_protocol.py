"""Messages survive the wire; what is malformed is an error that names the field."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest

from demo.server import protocol as wire
from infra.files import CHECKOUT

SMOOTHING = wire.Smoothing(smooth_seconds=0.1, max_speed=1.5, release="pin")
PATH = wire.DrawnPath(id=3, members=((0.1, 0.2), (0.3, 0.4)), line=((0, 0), (0.5, 0.25)), seconds=2.0)
CAMERA = wire.Camera(pan_x=0.1, pan_y=0, zoom=0.5, rotate=90, orbit=-10)
CONTROLS = wire.Controls(revision=7, count=2, paths=(PATH,), camera=CAMERA, transfer="webcam")
POINTS = wire.points_payload(np.array([5, 6]), np.array([[0.25, 0.5], [3.0, -9.0]]), np.array([0, 1]))
MESSAGES = [
    (wire.Hello(protocol=wire.VERSION, token="é"), b""),
    (wire.Start(picture="p", prompt="a cat", seed=2**31 - 1, smoothing=SMOOTHING, depth=""), b""),
    (CONTROLS, POINTS),
    (wire.Ack(seq=0, waited_ms=12.5), b""),
    (wire.Pause(), b""),
    (wire.Resume(), b""),
    (wire.Stop(), b""),
    (wire.Reset(), b""),
    (wire.RefreshSink(), b""),
    (wire.NewPrompt(prompt=""), b""),
    (wire.Webcam(), b"\xff\xd8"),
    (wire.Save(title="mine"), b""),
]


def header(kind: int, fields: object, version: int = wire.VERSION, length: int | None = None) -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return b"MS" + struct.pack("<BBI", version, kind, len(text) if length is None else length) + text


@pytest.mark.parametrize(("message", "payload"), MESSAGES, ids=lambda m: type(m).__name__)
def test_what_is_encoded_is_decoded(message, payload):
    assert wire.decode(wire.encode(message, [payload]), wire.FROM_CLIENT) == (message, payload)


def test_every_kind_has_a_number_of_its_own_and_stands_in_the_document():
    kinds = [*wire.FROM_CLIENT, *wire.FROM_SERVER]
    assert len({k.kind for k in kinds}) == len(kinds)
    page = (CHECKOUT / "docs" / "demo-protocol.md").read_text().partition("## From the client")[2]
    for kind in kinds:
        row = next(line for line in page.splitlines() if re.search(rf"\b{kind.kind}\b", "|".join(line.split("|")[1:3])))
        missing = [name for name in kind.model_fields if f"`{name}`" not in row]
        assert not missing or kind is wire.Stopped, f"{kind.__name__}: the document lacks {missing}"


ACK = {"seq": 1, "waited_ms": 0}
START = {"picture": "p", "prompt": "", "seed": 0, "smoothing": SMOOTHING.model_dump(), "depth": ""}
MALFORMED = [
    (b"", "malformed", "0 bytes"),
    (b"MS\x02", "malformed", "do not begin"),
    (b"XX" + header(4, ACK)[2:], "malformed", "do not begin"),
    (header(4, ACK, version=0), "version", "version 0"),
    (header(4, ACK, version=wire.VERSION + 1), "version", "reload the page"),
    (header(99, {}), "kind", "kind 99"),
    (header(64, {}), "kind", "kind 64"),
    (header(4, ACK, length=2**31), "malformed", "header of 2147483648"),
    (header(4, b" " * (wire.MAX_HEADER_BYTES + 1)), "malformed", "at most 1048576"),
    (header(4, b"\xff\xfe"), "field", "Ack"),
    (header(4, b"{"), "field", "Ack"),
    (header(4, []), "field", "Ack"),
    (header(4, None), "field", "Ack"),
    (header(4, {"seq": 1}), "field", "Ack.waited_ms"),
    (header(4, {**ACK, "more": 1}), "field", "Ack.more"),
    (header(4, {**ACK, "seq": "1"}), "field", "Ack.seq"),
    (header(4, {**ACK, "seq": True}), "field", "Ack.seq"),
    (header(4, {**ACK, "seq": 1.5}), "field", "Ack.seq"),
    (header(4, {**ACK, "seq": -1}), "field", "Ack.seq"),
    (header(4, {**ACK, "seq": 10**30}), "field", "Ack.seq"),
    (header(4, {**ACK, "waited_ms": float("nan")}), "field", "Ack.waited_ms"),
    (header(4, b'{"seq": 1, "waited_ms": 1e999}'), "field", "Ack.waited_ms"),
    (header(4, b"[" * 100000), "field", "Ack"),
    (header(4, ACK) + b"x", "malformed", "1 bytes after"),
    (header(2, {**START, "seed": -1}), "field", "Start.seed"),
    (header(2, {**START, "smoothing": {}}), "field", "Start.smoothing.smooth_seconds"),
    (
        header(2, {**START, "smoothing": {**SMOOTHING.model_dump(), "release": "drop"}}),
        "field",
        "Start.smoothing.release",
    ),
    (header(2, {**START, "prompt": "x" * 3000}), "field", "Start.prompt"),
    (header(1, {"protocol": wire.VERSION, "token": "x" * 300}), "field", "Hello.token"),
]


@pytest.mark.parametrize(("data", "code", "part"), MALFORMED)
def test_what_is_malformed_is_refused_by_name(data, code, part):
    with pytest.raises(wire.ProtocolError, match=re.escape(part)) as caught:
        wire.decode(data, wire.FROM_CLIENT)
    assert caught.value.code == code


def test_a_snapshot_is_read_whole_and_far_points_are_clipped():
    controls = wire.controls_of(CONTROLS, POINTS, 4)
    assert controls.revision == 7 and controls.transfer == "webcam"
    assert controls.ids.tolist() == [5, 6] and controls.pinned.tolist() == [False, True]
    np.testing.assert_array_equal(controls.xy, np.float32([[0.25, 0.5], [2.0, -1.0]]))
    assert controls.camera is not None and controls.camera.zoom == 0.5
    np.testing.assert_array_equal(controls.paths[0].line, np.float32([[0, 0], [0.5, 0.25]]))


def snapshot(rows: object, count: int | None = None, **fields: object) -> tuple[wire.Controls, bytes]:
    table = np.asarray(rows, "<f4").reshape(-1, 4)
    given = {
        "revision": 1,
        "count": len(table) if count is None else count,
        "paths": (),
        "camera": None,
        "transfer": "",
    }
    return wire.Controls(**{**given, **fields}), table.tobytes()


@pytest.mark.parametrize(
    ("rows", "fields", "part"),
    [
        ([[0, np.nan, 0, 0]], {}, "point 0 is not finite"),
        ([[0, 0, 0, 0], [1, 0, np.inf, 0]], {}, "point 1 is not finite"),
        ([[0.5, 0, 0, 0]], {}, "no whole number"),
        ([[-1, 0, 0, 0]], {}, "no whole number"),
        ([[2.0**24, 0, 0, 0]], {}, "no whole number"),
        ([[0, 0, 0, 0.5]], {}, "neither pinned"),
        ([[1, 0, 0, 0], [1, 0, 0, 1]], {}, "same id"),
        ([[0, 0, 0, 0]], {"count": 2}, "2 points take 32 bytes, got 16"),
        ([[i, 0, 0, 0] for i in range(10_000)], {}, "10000 points"),
        ([[0, 0, 0, 0]] * 0, {"paths": (PATH,) * 3}, "6 points"),
        ([], {"paths": (PATH, PATH)}, "two paths"),
    ],
)
def test_a_snapshot_that_cannot_be_steered_by_is_refused(rows, fields, part):
    message, payload = snapshot(rows, **fields)
    with pytest.raises(wire.ProtocolError, match=part):
        wire.controls_of(message, payload, 4)


@pytest.mark.parametrize("encoding", ["rgb8", "jpeg"])
def test_a_chunk_is_read_back(encoding):
    y, x = np.mgrid[:16, :24]
    frames = np.stack([np.stack([x * 8, y * 8, x + y + t], -1) for t in range(3)]).astype(np.uint8)
    xy_px, visible = np.float32([[[12, 8], [0, 16]]] * 3), np.array([[True, False]] * 3)
    parts = wire.encode_frames(frames, encoding, 95)
    sizes = {"lengths": tuple(map(len, parts)), "frames": 3, "height": 16, "width": 24, "points": 2}
    times = dict.fromkeys(("heard_ms", "begun_ms", "server_ms", "dit_ms", "decode_ms"), 0.0)
    chunk = wire.Chunk(seq=0, chunk=0, revision=0, cache_bytes=0, **sizes, **times)
    data = wire.encode(chunk, [*parts, wire.tracks_payload(xy_px, visible, 16, 24)])
    message, payload = wire.decode(data, wire.FROM_SERVER)
    got, tracks = wire.read_chunk(message, payload, encoding)
    assert np.abs(got.astype(int) - frames).max() <= (0 if encoding == "rgb8" else 12)
    np.testing.assert_allclose(tracks, np.float32([[[0.5, 0.5, 1], [0, 1, 0]]] * 3))
    with pytest.raises(wire.ProtocolError, match="does not hold"):
        wire.read_chunk(message, payload[:-1], encoding)
