"""HTTP: what is served, what is refused, and to whom."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from configs.demo import DemoConfig
from demo.server.app import MAX_CONCURRENT_UPLOADS
from tests.unit.demo.fakes import WAIT_SECONDS, FakePlayer
from tests.unit.demo.server.test_uploads import png_header, quarters, written
from tests.unit.demo.serving import Served, eventually, serving

PNG = {"Content-Type": "image/png"}
LIMIT = 200_000


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(FakePlayer(), max_upload_bytes=LIMIT, max_megapixels=4.0) as it:
        yield it


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with serving(FakePlayer(), token="secret") as it:
        yield it


def test_it_says_what_it_has(served):
    assert served.json("/health") == {"status": "ok", "sessions": 0, "queued": 0}
    about = served.json("/api/about")
    assert (about["preset"], about["encoding"], about["max_upload_bytes"]) == ("fake", "rgb8", LIMIT)
    pictures = served.json("/api/pictures")
    assert [p["id"] for p in pictures] == ["dusk", "moss", "slate"] and pictures[0]["held_out"]
    status, headers, body = served.ask("GET", "/api/pictures/moss.png")
    assert (status, headers["Content-Type"], body[:4]) == (200, "image/png", b"\x89PNG")
    assert served.json("/api/recordings") == []
    metrics = served.ask("GET", "/metrics")[2].decode()
    assert "demo_chunks_total" in metrics and "demo_memory_bytes" in metrics


def test_it_serves_while_the_model_warms_up_and_a_page_hears_of_it_then():
    may_warm = threading.Event()
    with serving(FakePlayer(may_warm=may_warm)) as cold, ThreadPoolExecutor(1) as pool:
        about = pool.submit(cold.json, "/api/about")
        assert cold.json("/health")["status"] == "ok" and not about.done()
        may_warm.set()
        assert about.result(WAIT_SECONDS)["preset"] == "fake"


def test_every_answer_is_guarded_in_the_browser(served):
    for path in ("/health", "/nowhere", "/api/pictures"):
        headers = served.ask("GET", path)[1]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, path
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/nowhere", "/api/pictures/none.png", "/api/recordings/a/b", "/static/../config.py"])
def test_what_is_not_there_is_404(served, path):
    status, _, body = served.ask("GET", path)
    assert status == 404 and set(json.loads(body)) == {"code", "text"}


def test_the_pages_are_served(served):
    for path in ("/", "/gallery"):
        status, headers, body = served.ask("GET", path)
        assert status == 200 and headers["Content-Type"].startswith("text/html") and b"<html" in body


def test_a_picture_is_taken_and_shown(served):
    status, _, body = served.ask("POST", "/api/pictures", written(quarters(400, 1000)), PNG)
    made = json.loads(body)
    assert status == 200 and (made["width"], made["height"], made["crop"]) == (1000, 400, [180, 0, 820, 400])
    assert served.ask("GET", f"/api/pictures/{made['id']}.png")[0] == 200


def test_depth_and_motion_are_taken(served):
    assert served.ask("POST", "/api/depth", written(np.zeros((40, 64), np.uint8)), PNG)[0] == 200
    status, _, body = served.ask("POST", "/api/motions", b"\0\0\0\x18ftypmp42", {"Content-Type": "video/mp4"})
    made = json.loads(body)
    assert status == 200 and (made["frames"], made["points"]) == (24, 4)
    assert made in served.json("/api/about")["motions"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        ("/api/pictures", b"hello", PNG, 400, "picture"),
        ("/api/pictures", png_header(50_000, 50_000), PNG, 400, "picture"),
        ("/api/pictures", written(quarters(400, 640))[:-300], PNG, 400, "picture"),
        ("/api/pictures", written(quarters(40, 64)), {"Content-Type": "image/gif"}, 415, "content_type"),
        (
            "/api/pictures",
            written(quarters(40, 64)),
            {"Content-Type": "multipart/form-data; boundary=x"},
            415,
            "content_type",
        ),
        ("/api/pictures", written(quarters(40, 64)), {}, 415, "content_type"),
        ("/api/depth", written(quarters(40, 64)), PNG, 400, "depth"),
        ("/api/motions", b"no video", {"Content-Type": "video/mp4"}, 400, "motion"),
        ("/api/motions", b"\0\0\0\x18ftypmp42", PNG, 415, "content_type"),
    ],
)
def test_bad_uploads_are_refused_in_words(served, path, body, headers, status, code):
    got, _, answer = served.ask("POST", path, body, headers)
    assert (got, json.loads(answer)["code"]) == (status, code)


@pytest.mark.parametrize("stated", [True, False], ids=["length stated", "chunked"])
def test_a_hundred_megabytes_are_refused_while_read(served, stated):
    """And never held: memory does not grow by a tenth of it."""
    part, count = bytes(1 << 20), 100
    headers = {**PNG, **({"Content-Length": str(len(part) * count)} if stated else {})}
    before = psutil.Process().memory_info().rss
    largest = before

    def parts() -> Iterator[bytes]:
        nonlocal largest
        for _ in range(count):
            largest = max(largest, psutil.Process().memory_info().rss)
            yield part

    status, _, body = (
        served.ask("POST", "/api/pictures", parts(), headers) if not stated else _stated(served, parts(), headers)
    )
    assert (status, json.loads(body)["code"]) == (413, "too_large")
    assert largest - before < 10e6
    assert served.json("/health")["status"] == "ok"


def _stated(served: Served, parts: Iterator[bytes], headers: dict[str, str]) -> tuple[int, None, bytes]:
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    with socket.create_connection(("127.0.0.1", served.port), WAIT_SECONDS) as raw:
        raw.sendall(f"POST /api/pictures HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode())
        for part in parts:
            raw.sendall(part)
        answer = b""
        while got := raw.recv(65536):
            answer += got
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), None, body


def test_an_upload_that_is_broken_off_leaves_nothing(served):
    with socket.create_connection(("127.0.0.1", served.port), 5) as raw:
        raw.sendall(
            b"POST /api/pictures HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nxx"
        )
    assert served.json("/health")["status"] == "ok"


def test_few_uploads_arrive_at_a_time(served):
    """Else many slow senders fill the memory."""
    head = (
        b"POST /api/pictures HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nxx"
    )
    slow = [socket.create_connection(("127.0.0.1", served.port), 5) for _ in range(MAX_CONCURRENT_UPLOADS)]
    for raw in slow:
        raw.sendall(head)
    picture = written(quarters(40, 64))
    eventually(lambda: served.ask("POST", "/api/pictures", picture, PNG)[0] == 429)
    for raw in slow:
        raw.close()
    eventually(lambda: served.ask("POST", "/api/pictures", picture, PNG)[0] == 200)


OWN = "127.0.0.1:{port}"
CASES = [
    (OWN, None, True),
    (OWN, "http://127.0.0.1:{port}", True),
    (OWN, "http://localhost:{port}", True),
    ("localhost:9999", "http://localhost:9999", True),  # a forwarded port
    ("[::1]:{port}", None, True),
    (OWN, "http://localhost:1", False),
    (OWN, "http://evil.example", False),
    (OWN, "http://127.0.0.1.evil.example:{port}", False),
    (OWN, "null", False),
    ("evil.example:{port}", "http://evil.example:{port}", False),  # DNS rebinding
    ("evil.example:{port}", None, False),
]


@pytest.mark.parametrize(("host", "origin", "allowed"), CASES)
def test_only_its_own_pages_may_ask(served, host, origin, allowed):
    headers = {"Host": host.format(port=served.port), **({"Origin": origin.format(port=served.port)} if origin else {})}
    for method, path in (("GET", "/health"), ("POST", "/api/pictures")):
        status = served.ask(method, path, b"" if method == "POST" else None, {**headers, **PNG})[0]
        assert (status != 403) == allowed, (method, status)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **headers}
    with socket.create_connection(("127.0.0.1", served.port), 5) as raw:
        raw.sendall(("GET /ws HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in upgrade.items()) + "\r\n").encode())
        assert raw.recv(100).split()[1] == (b"101" if allowed else b"403")


def test_a_proxy_s_origin_can_be_allowed():
    with serving(FakePlayer(), origins=("https://demo.example",)) as it:
        headers = {"Host": "demo.example", "Origin": "https://demo.example"}
        assert it.ask("GET", "/health", headers=headers)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic secret"}, 401),
        ({"Cookie": "token=wrong"}, 401),
        ({"Cookie": "other=1; token=secret"}, 200),
        ({"Authorization": "Bearer secret"}, 200),
    ],
)
def test_the_token_opens_the_api(guarded, headers, status):
    for path in ("/api/about", "/api/recordings", "/metrics"):
        assert guarded.ask("GET", path, headers=headers)[0] == status
    assert guarded.ask("GET", "/health")[0] == 200
    upload = guarded.ask("POST", "/api/pictures", written(quarters(40, 64)), {**headers, **PNG})
    assert upload[0] == status


def test_a_page_opened_with_the_token_leaves_a_cookie(guarded):
    assert "Set-Cookie" not in guarded.ask("GET", "/health?token=wrong")[1]
    cookie = guarded.ask("GET", "/health?token=secret")[1]["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert guarded.ask("GET", "/api/about", headers={"Cookie": cookie.partition(";")[0]})[0] == 200


def test_the_config_is_checked():
    assert not DemoConfig().problems()
    assert not DemoConfig(host="0.0.0.0", token="x").problems()
    for bad, part in {
        DemoConfig(host="0.0.0.0"): "set demo.token too",
        DemoConfig(host="192.168.0.1"): "set demo.token too",
        DemoConfig(port=70000): "demo.port",
        DemoConfig(encoding="png"): "demo.encoding",
        DemoConfig(token='a"b'): "demo.token",
        DemoConfig(jpeg_quality=0): "demo.jpeg_quality",
        DemoConfig(idle_seconds=0): "demo.idle_seconds",
        DemoConfig(margin_ms=-1): "demo.margin_ms",
        DemoConfig(queue_length=-1): "demo.queue_length",
    }.items():
        assert len(bad.problems()) == 1 and part in bad.problems()[0]
