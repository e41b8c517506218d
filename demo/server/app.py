"""The demo as an ASGI app: pages, pictures, uploads and recordings over HTTP, and the WebSocket of docs/demo-protocol.md."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from configs.demo import DemoConfig
from demo.playing.player import Player
from demo.server.connection import Connection
from demo.server.request_guard import RequestGuard
from demo.server.state import ServerState
from demo.server.uploads import DEPTHS, PICTURES, VIDEOS, Motion, read_depth, read_picture

PAGE = Path(__file__).parents[1] / "page"
DRAIN_SECONDS = 5.0  # for which too large an upload is still read, and dropped, so that its sender gets the error
UPLOAD_SECONDS = 120.0  # in which an upload must have arrived
MAX_CONCURRENT_UPLOADS = 4  # they are held in memory
T = TypeVar("T")


class HttpRefusal(Exception):
    """An error response: {code, text} with an HTTP status."""

    def __init__(self, status: int, code: str, text: str) -> None:
        self.status, self.code, self.text = status, code, text
        super().__init__(text)


def make_app(player: Player, cfg: DemoConfig, port: int, page: Path = PAGE) -> tuple[FastAPI, ServerState]:
    """Builds the app and its state. port: the one that is served. page: the folder with index.html and what it loads."""
    state = ServerState(player, cfg)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.warm_up()
        yield
        await state.close_connections()
        await asyncio.to_thread(state.model_thread.close)

    app = FastAPI(title="MotionStream", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestGuard, cfg=cfg, port=port)
    app.add_exception_handler(HttpRefusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    _pages(app, page)
    _information(app, state)
    _uploads(app, state)
    _recordings(app, state)

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await Connection(state, socket).serve()

    return app, state


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpRefusal)
    headers = {"Connection": "close"} if error.status in (408, 413, 415, 429) else {}
    return JSONResponse({"code": error.code, "text": error.text}, error.status, headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"code": "http", "text": str(error.detail)}, error.status_code, error.headers)


def _pages(app: FastAPI, page: Path) -> None:
    for address, name in {"/": "index.html", "/gallery": "gallery.html"}.items():

        async def show(name: str = name) -> Response:
            return FileResponse(page / name, headers={"Cache-Control": "no-cache"})

        app.get(address, include_in_schema=False, response_model=None)(show)
    app.mount("/static", StaticFiles(directory=page, check_dir=False))


def _information(app: FastAPI, state: ServerState) -> None:
    """Adds the routes that describe the server: its health, metrics, model and pictures."""

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "sessions": state.lobby.sessions, "queued": state.lobby.queued}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.meters.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/api/about")
    async def about() -> dict[str, Any]:
        await state.wait_until_warm()  # a page that has this may start, and its first frame must come at once
        welcome = state.welcome("").model_dump(exclude={"session"})
        motions = [{"id": name, **_sizes(m)} for name, m in state.motions.items()]
        return {**welcome, "gallery": "/gallery", "max_upload_bytes": state.cfg.max_upload_bytes, "motions": motions}

    @app.get("/api/pictures")
    async def pictures() -> list[dict[str, Any]]:
        return [
            {
                "id": p.id,
                "title": p.title,
                "prompt": p.prompt,
                "held_out": p.held_out,
                "width": p.frame.shape[1],
                "height": p.frame.shape[0],
            }
            for p in state.pictures.values()
        ]

    @app.get("/api/pictures/{name}.png")
    def picture(name: str) -> Response:
        frame = state.frame(name)
        if frame is None:
            raise HttpRefusal(404, "picture", f"no picture {name!r}; /api/pictures lists them")
        return Response(_png(frame), media_type="image/png")


def _sizes(motion: Motion) -> dict[str, int]:
    return {"frames": motion.visible.shape[0], "points": motion.visible.shape[1]}


def _png(frame: np.ndarray) -> bytes:
    """Encodes H W 3 uint8 as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _uploads(app: FastAPI, state: ServerState) -> None:
    about, cfg, arriving = state.player.about, state.cfg, asyncio.Semaphore(MAX_CONCURRENT_UPLOADS)
    busy = {sort: asyncio.Lock() for sort in ("picture", "depth", "motion")}

    async def read(request: Request, sort: str, types: Mapping[str, Any], reader: Callable[[bytes, str], T]) -> T:
        """Reads the body and decodes it in a thread, one upload of a kind at a time, since decoding takes memory."""
        kind = _content_type(request, types)
        if arriving.locked():
            raise HttpRefusal(429, "busy", f"{MAX_CONCURRENT_UPLOADS} uploads are being received already; try again")
        async with arriving:
            data = await _body(request, cfg.max_upload_bytes)
        async with busy[sort]:
            try:
                made = await asyncio.to_thread(reader, data, kind)
            except ValueError as error:
                state.meters.errors.labels(sort).inc()
                raise HttpRefusal(400, sort, str(error)) from None
        state.meters.uploads.labels(sort).inc()
        return made

    @app.post("/api/pictures")
    async def picture(request: Request) -> dict[str, Any]:
        cropped = await read(
            request, "picture", PICTURES, lambda d, t: read_picture(d, t, about.height, about.width, cfg.max_megapixels)
        )
        return {
            "id": state.uploads.put(cropped),
            "width": cropped.width,
            "height": cropped.height,
            "crop": cropped.crop,
        }

    @app.post("/api/depth")
    async def depth(request: Request) -> dict[str, Any]:
        made = await read(
            request, "depth", DEPTHS, lambda d, t: read_depth(d, t, about.height, about.width, cfg.max_megapixels)
        )
        return {"id": state.depths.put(made)}

    @app.post("/api/motions")
    async def motion(request: Request) -> dict[str, Any]:
        xy_px, visible = await read(request, "motion", dict.fromkeys(VIDEOS), lambda d, _: state.player.motion_of(d))
        made = Motion(xy_px, visible)
        return {"id": state.motions.put(made), **_sizes(made)}


