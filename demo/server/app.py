"""The demo as an ASGI app: page, pictures, uploads and recordings over HTTP, and the WebSocket of docs/demo-protocol.md."""

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
from demo.server.guard import Guard
from demo.server.studio import Studio
from demo.server.uploads import (
    DEPTHS,
    PICTURES,
    VIDEOS,
    Motion,
    read_depth,
    read_picture,
)

PAGE = Path(__file__).parents[1] / "page"
DRAIN_SECONDS = 5.0  # for which an upload that is too large is still read, and dropped, so that its sender hears why
UPLOAD_SECONDS = 120.0  # in which an upload must have arrived
MOST_ARRIVING = 4  # uploads at a time: they lie in memory
T = TypeVar("T")


class Refusal(Exception):
    """Becomes {code, text} with a status."""

    def __init__(self, status: int, code: str, text: str) -> None:
        self.status, self.code, self.text = status, code, text
        super().__init__(text)


def make_app(player: Player, cfg: DemoConfig, port: int, page: Path = PAGE) -> tuple[FastAPI, Studio]:
    """port: the one that is served. page: the folder of index.html and what it loads."""
    studio = Studio(player, cfg)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        studio.begin()
        yield
        await studio.dismiss()
        await asyncio.to_thread(studio.worker.close)

    app = FastAPI(title="MotionStream", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, cfg=cfg, port=port)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    _pages(app, page)
    _knowledge(app, studio)
    _uploads(app, studio)
    _recordings(app, studio)

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await Connection(studio, socket).serve()

    return app, studio


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
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


def _knowledge(app: FastAPI, studio: Studio) -> None:
    """What the server has and how it is."""

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "sessions": studio.lobby.sessions, "queued": studio.lobby.queued}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(studio.meters.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/api/about")
    async def about() -> dict[str, Any]:
        await studio.warmed()  # a page that knows this may start, and then its first frame comes at once
        said = studio.welcome("").model_dump(exclude={"session"})
        motions = [{"id": name, **_sizes(m)} for name, m in studio.motions.items()]
        return {**said, "gallery": "/gallery", "max_upload_bytes": studio.cfg.max_upload_bytes, "motions": motions}

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
            for p in studio.pictures.values()
        ]

    @app.get("/api/pictures/{name}.png")
    def picture(name: str) -> Response:
        frame = studio.frame(name)
        if frame is None:
            raise Refusal(404, "picture", f"no picture {name!r}; /api/pictures lists them")
        return Response(_png(frame), media_type="image/png")


def _sizes(motion: Motion) -> dict[str, int]:
    return {"frames": motion.visible.shape[0], "points": motion.visible.shape[1]}


def _png(frame: np.ndarray) -> bytes:
    """H W 3 uint8 -> a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _uploads(app: FastAPI, studio: Studio) -> None:
    about, cfg, arriving = studio.player.about, studio.cfg, asyncio.Semaphore(MOST_ARRIVING)
    busy = {sort: asyncio.Lock() for sort in ("picture", "depth", "motion")}

    async def read(request: Request, sort: str, types: Mapping[str, Any], reader: Callable[[bytes, str], T]) -> T:
        """The body, made into something in a thread, one of a sort at a time: decoding takes memory."""
        kind = _content_type(request, types)
        if arriving.locked():
            raise Refusal(429, "busy", f"{MOST_ARRIVING} uploads are arriving already; try again")
        async with arriving:
            data = await _body(request, cfg.max_upload_bytes)
        async with busy[sort]:
            try:
                made = await asyncio.to_thread(reader, data, kind)
            except ValueError as error:
                studio.meters.errors.labels(sort).inc()
                raise Refusal(400, sort, str(error)) from None
        studio.meters.uploads.labels(sort).inc()
        return made

    @app.post("/api/pictures")
    async def picture(request: Request) -> dict[str, Any]:
        cut = await read(
            request, "picture", PICTURES, lambda d, t: read_picture(d, t, about.height, about.width, cfg.max_megapixels)
        )
        return {"id": studio.uploads.put(cut), "width": cut.width, "height": cut.height, "crop": cut.crop}

    @app.post("/api/depth")
    async def depth(request: Request) -> dict[str, Any]:
        made = await read(
            request, "depth", DEPTHS, lambda d, t: read_depth(d, t, about.height, about.width, cfg.max_megapixels)
        )
        return {"id": studio.depths.put(made)}

    @app.post("/api/motions")
    async def motion(request: Request) -> dict[str, Any]:
        xy_px, visible = await read(request, "motion", dict.fromkeys(VIDEOS), lambda d, _: studio.player.motion_of(d))
        made = Motion(xy_px, visible)
        return {"id": studio.motions.put(made), **_sizes(made)}


def _content_type(request: Request, types: Mapping[str, Any]) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in types:
        raise Refusal(415, "content_type", f"Content-Type {kind!r}; send one of {', '.join(types)}, as the whole body")
    return kind


async def _body(request: Request, limit: int) -> bytes:
    """At most `limit` bytes are ever kept. Raises Refusal 413, or 408 where it takes too long."""
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
            raise Refusal(408, "slow", f"not all of it came within {UPLOAD_SECONDS:g} seconds; send it again") from None
    except ClientDisconnect:
        raise Refusal(400, "broken_off", "the sender has left") from None
    if too_large:
        raise Refusal(413, "too_large", f"more than {limit} bytes; send a smaller file, or raise demo.max_upload_bytes")
    return bytes(kept)


def _recordings(app: FastAPI, studio: Studio) -> None:
    @app.get("/api/recordings")
    def recordings() -> list[dict[str, Any]]:
        return list(studio.player.recordings())

    @app.get("/api/recordings/{name}/{file}")
    def recording(name: str, file: str) -> Response:
        try:
            return FileResponse(studio.player.recording_file(name, file))
        except ValueError as error:
            raise Refusal(404, "recording", str(error)) from None
