"""The demo's messages: docs/demo-protocol.md in code. Both the server and the Python client use it.

A message is a model of pydantic (its fields are the header) and a payload of bytes. Legend: n points, T frames, H W pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msmodel.steering import steering

VERSION = 2
MAGIC = b"MS"
MAX_HEADER_BYTES = 1 << 20
MAX_PROMPT = 2000  # characters
MAX_NAME = 200  # characters of any other text
MAX_PATH_CORNERS = 2000
MAX_PATH_SECONDS = 3600
MAX_SEED = (1 << 31) - 1
MAX_ID = 1 << 24  # ids are sent as float32
POSITION_RANGE = (-1.0, 2.0)  # shares of the frame; positions are clipped to it
# Close codes of the WebSocket
LEFT, GOING, RULES, FAULT, FULL, IDLE = 1000, 1001, 1008, 1011, 1013, 4000
NOTICE = "notice"  # code of an error message that reports no error, but something that the user should know
_HEAD = struct.Struct("<2sBBI")  # magic, version, kind, length of the header
HEAD_BYTES = _HEAD.size


class ProtocolError(ValueError):
    """An invalid message. code: a word for programs; the text says what is wrong, where, and what to do."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


class Message(BaseModel):
    """The header of one kind of message. Types are not converted; unknown and missing fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    kind: ClassVar[int]


Share = tuple[float, float]
Natural = Annotated[int, Field(ge=0, le=MAX_SEED)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Name = Annotated[str, Field(max_length=MAX_NAME)]


class Smoothing(Message):
    """How dragged points are smoothed before the model follows them: msmodel.steering."""

    smooth_seconds: float = Field(ge=0, le=10)
    max_speed: float = Field(ge=0, le=1000)
    release: Literal["free", "pin"]


class DrawnPath(Message):
    """A drawn path along which a group of points moves."""

    id: Annotated[int, Field(ge=0, lt=MAX_ID)]
    members: tuple[Share, ...] = Field(min_length=1)
    line: tuple[Share, ...] = Field(min_length=1, max_length=MAX_PATH_CORNERS)
    seconds: float = Field(gt=0, le=MAX_PATH_SECONDS)


class Camera(Message):
    """Speeds of the camera: frame widths or heights (pan), doublings (zoom) or degrees (rotate, orbit) a second."""

    pan_x: float = Field(ge=-8, le=8)
    pan_y: float = Field(ge=-8, le=8)
    zoom: float = Field(ge=-8, le=8)
    rotate: float = Field(ge=-720, le=720)
    orbit: float = Field(ge=-720, le=720)


class Hello(Message):
    kind = 1
    protocol: int
    token: Name


class Start(Message):
    kind = 2
    picture: Name
    prompt: Prompt
    seed: Natural
    smoothing: Smoothing
    depth: Name


class Controls(Message):
    """A complete snapshot of the controls. Payload: `count` rows of 4 float32: id, x, y, pinned (0 or 1)."""

    kind = 3
    revision: Natural
    count: Natural
    paths: tuple[DrawnPath, ...] = Field(max_length=1000)
    camera: Camera | None
    transfer: Name


class Ack(Message):
    """Acknowledges a chunk. waited_ms: time from its arrival at the client until its first frame was shown."""

    kind = 4
    seq: Natural
    waited_ms: float = Field(ge=0)


class Pause(Message):
    kind = 5


class Resume(Message):
    kind = 6


class Stop(Message):
    kind = 7


class Reset(Message):
    kind = 8


class RefreshSink(Message):
    kind = 9


class NewPrompt(Message):
    kind = 10
    prompt: Prompt


class Webcam(Message):
    """A webcam frame. Payload: one JPEG."""

    kind = 11


class Save(Message):
    kind = 12
    title: Name


class Welcome(Message):
    kind = 64
    protocol: int
    session: str
    preset: str
    student: str
    digest: str
    height: int
    width: int
    fps: float
    first_frames: int
    chunk_frames: int
    max_points: int
    grid: tuple[int, int]
    encoding: Literal["rgb8", "jpeg"]
    device: str


class Queued(Message):
    kind = 65
    position: int


class Started(Message):
    kind = 66
    picture: str
    prompt: str
    seed: int
    revision: int


class Chunk(Message):
    """One chunk of the video. Payload: the frames, then T n 3 float32 of the tracks: x, y (shares), visible."""

    kind = 67
    seq: int
    chunk: int
    revision: int
    heard_ms: float
    begun_ms: float
    server_ms: float
    dit_ms: float
    decode_ms: float
    frames: int
    height: int
    width: int
    lengths: tuple[int, ...]
    cache_bytes: int
    points: int


class Paused(Message):
    kind = 68
    chunk: int


class Resumed(Message):
    kind = 69
    chunk: int


class Stopped(Message):
    kind = 70
    reason: str


class Changed(Message):
    kind = 71
    what: Literal["prompt", "sink", "reset"]
    chunk: int


class Saved(Message):
    kind = 72
    id: str


class Error(Message):
    kind = 73
    code: str
    text: str
    fatal: bool


FROM_CLIENT: tuple[type[Message], ...] = (
    *(Hello, Start, Controls, Ack, Pause, Resume, Stop, Reset, RefreshSink, NewPrompt, Webcam, Save),
)
FROM_SERVER: tuple[type[Message], ...] = (
    *(Welcome, Queued, Started, Chunk, Paused, Resumed, Stopped, Changed, Saved, Error),
)


def encode(message: Message, payload: Iterable[bytes] = ()) -> bytes:
    """Returns the bytes of a message. payload: its parts, in order."""
    header = message.model_dump_json().encode()
    return b"".join((_HEAD.pack(MAGIC, VERSION, message.kind, len(header)), header, *payload))


def decode(data: bytes, known: Sequence[type[Message]]) -> tuple[Message, bytes]:
    """Returns a message and its payload. known: the kinds that are accepted; anything else raises ProtocolError."""
    if len(data) < _HEAD.size or data[:2] != MAGIC:
        raise ProtocolError("malformed", f"{len(data)} bytes that do not begin as a message: MS, version, kind, length")
    _, version, number, length = _HEAD.unpack_from(data)
    if version != VERSION:
        raise ProtocolError(
            "version", f"protocol version {version}; this server speaks version {VERSION}: reload the page"
        )
    kind = next((k for k in known if k.kind == number), None)
    if kind is None:
        raise ProtocolError("kind", f"kind {number} is not known in this direction")
    name = kind.__name__
    if length > MAX_HEADER_BYTES or length > len(data) - _HEAD.size:
        raise ProtocolError(
            "malformed",
            f"{name}: a header of {length} bytes in a message of {len(data)}; at most {MAX_HEADER_BYTES}, and all of it",
        )
    header, payload = data[_HEAD.size : _HEAD.size + length], data[_HEAD.size + length :]
    try:
        message = kind.model_validate_json(header)
    except ValidationError as error:
        raise ProtocolError("field", _describe(name, error)) from None
    if payload and kind not in (Controls, Webcam, Chunk):
        raise ProtocolError("malformed", f"{name}: {len(payload)} bytes after the header; there must be none")
    return message, payload


def _describe(name: str, error: ValidationError) -> str:
    """Returns the first mistake in words, with its field, and how many others there are."""
    first, others = (
        error.errors(include_url=False, include_context=False, include_input=False)[0],
        error.error_count() - 1,
    )
    where = ".".join([name, *(str(part) for part in first["loc"])])
    return f"{where}: {first['msg']}" + (f" (and {others} more)" if others else "")


def points_payload(ids: np.ndarray, xy: np.ndarray, pinned: np.ndarray) -> bytes:
    """Returns the payload of Controls. ids n, xy n 2 in shares, pinned n bool."""
    return np.column_stack((ids, xy, pinned)).astype("<f4").tobytes()


def controls_of(message: Controls, payload: bytes, max_points: int) -> steering.Controls:
    """Returns the snapshot in a message. Raises ProtocolError, which names the point or path, for an invalid one."""
    total = message.count + sum(len(p.members) for p in message.paths)
    if total > max_points:
        raise ProtocolError("too_many", f"Controls: {total} points, members of paths included; at most {max_points}")
    if len(payload) != 16 * message.count:
        raise ProtocolError(
            "malformed", f"Controls.count: {message.count} points take {16 * message.count} bytes, got {len(payload)}"
        )
    rows = np.frombuffer(payload, "<f4").reshape(-1, 4)
    ids, pinned = rows[:, 0], rows[:, 3]
    _require(rows, np.isfinite(rows).all(axis=1), "is not finite")
    _require(
        rows, (ids >= 0) & (ids < MAX_ID) & (ids == np.floor(ids)), "has no whole number from 0 to 2^24-1 as its id"
    )
    _require(rows, (pinned == 0) | (pinned == 1), "is neither pinned (1) nor dragged (0)")
    if len(np.unique(ids)) != len(ids):
        raise ProtocolError("field", "Controls: two points have the same id")
    if len({p.id for p in message.paths}) != len(message.paths):
        raise ProtocolError("field", "Controls.paths: two paths have the same id")
    camera = None if message.camera is None else steering.Camera(**message.camera.model_dump())
    paths = tuple(steering.DrawnPath(p.id, _shares(p.members), _shares(p.line), p.seconds) for p in message.paths)
    return steering.Controls(
        revision=message.revision,
        ids=ids.astype(np.int64),
        xy=_shares(rows[:, 1:3]),
        pinned=pinned == 1,
        paths=paths,
        camera=camera,
        transfer=message.transfer,
    )


def _require(rows: np.ndarray, good: np.ndarray, what: str) -> None:
    """Raises ProtocolError about the first row that is not good. rows: n 4; good: n bool."""
    if not good.all():
        first = int(np.argmin(good))
        raise ProtocolError("field", f"Controls: point {first} {what}: {rows[first].tolist()} (id, x, y, pinned)")


def _shares(points: Any) -> np.ndarray:
    """Returns n 2 float32, clipped to POSITION_RANGE."""
    return np.clip(np.asarray(points, np.float32).reshape(-1, 2), *POSITION_RANGE)


def encode_frames(frames: np.ndarray, encoding: str, quality: int) -> list[bytes]:
    """Encodes frames (T H W 3 uint8) into one byte string each. quality: of JPEG, 1 to 100."""
    if encoding == "rgb8":
        return [np.ascontiguousarray(frame).tobytes() for frame in frames]
    out = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
        out.append(buffer.getvalue())
    return out


def tracks_payload(xy_px: np.ndarray, visible: np.ndarray, height: int, width: int) -> bytes:
    """Encodes the tracks that follow a chunk's frames. xy_px: T n 2 in clip pixels; visible: T n."""
    shares = xy_px / np.array([width, height], np.float32)
    return np.concatenate((shares, visible[..., None]), axis=2).astype("<f4").tobytes()


def read_chunk(chunk: Chunk, payload: bytes, encoding: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a chunk's frames (T H W 3 uint8) and tracks (T n 3: x, y in shares, visible). Raises ProtocolError where the
    payload does not match the header."""
    size = sum(chunk.lengths)
    if len(payload) != size + 12 * chunk.frames * chunk.points or len(chunk.lengths) != chunk.frames:
        raise ProtocolError("malformed", f"Chunk: a payload of {len(payload)} bytes does not hold what its header says")
    edges = np.cumsum([0, *chunk.lengths])
    parts = [payload[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    frames = [
        np.frombuffer(p, np.uint8).reshape(chunk.height, chunk.width, 3)
        if encoding == "rgb8"
        else np.asarray(Image.open(io.BytesIO(p), formats=("JPEG",)))
        for p in parts
    ]
    tracks = np.frombuffer(payload[size:], "<f4").reshape(chunk.frames, chunk.points, 3)
    return np.stack(frames), tracks
