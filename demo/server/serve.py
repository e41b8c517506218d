"""make demo: serves the newest student, or the shipped one, on a local page."""

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
from demo.server.state import ServerState

if TYPE_CHECKING:
    from configs.settings import Config

OK, FAILED = 0, 1
BACKLOG = 128
GRACE_SECONDS = 5  # for requests in progress when the server stops
MOST_CONNECTIONS = 256  # HTTP and WebSocket together; more get 503
VANISHED_MS = 30_000  # after which the kernel drops a peer that acknowledges nothing


def serve(cfg: Config) -> int:
    """Serves the preset's student until Ctrl-C. Returns the exit status of `run`."""

    def load() -> Player:
        from demo.playing.model_player import load_player  # it imports torch: only once the address is bound

        return load_player(cfg)

    return run(load, cfg.demo)


def run(load: Callable[[], Player], cfg: DemoConfig) -> int:
    """Serves until Ctrl-C or SIGTERM, in the main thread. Returns the exit status: 0 stopped, 1 could not start. The address is
    bound before the model is loaded, so a port in use is reported at once, and early clients wait."""
    try:
        listener = listen(cfg)
    except OSError as error:
        where = f"demo.host, demo.port: {cfg.host}:{cfg.port}"
        print(
            f"{where} cannot be bound ({error.strerror}); stop the program that uses it, or set another demo.port",
            file=sys.stderr,
        )
        return FAILED
    with listener, _sigterm_as_interrupt():
        try:
            player = load()
            print(f"{player.about.preset}: {player.about.student}, on {player.about.device}", flush=True)
            key = "/?token=..." if cfg.token else ""
            words = f"serving on {address_of(listener)}{key} (Ctrl-C stops it)"
            server = make_server(player, cfg, listener, lambda: print(words, flush=True))
            server.run([listener])
            return FAILED if server.failed else OK
        except KeyboardInterrupt:
            return OK
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return FAILED


def listen(cfg: DemoConfig) -> socket.socket:
    """Returns a listening socket. Raises OSError where the address cannot be bound."""
    family, *_, address = socket.getaddrinfo(cfg.host, cfg.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_MS)
    return listener


def address_of(listener: socket.socket) -> str:
    """Returns the listener's address as http://host:port."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(player: Player, cfg: DemoConfig, listener: socket.socket, ready: Callable[[], None]) -> Server:
    """Builds the server. ready: called once it answers requests."""
    app, state = make_app(player, cfg, listener.getsockname()[1])
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
    return Server(settings, state, ready)


class Server(uvicorn.Server):
    """uvicorn's server, which closes the WebSockets with 1001 before it shuts down. failed: the model could not be warmed
    up."""

    def __init__(self, settings: uvicorn.Config, state: ServerState, ready: Callable[[], None]) -> None:
        super().__init__(settings)
        self.state, self._ready = state, ready
        self.failed = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
        if self.state.warm is not None:
            self.state.warm.add_done_callback(self._on_warm)

    def _on_warm(self, done: asyncio.Future[None]) -> None:
        """Stops the server where the model could not be warmed up."""
        if not done.cancelled() and (error := done.exception()):
            print(f"stopped: the student cannot play: {error}", file=sys.stderr)
            self.failed = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.state.close_connections()
        await super().shutdown(sockets)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM stop the server as Ctrl-C does: uvicorn raises a signal again after it has obeyed it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
