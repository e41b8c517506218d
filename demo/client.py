"""A client of the demo without a browser: python -m demo.client [--drag 0.3,0.5,0.7,0.5] [--out video.mp4].

It shows chunks as the page does, in real time: a chunk's first frame once the last chunk has been shown, and then it sends the
acknowledgement. All times are measured by its own clock. Legend: T frames, H W pixels, n points.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from configs.demo import DemoConfig
from demo.server import protocol as wire
from demo.server.uploads import PICTURES
from stages.data.files import write_mp4

DEFAULTS = DemoConfig()
URL = f"http://{DEFAULTS.host}:{DEFAULTS.port}"
CONTROL_SECONDS = 1 / 30  # between two snapshots of a scripted drag
NO_SMOOTHING = wire.Smoothing(smooth_seconds=0.0, max_speed=0.0, release="free")  # a script's drag has no jitter
TYPES = {f".{name.lower()}": kind for kind, name in PICTURES.items()} | {".jpg": "image/jpeg"}
M = TypeVar("M", bound=wire.Message)


class DemoError(Exception):
    """An error message of the server. code: its word for the cause."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(f"{code}: {text}")


@dataclass(frozen=True)
class ShownChunk:
    """A chunk that has been shown. frames T H W 3 uint8, tracks T n 3 (x, y shares, visible). arrived, shown: seconds of the
    client's monotonic clock; shown is when its first frame was."""

    chunk: wire.Chunk
    frames: np.ndarray
    tracks: np.ndarray
    arrived: float
    shown: float