def _content_type(request: Request, types: Mapping[str, Any]) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in types:
        raise HttpRefusal(
            415, "content_type", f"Content-Type {kind!r}; send one of {', '.join(types)}, as the whole body"
        )
    return kind


async def _body(request: Request, limit: int) -> bytes:
    """Reads the body, of which at most `limit` bytes are kept. Raises HttpRefusal 413, or 408 where it takes too long."""
    stated = request.headers.get("content-length", "")
    too_large, size, kept = stated.isdecimal() and int(stated) > limit, 0, bytearray()
    now = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(DRAIN_SECONDS if too_large else UPLOAD_SECONDS) as patience:
            async for part in request.stream():
                size += len(part)
                if size > limit and not too_large:
                    too_large, kept = True, bytearray()
                    patience.reschedule(now() + DRAIN_SECONDS)
                if not too_large:
                    kept += part
    except TimeoutError:
        if not too_large:
            raise HttpRefusal(
                408, "slow", f"the upload did not arrive within {UPLOAD_SECONDS:g} seconds; send it again"
            ) from None
    except ClientDisconnect:
        raise HttpRefusal(400, "broken_off", "the sender closed the connection before the end of the upload") from None
    if too_large:
        raise HttpRefusal(
            413,
            "too_large",
            f"the upload has more than {limit} bytes; send a smaller file, or raise demo.max_upload_bytes",
        )
    return bytes(kept)


def _recordings(app: FastAPI, state: ServerState) -> None:
    @app.get("/api/recordings")
    def recordings() -> list[dict[str, Any]]:
        return list(state.player.recordings())

    @app.get("/api/recordings/{name}/{file}")
    def recording(name: str, file: str) -> Response:
        try:
            return FileResponse(state.player.recording_file(name, file))
        except ValueError as error:
            raise HttpRefusal(404, "recording", str(error)) from None
