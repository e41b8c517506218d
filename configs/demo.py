"""Settings of `make demo`: the server's address, and the limits for its users."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

DECODERS = ("auto", "vae", "tiny")
LARGEST_RGB8 = 256 * 256  # pixels of a frame that encoding "auto" sends raw: 4.7 MB a second at 24 fps


def is_loopback(name: str) -> bool:
    """Tells whether a host name or address (IPv6 with or without brackets) is this machine's loopback."""
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo server. host: address on which the server listens; an address other than loopback needs a
    token. token: text that clients must send; "" for none. origins: origins of pages allowed besides the server's own,
    as https://host:port (behind a proxy). margin_ms: how long before it is needed a chunk should arrive, in
    milliseconds. encoding: of frames: "rgb8", "jpeg", or "auto", which takes rgb8 for small frames. max_uploads:
    uploads kept of each kind; the oldest is dropped."""

    host: str = "127.0.0.1"
    port: int = 7860  # on which the server listens; 0 takes any free port
    token: str = ""
    origins: tuple[str, ...] = ()
    margin_ms: float = 30.0
    encoding: str = "auto"
    jpeg_quality: int = 90  # 1 to 100
    hello_seconds: float = 5.0  # time within which a new socket must send hello
    idle_seconds: float = 120.0  # time without a message or an acknowledgement after which a session ends
    max_invalid_messages: int = 10  # number of invalid messages after which a socket is closed
    max_sockets: int = 24  # open connections of all users
    queue_length: int = 16  # users who may wait for the single stream
    max_message_bytes: int = 2 << 20  # largest size of a WebSocket message
    max_upload_bytes: int = 16 << 20  # largest size of an uploaded picture or video
    max_megapixels: float = 32.0  # largest size of an uploaded picture
    max_uploads: int = 16
    student: str = (
        ""  # a folder with weights; "" takes the run's newest student, or without one at nano the shipped student
    )
    decoder: str = "auto"  # "vae", "tiny", or "auto" for the faster one
    record_minutes: float = 10.0  # time after which the recording of a session ends; the session continues

    def problems(self) -> list[str]:
        """Returns every inconsistency, as 'demo.field: what is wrong and how to fix it'."""
        out = []
        if not 0 <= self.port < 65536:
            out.append(f"demo.port: {self.port} is not a port; set 1 to 65535, or 0 for any free one")
        if not is_loopback(self.host) and not self.token:
            out.append(
                f"demo.host: {self.host} can be reached from other machines: set demo.token too, or keep 127.0.0.1"
            )
        if self.token and not (
            self.token.isascii() and self.token.isprintable() and not set(self.token) & set(' ;,"\\')
        ):
            out.append("demo.token: only ASCII without spaces, quotes, commas, semicolons and backslashes")
        if self.encoding not in ("auto", "rgb8", "jpeg"):
            out.append(f"demo.encoding: {self.encoding!r} is none of auto, rgb8, jpeg")
        if not 1 <= self.jpeg_quality <= 100:
            out.append(f"demo.jpeg_quality: {self.jpeg_quality} must be 1 to 100")
        if self.margin_ms < 0:
            out.append(f"demo.margin_ms: {self.margin_ms} is below zero")
        positive = (
            "hello_seconds",
            "idle_seconds",
            "max_invalid_messages",
            "max_sockets",
            "max_message_bytes",
            "max_upload_bytes",
        )
        for name in (*positive, "max_megapixels", "max_uploads", "record_minutes"):
            if vars(self)[name] <= 0:
                out.append(f"demo.{name}: {vars(self)[name]} must be above zero")
        if self.decoder not in DECODERS:
            out.append(f"demo.decoder: {self.decoder!r} is none of {', '.join(DECODERS)}")
        if self.queue_length < 0:
            out.append(f"demo.queue_length: {self.queue_length} is below zero")
        return out

    def encoding_for(self, height: int, width: int) -> str:
        """Returns how frames of that size are sent: "rgb8" or "jpeg"."""
        if self.encoding != "auto":
            return self.encoding
        return "rgb8" if height * width <= LARGEST_RGB8 else "jpeg"
