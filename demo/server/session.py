"""One user's stream: a state machine between messages and a performance. It knows no socket.

`take` hears messages at any time; `run` makes the chunks, in one task. The model's calls block, and run in the studio's worker
one after another; controls are read when a chunk begins, and at most one chunk is unacknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from demo.playing.player import (
    Performance,
    Played,
    Start,
)
from demo.server import protocol as wire
from demo.server.pacing import Pacer
from demo.server.studio import Studio
from demo.server.uploads import (
    Motion,
    read_webcam,
)
from msmodel.steering import steering
from msmodel.steering.smoothing import Steady

Send = Callable[[wire.Message, Sequence[bytes]], Awaitable[None]]
WAITING_REQUESTS = 32  # unserved ones; a user makes one at a time
REMEMBERED_CONTROLS = 1000  # snapshots whose latency is not known yet
LIVE = "webcam"
T = TypeVar("T")


class Refused(Exception):
    """A request that makes no sense now: an error to its sender, and no more."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


@dataclass(frozen=True)
class Made:
    """What the worker gives back for a chunk. parts: its payload."""

    played: Played
    parts: list[bytes]
    lengths: tuple[int, ...]
    cache_bytes: int


class Session:
    """opened: when the socket was, on time.monotonic; the zero of what is sent as milliseconds."""

    def __init__(self, studio: Studio, send: Send, opened: float) -> None:
        self._studio, self._send, self._opened = studio, send, opened
        self._about, self._cfg = studio.player.about, studio.cfg
        self._encoding = studio.cfg.encoding_for(self._about.height, self._about.width)
        self._pacer = Pacer(studio.cfg.margin_ms / 1000)
        self._wake = asyncio.Event()
        self._requests: deque[wire.Message] = deque()
        self._webcam: bytes | None = None
        self._performance: Performance | None = None  # the worker's
        self._motions: set[str] = set()  # that the performance has
        self._playing = self._paused = False  # a performance that was stopped can still be saved
        self._disturbed = False  # a pause was asked for since the last chunk left
        self._next = 0  # index of the next chunk
        self._seq = -1
        self._unacknowledged: int | None = None
        self._sent_at = 0.0
        self._listen_anew(steering.InputSmoothing())

    def _listen_anew(self, hand: steering.InputSmoothing) -> None:
        self._controls, self._heard = steering.Controls(), 0.0
        self._steady = Steady(hand, self._about.max_points)
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=REMEMBERED_CONTROLS)
        self._shown = 0  # revision of the chunk that is out

    # What is heard

    def take(self, message: wire.Message, payload: bytes) -> None:
        """Any message but hello. Raises ProtocolError for one that is against the rules."""
        if isinstance(message, wire.Controls):
            self._take_controls(message, payload)
        elif isinstance(message, wire.Ack):
            self._take_ack(message)
        elif isinstance(message, wire.Webcam):
            self._webcam = payload
        elif len(self._requests) >= WAITING_REQUESTS:
            raise wire.ProtocolError("too_many", f"{WAITING_REQUESTS} requests wait already; send one at a time")
        else:
            if isinstance(message, wire.Start):
                self._listen_anew(steering.InputSmoothing(**message.hand.model_dump()))
            self._requests.append(message)
        self._wake.set()

    def _take_controls(self, message: wire.Controls, payload: bytes) -> None:
        controls = wire.controls_of(message, payload, self._about.max_points)
        if controls.revision <= self._controls.revision:
            raise wire.ProtocolError(
                "field", f"Controls.revision: {controls.revision} does not rise above {self._controls.revision}"
            )
        if controls.transfer not in ("", LIVE) and self._motion(controls.transfer) is None:
            raise wire.ProtocolError("field", f"Controls.transfer: no motion {controls.transfer!r}; upload it (again)")
        self._controls, self._heard = controls, time.monotonic()
        self._steady.hear(controls, self._heard)
        self._arrivals.append((controls.revision, self._heard))

    def _motion(self, name: str) -> Motion | None:
        return self._studio.motions.get(name)

    def _take_ack(self, message: wire.Ack) -> None:
        if message.seq > self._seq:
            raise wire.ProtocolError("field", f"Ack.seq: {message.seq} was not sent yet; the last was {self._seq}")
        if message.seq != self._unacknowledged:
            return  # of before a reset or a start
        now, self._unacknowledged = time.monotonic(), None
        self._pacer.acknowledged(now, message.waited_ms / 1000, measured=not self._disturbed)
        while self._arrivals and self._arrivals[0][0] <= self._shown:
            self._studio.meters.control_to_pixel.observe(now - self._arrivals.popleft()[1])

    @property
    def overdue(self) -> float:
        """For how long a chunk has not been acknowledged, in seconds. A pause does not count."""
        if self._unacknowledged is None or self._paused:
            return 0.0
        return time.monotonic() - self._sent_at

    # What is done

    async def run(self) -> None:
        """For as long as it is not cancelled. Raises what the model raises: it is at fault then."""
        while True:
            await self._rest()
            while self._requests:
                request = self._requests.popleft()
                try:
                    await self._serve(request)
                except Refused as refusal:
                    self._studio.meters.errors.labels(refusal.code).inc()
                    await self._send(wire.Error(code=refusal.code, text=str(refusal), fatal=False), ())
            if self._webcam is not None:
                await self._look()
            if self._due() <= time.monotonic():
                await self._chunk()

    async def _rest(self) -> None:
        """Until a message comes or the next chunk is due."""
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
            raise Refused("not_started", f"{type(request).__name__}: nothing plays; send start first")
        if isinstance(request, wire.Pause | wire.Resume):
            self._paused, self._disturbed = isinstance(request, wire.Pause), True
            if not self._paused and self._unacknowledged is None:
                self._pacer.restart()
            self._sent_at = time.monotonic()
            await self._send((wire.Paused if self._paused else wire.Resumed)(chunk=self._next), ())
        elif isinstance(request, wire.Stop):
            self._playing = self._paused = False
            self._unacknowledged = None
            await self._send(wire.Stopped(reason="asked for"), ())
        else:
            await self._change(request)

    async def _save(self, title: str) -> None:
        performance = self._performance
        if performance is None:
            raise Refused("not_started", "Save: nothing was played yet; send start first")
        folder = await self._asked("save", lambda: performance.save(title))
        await self._send(wire.Saved(id=folder.name), ())

    async def _change(self, request: wire.Message) -> None:
        """Reset, another prompt, another sink: from the next chunk on."""
        performance = self._performance
        assert performance is not None
        if isinstance(request, wire.NewPrompt):
            prompt = request.prompt
            await self._asked("prompt", lambda: performance.set_prompt(prompt))
            await self._send(wire.Changed(what="prompt", chunk=self._next), ())
        elif isinstance(request, wire.RefreshSink):
            await self._asked("sink", performance.refresh_sink)
            await self._send(wire.Changed(what="sink", chunk=self._next), ())
        else:
            assert isinstance(request, wire.Reset)
            await self._studio.worker.run(performance.reset)
            self._next, self._unacknowledged = 0, None
            self._pacer.restart()
            await self._send(wire.Changed(what="reset", chunk=0), ())

    async def _asked(self, code: str, job: Callable[[], T]) -> T:
        """A job that may be refused by the model's ValueError, or by the disk."""
        try:
            return await self._studio.worker.run(job)
        except (ValueError, OSError) as error:
            raise Refused(code, str(error)) from None

    async def _start(self, message: wire.Start) -> None:
        self._forget()
        frame = self._studio.frame(message.picture)
        if frame is None:
            raise Refused(
                "picture",
                f"Start.picture: no picture {message.picture!r}; choose one of /api/pictures or upload it again",
            )
        depth = self._studio.depths.get(message.depth)
        if message.depth and depth is None:
            raise Refused("depth", f"Start.depth: no depth map {message.depth!r}; upload it again")
        start = Start(frame, message.prompt, message.seed, steering.InputSmoothing(**message.hand.model_dump()), depth)

        def opening() -> None:  # keeps it even where nobody waits any more, so that `close` finds it
            self._performance = self._studio.player.open(start)

        await self._asked("start", opening)
        self._playing = True
        self._studio.meters.started.inc()
        started = wire.Started(
            picture=message.picture, prompt=message.prompt, seed=message.seed, revision=self._controls.revision
        )
        await self._send(started, ())

    def _forget(self) -> None:
        """Ends the performance, if there is one."""
        self.close()
        self._playing = self._paused = False
        self._next, self._unacknowledged, self._motions = 0, None, set()
        self._pacer.restart()

    def close(self) -> None:
        """Frees the model once it has finished what it is doing."""

        def closing() -> None:
            performance, self._performance = self._performance, None
            if performance is not None:
                performance.close()

        self._studio.worker.leave(closing)
        self._studio.cache_bytes = 0

    async def _look(self) -> None:
        """Shows the model the newest webcam frame."""
        data, self._webcam = self._webcam, None
        performance = self._performance
        if data is None or performance is None or not self._playing:
            return
        megapixels = self._cfg.max_megapixels
        try:
            await self._studio.worker.run(lambda: performance.see(read_webcam(data, megapixels)))
        except ValueError as error:
            await self._send(wire.Error(code="webcam", text=str(error), fatal=False), ())

    async def _chunk(self) -> None:
        heard, begun = self._heard, time.monotonic()
        controls = self._steady.read(begun)
        performance = self._performance
        assert performance is not None
        made = await self._studio.worker.run(lambda: self._make(performance, controls))
        settling = self._studio.worker.run(performance.settle)
        played, sent = made.played, time.monotonic()
        self._seq, self._next = self._seq + 1, played.index + 1
        self._unacknowledged, self._sent_at, self._shown = self._seq, sent, controls.revision
        self._disturbed = False
        self._pacer.sent(begun, sent, len(made.lengths) / self._about.fps)
        self._count(made, sent - begun)
        await self._send(self._header(made, heard, begun, sent), made.parts)
        if played.notice:
            await self._send(wire.Error(code=wire.NOTICE, text=played.notice, fatal=False), ())
        await settling

    def _make(self, performance: Performance, controls: steering.Controls) -> Made:
        """In the worker."""
        motion = self._motion(controls.transfer) if controls.transfer not in self._motions else None
        if motion is not None:
            performance.add_motion(controls.transfer, motion.xy_px, motion.visible)
            self._motions.add(controls.transfer)
        played = performance.next_chunk(controls)
        parts = wire.encode_frames(played.frames, self._encoding, self._cfg.jpeg_quality)
        lengths = tuple(len(part) for part in parts)
        tracks = wire.tracks_payload(played.xy_px, played.visible, *played.frames.shape[1:3])
        return Made(played, [*parts, tracks], lengths, performance.cache_bytes)

    def _header(self, made: Made, heard: float, begun: float, sent: float) -> wire.Chunk:
        played = made.played
        return wire.Chunk(
            seq=self._seq,
            chunk=played.index,
            revision=played.revision,
            heard_ms=self._ms(heard) if played.revision else 0.0,
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
        return round((moment - self._opened) * 1000, 3)

    def _count(self, made: Made, seconds: float) -> None:
        meters, played = self._studio.meters, made.played
        self._studio.cache_bytes = made.cache_bytes
        meters.chunks.inc()
        meters.frames.inc(len(made.lengths))
        meters.bytes.inc(sum(len(part) for part in made.parts))
        meters.chunk.observe(seconds)
        meters.dit.observe(played.seconds_dit)
        meters.decode.observe(played.seconds_decode)
