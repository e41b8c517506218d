"""The state of one demo server, which all its connections share."""

from __future__ import annotations

import asyncio
from typing import Protocol

import numpy as np

from configs.demo import DemoConfig
from demo.playing.player import Picture, Player
from demo.server import protocol as wire
from demo.server.lobby import Lobby
from demo.server.meters import Meters
from demo.server.model_thread import ModelThread
from demo.server.uploads import CroppedPicture, Motion, UploadStore


class OpenConnection(Protocol):
    """What the server needs of a connection: to end it."""

    def end(self, code: int, text: str) -> None:
        """Asks the connection to close its socket with this close code and text. Returns at once."""
        ...


class ServerState:
    """Holds what all connections of one server share: the model and its thread, the lobby, the uploads, the metrics and
    the set of open connections. It knows neither sockets nor sessions."""

    def __init__(self, player: Player, cfg: DemoConfig) -> None:
        self.player, self.cfg = player, cfg
        self.model_thread, self.lobby = ModelThread(), Lobby(cfg.queue_length)
        self.warm: asyncio.Future[None] | None = None
        self.pictures: dict[str, Picture] = {p.id: p for p in player.pictures()}
        self.uploads = UploadStore[CroppedPicture](cfg.max_uploads)
        self.depths = UploadStore[np.ndarray](cfg.max_uploads)
        self.motions = UploadStore[Motion](cfg.max_uploads)
        self.connections: set[OpenConnection] = set()
        self.cache_bytes = 0
        self.meters = Meters(
            sessions=lambda: self.lobby.sessions,
            queued=lambda: self.lobby.queued,
            sockets=lambda: len(self.connections),
            cache=lambda: self.cache_bytes,
        )

    def warm_up(self) -> None:
        """Starts to warm the model up, as the model thread's first job. The pages are served meanwhile."""
        self.warm = self.model_thread.run(self.player.warm_up)

    async def wait_until_warm(self) -> None:
        """Returns once the model is warm. Raises what the warm-up raised."""
        assert self.warm is not None, "warm_up comes first"
        await asyncio.shield(self.warm)  # one waiter that is cancelled must not cancel it for the others

    def frame(self, picture: str) -> np.ndarray | None:
        """Returns H W 3 uint8 of a picture or upload, or None where no picture has that id."""
        if picture in self.pictures:
            return self.pictures[picture].frame
        upload = self.uploads.get(picture)
        return None if upload is None else upload.frame

    def welcome(self, session: str) -> wire.Welcome:
        """Returns the message that opens a session. session: its id."""
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

    async def close_connections(self) -> None:
        """Closes every socket with 1001, because the server stops, and returns when all are closed."""
        while self.connections:
            for connection in self.connections:
                connection.end(wire.GOING, "the server has stopped")
            await asyncio.sleep(0.01)