@dataclass
class ClientFigures:
    """What a client measures. chunk_ms: from the start of a chunk at the server until it is sent. control_ms: from the
    sending of
    a snapshot until the first chunk that follows it is shown, one for each snapshot. late_ms: how long the picture stood
    still."""

    first_frame_ms: float = 0.0  # from start to the first frame shown, of the last start
    fps: float = 0.0
    frames: int = 0
    chunks: int = 0
    chunk_ms: list[float] = field(default_factory=list)
    control_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Returns the medians, 95th percentiles and counts, in milliseconds."""
        out = {
            "first_frame_ms": round(self.first_frame_ms, 1),
            "fps": round(self.fps, 2),
            "frames": self.frames,
            "chunks": self.chunks,
        }
        for name, values in {"chunk": self.chunk_ms, "control_to_pixel": self.control_ms}.items():
            if values:
                out |= {f"{name}_p{p}_ms": round(float(np.percentile(values, p)), 1) for p in (50, 95)}
        return out | {"late_chunks": len(self.late_ms), "late_ms": round(sum(self.late_ms), 1)}


class Client:
    """A connection to the demo: `async with Client(url) as client: ...`. Messages that nobody awaited are kept in
    `messages`."""

    def __init__(self, url: str = URL, token: str = "", *, acknowledges: bool = True) -> None:
        self.url, self.token, self.acknowledges = url.rstrip("/"), token, acknowledges
        self.messages: deque[wire.Message] = deque(maxlen=1000)
        self.welcome: wire.Welcome | None = None
        self.figures = ClientFigures()
        self._revision = 0
        self._pending: deque[tuple[int, float]] = deque()  # snapshots sent, not shown yet
        self._started = 0.0  # when start was sent, while its first frame has not been shown
        self._first = self._ends = 0.0  # when the first chunk was shown, and when the last will have been
        self._since = 0  # frames shown since then, the last chunk's not among them

    async def __aenter__(self) -> Client:
        """Connects and sends hello. `enter` then waits for the turn."""
        address = self.url.replace("http", "ws", 1) + "/ws"
        self.socket: ClientConnection = await connect(address, max_size=None, compression=None, proxy=None)
        await self.send(wire.Hello(protocol=wire.VERSION, token=self.token))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.socket.close()

    async def enter(self) -> wire.Welcome:
        """Waits for the turn. Returns the server's welcome."""
        self.welcome = await self.expect(wire.Welcome)
        return self.welcome

    async def send(self, message: wire.Message, payload: Iterable[bytes] = ()) -> None:
        await self.socket.send(wire.encode(message, payload))

    async def start(
        self, picture: str, prompt: str = "", seed: int = 0, smoothing: wire.Smoothing = NO_SMOOTHING, depth: str = ""
    ) -> wire.Started:
        """Starts a stream. Revisions of the controls start at 1 again."""
        self._revision = 0
        self._pending.clear()
        self._restart()
        self._started = time.monotonic()
        await self.send(wire.Start(picture=picture, prompt=prompt, seed=seed, smoothing=smoothing, depth=depth))
        return await self.expect(wire.Started)

    async def control(
        self,
        dragged: Mapping[int, tuple[float, float]] | None = None,
        pinned: Mapping[int, tuple[float, float]] | None = None,
        paths: Sequence[wire.DrawnPath] = (),
        camera: wire.Camera | None = None,
        transfer: str = "",
    ) -> int:
        """Sends a complete snapshot of the controls and returns its revision. dragged, pinned: points by id, in shares."""
        points = [(i, *xy, 0.0) for i, xy in (dragged or {}).items()] + [
            (i, *xy, 1.0) for i, xy in (pinned or {}).items()
        ]
        self._revision += 1
        message = wire.Controls(
            revision=self._revision, count=len(points), paths=tuple(paths), camera=camera, transfer=transfer
        )
        self._pending.append((self._revision, time.monotonic()))
        await self.send(message, [np.asarray(points, "<f4").tobytes()])
        return self._revision

    async def next(self) -> wire.Message | ShownChunk:
        """Returns the next message; a chunk once it has been shown. Raises DemoError for an error message,
        ConnectionClosed at the end."""
        data = await self.socket.recv()
        arrived = time.monotonic()
        assert isinstance(data, bytes)
        message, payload = wire.decode(data, wire.FROM_SERVER)
        if isinstance(message, wire.Chunk):
            return await self._show(message, payload, arrived)
        if isinstance(message, wire.Error) and message.code != wire.NOTICE:
            raise DemoError(message.code, message.text)
        if isinstance(message, wire.Changed) and message.what == "reset":
            self._restart()
        return message

    async def expect(self, kind: type[M]) -> M:
        """Returns the next message of a kind. Chunks before it are shown; other messages go to `messages`."""
        while True:
            message = await self.next()
            if isinstance(message, kind):
                return message
            if isinstance(message, wire.Message):
                self.messages.append(message)

    async def chunk(self) -> ShownChunk:
        """Returns the next chunk once it has been shown. Other messages go to `messages`."""
        while True:
            message = await self.next()
            if isinstance(message, ShownChunk):
                return message
            self.messages.append(message)

    def _restart(self) -> None:
        self._ends, self._since = 0.0, 0

    async def _show(self, chunk: wire.Chunk, payload: bytes, arrived: float) -> ShownChunk:
        assert self.welcome is not None
        frames, tracks = wire.read_chunk(chunk, payload, self.welcome.encoding)
        await asyncio.sleep(max(0.0, self._ends - time.monotonic()))
        shown = time.monotonic()
        if self.acknowledges:
            await self.send(wire.Ack(seq=chunk.seq, waited_ms=(shown - arrived) * 1000))
        self._measure(chunk, shown)
        return ShownChunk(chunk, frames, tracks, arrived, shown)

    def _measure(self, chunk: wire.Chunk, shown: float) -> None:
        assert self.welcome is not None
        figures = self.figures
        if self._ends and shown - self._ends > 1 / self.welcome.fps:
            figures.late_ms.append((shown - self._ends) * 1000)
        if not self._ends:
            self._first = shown
            if not chunk.chunk and self._started:
                figures.first_frame_ms, self._started = (shown - self._started) * 1000, 0.0
        elif shown > self._first:
            figures.fps = self._since / (shown - self._first)
        late = not self._ends or shown - self._ends > 0.5 / self.welcome.fps
        self._ends = (shown if late else self._ends) + chunk.frames / self.welcome.fps
        self._since += chunk.frames
        figures.frames += chunk.frames
        figures.chunks += 1
        figures.chunk_ms.append(chunk.server_ms - chunk.begun_ms)
        while self._pending and self._pending[0][0] <= chunk.revision:
            figures.control_ms.append((shown - self._pending.popleft()[1]) * 1000)

    async def pictures(self) -> list[dict[str, Any]]:
        """Returns the list of /api/pictures."""
        return json.loads(await self._http("/api/pictures"))

    async def upload(self, data: bytes, content_type: str, to: str = "/api/pictures") -> dict[str, Any]:
        """Uploads a file and returns the server's answer. Raises OSError (urllib's HTTPError) where it is refused."""
        return json.loads(await self._http(to, data, content_type))

    async def _http(self, path: str, data: bytes | None = None, content_type: str = "") -> bytes:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if data is not None:
            headers["Content-Type"] = content_type
        request = urllib.request.Request(self.url + path, data, headers)

        def fetch() -> bytes:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()

        return await asyncio.to_thread(fetch)


