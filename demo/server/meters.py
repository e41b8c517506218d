"""The Prometheus metrics of one server, in a registry of their own, which /metrics returns."""

from __future__ import annotations

from collections.abc import Callable

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 5.0, 10.0)


class Meters:
    """Counters and histograms of one server. sessions, queued, sockets, cache: callbacks that are read for every scrape."""

    def __init__(
        self,
        *,
        sessions: Callable[[], float],
        queued: Callable[[], float],
        sockets: Callable[[], float],
        cache: Callable[[], float],
    ):
        self.registry = r = CollectorRegistry()
        self.started = Counter("demo_performances", "Performances started", registry=r)
        self.chunks = Counter("demo_chunks", "Chunks sent", registry=r)
        self.frames = Counter("demo_frames", "Frames sent", registry=r)
        self.bytes = Counter("demo_sent_bytes", "Bytes of chunks sent", registry=r)
        self.uploads = Counter("demo_uploads", "Uploads accepted", ["sort"], registry=r)
        self.errors = Counter("demo_errors", "Error messages sent, by code", ["code"], registry=r)
        self.closed = Counter(
            "demo_sockets_closed",
            "WebSockets closed, by code; 0 where the client left without a close",
            ["code"],
            registry=r,
        )
        self.chunk = _seconds("demo_chunk_seconds", "Time from the start of a chunk until it is sent", r)
        self.dit = _seconds("demo_dit_seconds", "Time to denoise a chunk", r)
        self.decode = _seconds("demo_decode_seconds", "Time to decode a chunk", r)
        self.control_to_pixel = _seconds(
            "demo_control_to_pixel_seconds",
            "Time from the arrival of a control until the first chunk that shows it is acknowledged",
            r,
        )
        gauges = (
            ("demo_sessions", "Sessions that are running", sessions),
            ("demo_queued", "Sockets that wait for their turn", queued),
            ("demo_sockets", "Open WebSockets", sockets),
            ("demo_cache_bytes", "Bytes of cached keys and values", cache),
            ("demo_memory_bytes", "Resident memory of the process", lambda: float(psutil.Process().memory_info().rss)),
        )
        for name, words, read in gauges:
            Gauge(name, words, registry=r).set_function(read)

    def text(self) -> bytes:
        """Returns the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _seconds(name: str, words: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, words, buckets=SECONDS, registry=registry)
