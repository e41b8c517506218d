"""make demo: the newest student, or the shipped one, on a page of one's own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from configs.demo import DemoConfig
from demo.playing.player import Player
from demo.server.app import make_app
from demo.server.studio import Studio

if TYPE_CHECKING:
    from configs.settings import Config

OK, FAILED = 0, 1
BACKLOG = 128
GRACE_SECONDS = 5  # for what is being answered when the server ends
MOST_CONNECTIONS = 256  # HTTP and WebSocket together; beyond it 503
VANISHED_MS = 30_000  # after which a peer that takes no bytes is given up by the kernel


def serve(cfg: Config) -> int:
    """Serves the preset's student until Ctrl-C. Exit status: that of `run`."""

    def load() -> Player:
        from demo.playing.model_player import load_player  # torch and all: after the address is taken

        return load_player(cfg)

    return run(load, cfg.demo)


def run(load: Callable[[], Player], cfg: DemoConfig) -> int:
    """Serves until Ctrl-C or SIGTERM, in the main thread. Exit status: 0 ended, 1 could not begin. Its address is taken before
    the model is loaded: a port in use is said at once, and who comes early waits."""
    try:
        listener = listen(cfg)
    except OSError as error:
        where = f"demo.host, demo.port: {cfg.host}:{cfg.port}"
        print(
            f"{where} cannot be served ({error.strerror}); end what runs there, or set another demo.port",
            file=sys.stderr,
        )
        return FAILED
    with listener, _quiet_termination():
        try:
            player = load()
            print(f"{player.about.preset}: {player.about.student}, on {player.about.device}", flush=True)
            key = "/?token=..." if cfg.token else ""
            words = f"serving on {address_of(listener)}{key} (Ctrl-C ends)"
            server = make_server(player, cfg, listener, lambda: print(words, flush=True))
            server.run([listener])
            return FAILED if server.failed else OK
        except KeyboardInterrupt:
            return OK
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return FAILED


def listen(cfg: DemoConfig) -> socket.socket:
    """A listening socket. Raises OSError where there cannot be one."""
    family, *_, address = socket.getaddrinfo(cfg.host, cfg.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; its connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_MS)
    return listener


def address_of(listener: socket.socket) -> str:
    """http://host:port."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(player: Player, cfg: DemoConfig, listener: socket.socket, ready: Callable[[], None]) -> Server:
    """ready: called when it answers."""
    app, studio = make_app(player, cfg, listener.getsockname()[1])
    settings = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=cfg.max_message_bytes,
        ws_per_message_deflate=False,  # frames do not shrink, and it takes time
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="on",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return Server(settings, studio, ready)


class Server(uvicorn.Server):
    """uvicorn's, which closes the sessions first: with 1001."""

    def __init__(self, settings: uvicorn.Config, studio: Studio, ready: Callable[[], None]) -> None:
        super().__init__(settings)
        self.studio, self._ready = studio, ready
        self.failed = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
        if self.studio.warm is not None:
            self.studio.warm.add_done_callback(self._warm)

    def _warm(self, done: asyncio.Future[None]) -> None:
        """A model that cannot play ends the server."""
        if not done.cancelled() and (error := done.exception()):
            print(f"the student cannot play: {error}", file=sys.stderr)
            self.failed = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.studio.dismiss()
        await super().shutdown(sockets)


@contextlib.contextmanager
def _quiet_termination() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does: uvicorn raises again what it has caught and obeyed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
