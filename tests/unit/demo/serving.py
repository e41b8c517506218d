"""The real server with a fake model, in a thread."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from configs.demo import DemoConfig
from demo.playing.player import Player
from demo.server.serve import address_of, listen, make_server
from demo.server.state import ServerState
from tests.unit.demo.fakes import ABOUT, WAIT_SECONDS

QUICK = replace(ABOUT, fps=120.0)  # a chunk plays 50 ms


@dataclass
class Served:
    url: str
    state: ServerState
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers, body. body: bytes, or an iterable of them (chunked)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        try:
            connection.request(
                method, path, body, dict(headers or {}), encode_chunked=not isinstance(body, bytes | None)
            )
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def set_idle_seconds(self, seconds: float) -> None:
        """Changes demo.idle_seconds once a test has brought a client to the state that it tests."""
        self.state.cfg = replace(self.state.cfg, idle_seconds=seconds)

    def json(self, path: str) -> Any:
        return json.loads(self.ask("GET", path)[2])


@contextmanager
def serving(player: Player, **settings: Any) -> Iterator[Served]:
    """settings: of DemoConfig."""
    cfg = DemoConfig(**{"port": 0, "margin_ms": 10.0, **settings})
    with listen(cfg) as listener:
        loops: list[asyncio.AbstractEventLoop] = []
        ready = threading.Event()

        def is_ready() -> None:
            loops.append(asyncio.get_running_loop())
            ready.set()

        url, server = address_of(listener), make_server(player, cfg, listener, is_ready)
        thread = threading.Thread(target=server.run, args=([listener],), name="server", daemon=True)
        thread.start()
        try:
            assert ready.wait(WAIT_SECONDS), "the server did not start"
            yield Served(url, server.state, loops[0])
        finally:
            server.should_exit = True
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "the server did not end"


def eventually(true: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Waits until `true` holds. Fails after `seconds`."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.005)
