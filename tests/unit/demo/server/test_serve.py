"""The process: it says when it serves, ends cleanly, and says in a line why it cannot begin."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import pytest

from configs.demo import DemoConfig
from demo.client import Client
from demo.server import protocol as wire
from demo.server.serve import address_of, listen, run
from infra.files import CHECKOUT
from pipelines.commands import cli
from tests.unit.demo.fakes import WAIT_SECONDS, FakePlayer
from tests.unit.demo.scenes import close_code, to_run


def test_a_model_that_cannot_play_ends_the_server_with_what_is_missing(capsys):
    assert run(lambda: FakePlayer(cold="text.source: no such folder"), DemoConfig(port=0)) == 1
    printed = capsys.readouterr()
    assert (
        "serving on" in printed.out and printed.err == "stopped: the student cannot play: text.source: no such folder\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number):
    async def scene(url: str) -> int | None:
        async with Client(url) as client:
            await to_run(client)
            process.send_signal(number)
            return await close_code(client)

    words = [sys.executable, "-m", "tests.unit.demo.serve_fake", "--port", "0"]
    with subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "fake" in process.stdout.readline()
            line = process.stdout.readline()
            assert line.startswith("serving on http://127.0.0.1:"), line
            assert asyncio.run(asyncio.wait_for(scene(line.split()[2]), WAIT_SECONDS)) == wire.GOING
            _, errors = process.communicate(timeout=WAIT_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0
    assert errors == ""


@pytest.mark.slow
def test_a_port_in_use_is_one_line(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["demo", "--preset", "debug", "--runs", str(tmp_path), f"demo.port={port}"]
        assert cli.main(words) == cli.FAILED
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"127.0.0.1:{port}" in err and "demo.port" in err


@pytest.mark.slow
def test_elsewhere_only_with_a_token(tmp_path, capsys):
    assert cli.main(["demo", "--runs", str(tmp_path), "demo.host=0.0.0.0"]) == cli.BAD_CONFIG
    assert "set demo.token too" in capsys.readouterr().err


@pytest.mark.slow
def test_a_host_that_is_none_is_one_line(tmp_path, capsys):
    words = ["demo", "--runs", str(tmp_path), "demo.host=no.such.host.invalid", "demo.token=x"]
    assert cli.main(words) == cli.FAILED
    assert capsys.readouterr().err.count("\n") == 1


def test_ipv6_is_served_too():
    try:
        listener = listen(DemoConfig(host="::1", port=0))
    except OSError:
        pytest.skip("without IPv6 here")
    with listener:
        assert address_of(listener).startswith("http://[::1]:")
