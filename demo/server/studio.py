"""What all connections of a server share: the model and its one worker thread, the lobby, uploads, meters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from configs.demo import DemoConfig
from demo.playing.player import (
    Picture,
    Player,
)
from demo.server import protocol as wire
from demo.server.lobby import Lobby
from demo.server.meters import Meters
from demo.server.uploads import (
    Cut,
    Motion,
    Shelf,
)

if TYPE_CHECKING:
    from demo.server.connection import Connection

log = logging.getLogger(__name__)
T = TypeVar("T")


class Worker:
    """The one thread in which the model runs. Jobs run in the order they were given, also those nobody waits for any more."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="player")

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """To be awaited. Giving up on it does not stop a job that has begun."""
        return asyncio.wrap_future(self._pool.submit(job))

    def leave(self, job: Callable[[], object]) -> None:
        """Nobody waits for it; what goes wrong is logged."""
        self._pool.submit(job).add_done_callback(_logged)

    def close(self) -> None:
        """Waits for what has begun."""
        self._pool.shutdown(wait=True)


def _logged(done: Future[object]) -> None:
    if not done.cancelled() and (error := done.exception()):
        log.error("a job of the worker failed", exc_info=error)


class Studio:
    """One server's."""

    def __init__(self, player: Player, cfg: DemoConfig) -> None:
        self.player, self.cfg = player, cfg
        self.worker, self.lobby = Worker(), Lobby(cfg.queue_length)
        self.warm: asyncio.Future[None] | None = None
        self.pictures: dict[str, Picture] = {p.id: p for p in player.pictures()}
        self.uploads = Shelf[Cut](cfg.max_uploads)
        self.depths = Shelf[np.ndarray](cfg.max_uploads)
        self.motions = Shelf[Motion](cfg.max_uploads)
        self.connections: set[Connection] = set()
        self.cache_bytes = 0
        self.meters = Meters(
            sessions=lambda: self.lobby.sessions,
            queued=lambda: self.lobby.queued,
            sockets=lambda: len(self.connections),
            cache=lambda: self.cache_bytes,
        )

    def begin(self) -> None:
        """Warms the model up while the page is served already: the worker's first job."""
        self.warm = self.worker.run(self.player.warm_up)

    async def warmed(self) -> None:
        assert self.warm is not None, "begin comes first"
        await asyncio.shield(self.warm)  # who leaves must not take it from the others

    def frame(self, picture: str) -> np.ndarray | None:
        """H W 3 uint8 of a picture or upload; None where there is none of that id."""
        if picture in self.pictures:
            return self.pictures[picture].frame
        upload = self.uploads.get(picture)
        return None if upload is None else upload.frame

    def welcome(self, session: str) -> wire.Welcome:
        about = self.player.about
        return wire.Welcome(
            protocol=wire.VERSION,
            session=session,
            preset=about.preset,
            student=about.student,
            digest=about.digest,
            height=about.height,
            width=about.width,
            fps=about.fps,
            first_frames=about.first_frames,
            chunk_frames=about.chunk_frames,
            max_points=about.max_points,
            grid=about.grid,
            encoding=self.cfg.encoding_for(about.height, about.width),  # type: ignore[arg-type]
            device=about.device,
        )

    async def dismiss(self) -> None:
        """Every socket is closed with 1001, as the server ends."""
        while self.connections:
            for connection in self.connections:
                connection.end(wire.GOING, "the server ends")
            await asyncio.sleep(0.01)
