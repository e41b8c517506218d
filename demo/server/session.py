"""One user's stream: turns protocol messages into calls of a performance. It does no network I/O itself.

`handle` accepts messages at any time; `run` makes the chunks, in one task. The model's calls block, so they run in the model
thread, one after another. Controls are read when a chunk begins, and at most one chunk is unacknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from demo.playing.player import Performance, PlayedChunk, Start
from demo.server import protocol as wire
from demo.server.pacing import Pacer
from demo.server.state import ServerState
from demo.server.uploads import Motion, read_webcam
from msmodel.steering import steering
from msmodel.steering.smoothing import Steady

Send = Callable[[wire.Message, Sequence[bytes]], Awaitable[None]]
WAITING_REQUESTS = 32  # unserved ones; a user makes one at a time
REMEMBERED_CONTROLS = 1000  # snapshots whose latency is not known yet
LIVE = "webcam"
T = TypeVar("T")


class RequestRefused(Exception):
    """A request that cannot be served now. Its sender gets an error message, and the session goes on."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk as the model thread returns it. parts: its payload; lengths: bytes of each frame."""

    played: PlayedChunk
    parts: list[bytes]
    lengths: tuple[int, ...]
    cache_bytes: int


class Session:
    """One user's stream. opened: when the socket was opened (time.monotonic); times on the wire count from it."""

    def __init__(self, state: ServerState, send: Send, opened: float) -> None:
        self._state, self._send, self._opened = state, send, opened
        self._about, self._cfg = state.player.about, state.cfg
        self._encoding = state.cfg.encoding_for(self._about.height, self._about.width)
        self._pacer = Pacer(state.cfg.margin_ms / 1000)
        self._wake = asyncio.Event()
        self._requests: deque[wire.Message] = deque()
        self._webcam: bytes | None = None
        self._performance: Performance | None = None  # only the model thread writes it
        self._motions: set[str] = set()  # ids of the motions that the performance has
        self._playing = self._paused = False  # a performance that was stopped can still be saved
        self._disturbed = False  # a pause or a resume came since the last chunk was sent
        self._next = 0  # index of the next chunk
        self._seq = -1
        self._unacknowledged: int | None = None
        self._sent_at = 0.0
        self._reset_controls(steering.InputSmoothing())

    def _reset_controls(self, smoothing: steering.InputSmoothing) -> None:
        """Forgets the controls, so that revisions may start at 1 again."""
        self._controls, self._received_at = steering.Controls(), 0.0
        self._steady = Steady(smoothing, self._about.max_points)
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=REMEMBERED_CONTROLS)
        self._shown = 0  # revision of the chunk that is out

    # Messages

    def handle(self, message: wire.Message, payload: bytes) -> None:
        """Accepts any message but hello. Raises ProtocolError for an invalid one."""
        if isinstance(message, wire.Controls):
            self._handle_controls(message, payload)
        elif isinstance(message, wire.Ack):
            self._handle_ack(message)
        elif isinstance(message, wire.Webcam):
            self._webcam = payload
        elif len(self._requests) >= WAITING_REQUESTS:
            raise wire.ProtocolError("too_many", f"{WAITING_REQUESTS} requests are waiting already; send one at a time")
        else:
            if isinstance(message, wire.Start):
                self._reset_controls(_smoothing(message))
            self._requests.append(message)
        self._wake.set()

    def _handle_controls(self, message: wire.Controls, payload: bytes) -> None:
        controls = wire.controls_of(message, payload, self._about.max_points)
        if controls.revision <= self._controls.revision:
            raise wire.ProtocolError(
                "field", f"Controls.revision: {controls.revision} does not rise above {self._controls.revision}"
            )
        if controls.transfer not in ("", LIVE) and self._motion(controls.transfer) is None:
            raise wire.ProtocolError("field", f"Controls.transfer: no motion {controls.transfer!r}; upload it (again)")
        self._controls, self._received_at = controls, time.monotonic()
        self._steady.hear(controls, self._received_at)
        self._arrivals.append((controls.revision, self._received_at))

    def _motion(self, name: str) -> Motion | None:
        return self._state.motions.get(name)

    def _handle_ack(self, message: wire.Ack) -> None:
        if message.seq > self._seq:
            raise wire.ProtocolError("field", f"Ack.seq: {message.seq} was not sent yet; the last was {self._seq}")
        if message.seq != self._unacknowledged:
            return  # it belongs to a chunk from before a reset or a start
        now, self._unacknowledged = time.monotonic(), None
        self._pacer.acknowledged(now, message.waited_ms / 1000, measured=not self._disturbed)
        while self._arrivals and self._arrivals[0][0] <= self._shown:
            self._state.meters.control_to_pixel.observe(now - self._arrivals.popleft()[1])

    @property
    def overdue(self) -> float:
        """Seconds for which a chunk has been unacknowledged; 0 during a pause."""
        if self._unacknowledged is None or self._paused:
            return 0.0
        return time.monotonic() - self._sent_at

    # Chunks and requests

    async def run(self) -> None:
        """Serves requests and makes chunks until it is cancelled. Raises what the model raises."""
        while True:
            await self._wait()
            while self._requests:
                request = self._requests.popleft()
                try:
                    await self._serve(request)
                except RequestRefused as refusal:
                    self._state.meters.errors.labels(refusal.code).inc()
                    await self._send(wire.Error(code=refusal.code, text=str(refusal), fatal=False), ())
            if self._webcam is not None:
                await self._forward_webcam()
            if self._due() <= time.monotonic():
                await self._chunk()

    async def _wait(self) -> None:
        """Returns when a message comes or the next chunk is due."""
        if self._requests or self._webcam is not None:
            return
        self._wake.clear()
        due = self._due()
        seconds = None if due == float("inf") else max(0.0, due - time.monotonic())
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _due(self) -> float:
        ready = self._playing and not self._paused and self._unacknowledged is None
        return self._pacer.due if ready else float("inf")

    async def _serve(self, request: wire.Message) -> None:
        if isinstance(request, wire.Start):
            return await self._start(request)
        if isinstance(request, wire.Save):
            return await self._save(request.title)
        if not self._playing:
            raise RequestRefused("not_started", f"{type(request).__name__}: nothing is playing; send start first")
        if isinstance(request, wire.Pause | wire.Resume):
            self._paused, self._disturbed = isinstance(request, wire.Pause), True
            if not self._paused and self._unacknowledged is None:
                self._pacer.restart()
            self._sent_at = time.monotonic()
            await self._send((wire.Paused if self._paused else wire.Resumed)(chunk=self._next), ())
        elif isinstance(request, wire.Stop):
            self._playing = self._paused = False
            self._unacknowledged = None
            await self._send(wire.Stopped(reason="stopped by the user"), ())
        else:
            await self._change(request)

    async def _save(self, title: str) -> None:
        performance = self._performance
        if performance is None:
            raise RequestRefused("not_started", "Save: nothing has been played yet; send start first")
        folder = await self._attempt("save", lambda: performance.save(title))
        await self._send(wire.Saved(id=folder.name), ())

    async def _change(self, request: wire.Message) -> None:
        """Resets, or changes the prompt or the sink, from the next chunk on."""
        performance = self._performance
        assert performance is not None
        if isinstance(request, wire.NewPrompt):
            prompt = request.prompt
            await self._attempt("prompt", lambda: performance.set_prompt(prompt))
            await self._send(wire.Changed(what="prompt", chunk=self._next), ())
        elif isinstance(request, wire.RefreshSink):
            await self._attempt("sink", performance.refresh_sink)
            await self._send(wire.Changed(what="sink", chunk=self._next), ())
        else:
            assert isinstance(request, wire.Reset)
            await self._state.model_thread.run(performance.reset)
            self._next, self._unacknowledged = 0, None
            self._pacer.restart()
            await self._send(wire.Changed(what="reset", chunk=0), ())

    async def _attempt(self, code: str, job: Callable[[], T]) -> T:
        """Runs a job in the model thread. Its ValueError or OSError becomes an error message to the user."""
        try:
            return await self._state.model_thread.run(job)
        except (ValueError, OSError) as error:
            raise RequestRefused(code, str(error)) from None

    async def _start(self, message: wire.Start) -> None:
        self._end_performance()
        frame = self._state.frame(message.picture)
        if frame is None:
            raise RequestRefused(
                "picture",
                f"Start.picture: no picture {message.picture!r}; choose one of /api/pictures or upload it again",
            )
        depth = self._state.depths.get(message.depth)
        if message.depth and depth is None:
            raise RequestRefused("depth", f"Start.depth: no depth map {message.depth!r}; upload it again")
        start = Start(frame, message.prompt, message.seed, _smoothing(message), depth)

        def open_performance() -> None:  # stores it in the model thread, so that `close` finds it even after a cancel
            self._performance = self._state.player.open(start)

        await self._attempt("start", open_performance)
        self._playing = True
        self._state.meters.started.inc()
        started = wire.Started(
            picture=message.picture, prompt=message.prompt, seed=message.seed, revision=self._controls.revision
        )
        await self._send(started, ())

    def _end_performance(self) -> None:
        """Closes the performance, if there is one, and forgets its progress."""
        self.close()
        self._playing = self._paused = False
        self._next, self._unacknowledged, self._motions = 0, None, set()
        self._pacer.restart()

    def close(self) -> None:
        """Closes the performance, once the model has finished the job it has begun. Returns at once."""

        def close_performance() -> None:
            performance, self._performance = self._performance, None
            if performance is not None:
                performance.close()

        self._state.model_thread.enqueue(close_performance)
        self._state.cache_bytes = 0

    async def _forward_webcam(self) -> None:
        """Passes the newest webcam frame to the model."""
        data, self._webcam = self._webcam, None
        performance = self._performance
        if data is None or performance is None or not self._playing:
            return
        megapixels = self._cfg.max_megapixels
        try:
            await self._state.model_thread.run(lambda: performance.add_webcam_frame(read_webcam(data, megapixels)))
        except ValueError as error:
            await self._send(wire.Error(code="webcam", text=str(error), fatal=False), ())

    async def _chunk(self) -> None:
        received, begun = self._received_at, time.monotonic()
        controls = self._steady.read(begun)
        performance = self._performance
        assert performance is not None
        made = await self._state.model_thread.run(lambda: self._make(performance, controls))
        settling = self._state.model_thread.run(performance.settle)
        played, sent = made.played, time.monotonic()
        self._seq, self._next = self._seq + 1, played.index + 1
        self._unacknowledged, self._sent_at, self._shown = self._seq, sent, controls.revision
        self._disturbed = False
        self._pacer.sent(begun, sent, len(made.lengths) / self._about.fps)
        self._count(made, sent - begun)
        await self._send(self._header(made, received, begun, sent), made.parts)
        if played.notice:
            await self._send(wire.Error(code=wire.NOTICE, text=played.notice, fatal=False), ())
        await settling

    def _make(self, performance: Performance, controls: steering.Controls) -> EncodedChunk:
        """Makes and encodes the next chunk. Runs in the model thread."""
        motion = self._motion(controls.transfer) if controls.transfer not in self._motions else None
        if motion is not None:
            performance.add_motion(controls.transfer, motion.xy_px, motion.visible)
            self._motions.add(controls.transfer)
        played = performance.next_chunk(controls)
        parts = wire.encode_frames(played.frames, self._encoding, self._cfg.jpeg_quality)
        lengths = tuple(len(part) for part in parts)
        tracks = wire.tracks_payload(played.xy_px, played.visible, *played.frames.shape[1:3])
        return EncodedChunk(played, [*parts, tracks], lengths, performance.cache_bytes)

    def _header(self, made: EncodedChunk, received: float, begun: float, sent: float) -> wire.Chunk:
        played = made.played
        return wire.Chunk(
            seq=self._seq,
            chunk=played.index,
            revision=played.revision,
            heard_ms=self._ms(received) if played.revision else 0.0,
            begun_ms=self._ms(begun),
            server_ms=self._ms(sent),
            dit_ms=round(played.seconds_dit * 1000, 3),
            decode_ms=round(played.seconds_decode * 1000, 3),
            frames=len(played.frames),
            height=played.frames.shape[1],
            width=played.frames.shape[2],
            lengths=made.lengths,
            cache_bytes=made.cache_bytes,
            points=played.visible.shape[1],
        )

    def _ms(self, moment: float) -> float:
        """Returns milliseconds since the socket was opened."""
        return round((moment - self._opened) * 1000, 3)

    def _count(self, made: EncodedChunk, seconds: float) -> None:
        meters, played = self._state.meters, made.played
        self._state.cache_bytes = made.cache_bytes
        meters.chunks.inc()
        meters.frames.inc(len(made.lengths))
        meters.bytes.inc(sum(len(part) for part in made.parts))
        meters.chunk.observe(seconds)
        meters.dit.observe(played.seconds_dit)
        meters.decode.observe(played.seconds_decode)


def _smoothing(message: wire.Start) -> steering.InputSmoothing:
    return steering.InputSmoothing(**message.smoothing.model_dump())