async def drag(client: Client, line: Sequence[float], pins: Sequence[tuple[float, float]], seconds: float) -> None:
    """Drags one point along a line (x0, y0, x1, y1) at constant speed, in 80% of the time, and then holds it."""
    begun, pinned = time.monotonic(), {2 + i: xy for i, xy in enumerate(pins)}
    while (elapsed := time.monotonic() - begun) < seconds:
        share = min(1.0, elapsed / (0.8 * seconds))
        x, y = (line[i] + (line[i + 2] - line[i]) * share for i in (0, 1))
        await client.control({1: (x, y)}, pinned)
        await asyncio.sleep(CONTROL_SECONDS)


async def play(options: argparse.Namespace) -> ClientFigures:
    """Plays one session with the options of the command line."""
    async with Client(options.url, options.token) as client:
        welcome = await client.enter()
        print(
            f"{welcome.preset}: {welcome.student}, {welcome.width} x {welcome.height} at {welcome.fps:g} fps",
            flush=True,
        )
        picture, prompt = options.picture, options.prompt
        known = {p["id"]: p for p in await client.pictures()}
        if not picture:
            picture = next(iter(known))
        elif picture not in known:
            file = Path(picture)
            picture = (await client.upload(file.read_bytes(), TYPES.get(file.suffix.lower(), "")))["id"]
        await client.start(
            picture, known.get(picture, {}).get("prompt", "") if prompt is None else prompt, options.seed
        )
        kept = await _record(client, options)
        if options.out:
            write_mp4(Path(options.out), np.concatenate(kept), welcome.fps)
            print(f"wrote {options.out}")
        return client.figures


async def _record(client: Client, options: argparse.Namespace) -> list[np.ndarray]:
    """Plays for options.seconds. Returns the chunks' frames, if they are to be written."""
    kept, dragging = [], None
    if options.drag:
        dragging = asyncio.create_task(drag(client, options.drag, options.pin, options.seconds))
    elif options.pin:
        await client.control(pinned={2 + i: xy for i, xy in enumerate(options.pin)})
    until = time.monotonic() + options.seconds
    try:
        while time.monotonic() < until:
            shown = await client.chunk()
            kept += [shown.frames] if options.out else []
    finally:
        if dragging is not None:
            dragging.cancel()
            await asyncio.gather(dragging, return_exceptions=True)
    return kept


def _numbers(count: int) -> Any:
    def read(text: str) -> tuple[float, ...]:
        values = tuple(float(v) for v in text.split(","))
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"{text!r} is not {count} numbers with commas between them")
        return values

    return read


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 done, 1 refused or failed, 2 an invalid command."""
    parser = argparse.ArgumentParser("python -m demo.client", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default=URL, help=f"default: {URL}")
    parser.add_argument("--token", default="", help="the token that the server was started with")
    parser.add_argument(
        "--picture", default="", help="id of a picture of the server, or a file to upload (default: the first picture)"
    )
    parser.add_argument("--prompt", default=None, help="default: the picture's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--drag", type=_numbers(4), help="x0,y0,x1,y1 in shares of the frame: a point to drag")
    parser.add_argument("--pin", type=_numbers(2), nargs="*", default=[], help="x,y: points to hold still")
    parser.add_argument("--out", default="", help="mp4 file to write the shown frames to")
    options = parser.parse_args(arguments)
    try:
        figures = asyncio.run(play(options))
    except (DemoError, OSError, ConnectionClosed) as error:
        print(f"{options.url}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(figures.summary(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
