"""The server: HTTP for sessions, uploads, frames and exports, a WebSocket for all that is live."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from fastfss.app import protocol as P
from fastfss.app.annotations import IMPORTS, add_annotations
from fastfss.app.hub import BusyError, Hub, read_source
from fastfss.app.images import jpeg
from fastfss.app.label_studio import VERSION, LabelStudio
from fastfss.app.outbox import Outbox
from fastfss.app.security import COOKIE, Guard, query_token
from fastfss.app.settings import Settings
from fastfss.app.worker import KNOWN_ERRORS, Worker, error_message, frame_pixels
from fastfss.atomic import atomic_path
from fastfss.errors import expected
from fastfss.methods import FewShotSegmenter

_log = logging.getLogger("fastfss.app")
STATIC = Path(__file__).parent / "static"
_SMALL_BODY = 4096  # bytes of a request's JSON
_LARGE_BODY = 64 << 20  # of Label Studio's, which may hold an image
_CACHED = {"Cache-Control": "private, max-age=31536000, immutable"}


def make_app(
    settings: Settings,
    make_model: Callable[[], FewShotSegmenter],
    make_click_model: Callable[[], FewShotSegmenter | None] = lambda: None,
) -> FastAPI:
    """The application.

    Args:
        settings: of the server.
        make_model: gives the model; called in the background when the server starts.
        make_click_model: likewise what answers clicks; None: the model.
    """
    hub = Hub(settings, make_model, make_click_model)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        making = Thread(target=_quietly, args=(hub.models,), daemon=True)
        making.start()
        yield
        # A process that ends while a thread is inside of torch is aborted.
        await run_in_threadpool(making.join)
        await run_in_threadpool(hub.close)

    # No pages of FastAPI's own: they load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.hub = hub
    app.add_middleware(Guard, settings=settings)
    _add_errors(app, settings)
    _add_pages(app, settings)
    _add_uploads(app, hub)
    _add_sessions(app, hub)
    _add_annotations(app, hub)
    _add_socket(app, hub)
    if settings.label_studio is not None:
        _add_label_studio(app, LabelStudio(settings, hub.models))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _quietly(make: Callable[[], object]) -> None:
    with suppress(Exception):  # who opens a session is told
        make()


def _add_errors(app: FastAPI, settings: Settings) -> None:
    inside = f"{settings.workspace / 'sessions'}/"

    def told(status: int) -> Callable[[Request, Exception], Response]:
        def answer(_: Request, error: Exception) -> Response:
            text = str(error).replace(inside, "")  # where it lies concerns no client
            if isinstance(error, KeyError):
                text = f"there is no {text}"
            return JSONResponse({"message": text}, status)

        return answer

    for kind in KNOWN_ERRORS:
        app.add_exception_handler(kind, told(400))
    app.add_exception_handler(KeyError, told(404))
    app.add_exception_handler(BusyError, told(503))

    def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"message": error.detail}, error.status_code)

    app.add_exception_handler(HTTPException, refused)


def _add_pages(app: FastAPI, settings: Settings) -> None:
    @app.get("/")
    def index(request: Request) -> Response:
        given = query_token(request.scope)
        if given is None or settings.token is None:
            return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})
        # The token goes on as a cookie: it is not left in the address bar.
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            settings.token,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)


def _add_uploads(app: FastAPI, hub: Hub) -> None:
    @app.post("/api/uploads")
    def begin() -> dict[str, str]:
        return {"id": hub.begin_upload()}

    @app.put("/api/uploads/{upload}/{number}")
    async def receive(upload: str, number: int, name: str, request: Request) -> dict[str, int]:
        path = hub.upload_path(upload, number, name)
        left = await run_in_threadpool(hub.upload_bytes_left, upload)
        with atomic_path(path, flush=False) as temporary, temporary.open("wb") as file:
            size = 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > left:
                    raise HTTPException(413, f"upload: expected at most {left} more bytes")
                file.write(chunk)
        return {"bytes": size}


def _add_sessions(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/sources")
    def sources() -> dict[str, Any]:
        limits = hub.settings.limits
        return {
            "sources": hub.sources(),
            "sessions": hub.sessions(),
            "exports": P.EXPORTS,
            "limits": {"upload_bytes": limits.upload_bytes, "files": limits.files},
        }

    @app.post("/api/sessions")
    async def open_session(request: Request) -> dict[str, str]:
        source = read_source(await _body(request, _SMALL_BODY))
        return {"id": await run_in_threadpool(hub.open, source)}

    @app.delete("/api/sessions/{name}")
    def remove(name: str) -> dict[str, str]:
        hub.remove(name)
        return {}

    @app.get("/api/sessions/{name}/frames/{number}.jpg")
    def frame(name: str, number: int, height: int | None = None) -> Response:
        if height is not None and not 16 <= height <= 2160:
            raise expected("height", "16 to 2160", str(height))
        pixels = frame_pixels(hub.get(name).session, number)
        return Response(jpeg(pixels, height), media_type="image/jpeg", headers=_CACHED)

    @app.get("/api/sessions/{name}/images/{image}.jpg")
    def image(name: str, image: str, height: int = 96) -> Response:
        if not 16 <= height <= 2160:
            raise expected("height", "16 to 2160", str(height))
        pixels = hub.get(name).session.tracker.images[image]
        return Response(jpeg(pixels, height), media_type="image/jpeg", headers=_CACHED)

    @app.get("/api/sessions/{name}/export/{format}")
    def export(name: str, format: str) -> Response:
        if format not in P.EXPORTS:
            raise expected("format", f"one of {', '.join(P.EXPORTS)}", repr(format))
        return _exported(hub.get(name), format, hub.settings.workspace)


_FILES = {
    **{"overlay": "overlay.mp4", "coco": "coco.json", "ytvis": "ytvis.json"},
    **{"cvat": "cvat.xml", "csv": "areas.csv"},
}


def _exported(worker: Worker, format: Any, workspace: Path) -> Response:
    session, folder = worker.session, Path(tempfile.mkdtemp(prefix="export-", dir=workspace))
    seq = session.seq
    try:
        name = f"{_plain_name(session.source.name)}-{_FILES.get(format, format)}"
        try:
            written = session.export(folder / _FILES.get(format, format), format)
        finally:
            # Not held up for an export that may take minutes, but not mixed with it either.
            if session.seq != seq:
                raise HTTPException(409, "the masks changed while they were exported: try again")
        if written.is_dir():
            name, written = f"{name}.zip", _zipped(written, folder / "export.zip")
    except BaseException:
        shutil.rmtree(folder)
        raise
    done = BackgroundTask(shutil.rmtree, folder)
    return FileResponse(written, filename=name, background=done)


def _zipped(folder: Path, path: Path) -> Path:
    # PNGs are compressed already.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def _plain_name(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:60]


async def _body(request: Request, limit: int) -> bytes:
    found = b""
    async for chunk in request.stream():
        found += chunk
        if len(found) > limit:
            raise HTTPException(413, f"request: expected at most {limit} bytes")
    return found


def _add_annotations(app: FastAPI, hub: Hub) -> None:
    @app.put("/api/sessions/{session}/annotations")
    async def give(session: str, name: str, request: Request, frame: int = 0) -> dict[str, Any]:
        worker = await run_in_threadpool(hub.get, session)
        data = await _body(request, hub.settings.limits.image_bytes)
        suffix = Path(name).suffix.lower()
        with tempfile.TemporaryDirectory(prefix="import-", dir=hub.settings.workspace) as folder:
            path = Path(folder) / f"annotations{suffix if suffix in IMPORTS else ''}"
            path.write_bytes(data)
            frames = worker.run(lambda one: add_annotations(one, path, frame))
            return {"frames": await asyncio.wrap_future(frames)}


def _add_label_studio(app: FastAPI, studio: LabelStudio) -> None:
    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "fastfss"}

    @app.post("/setup")
    def setup() -> dict[str, str]:
        return {"model_version": VERSION}

    @app.post("/webhook")
    def webhook() -> dict[str, str]:
        return {}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(studio.predict, await _body(request, _LARGE_BODY))


def _add_socket(app: FastAPI, hub: Hub) -> None:
    limits = hub.settings.limits

    @app.websocket("/api/sessions/{name}/live")
    async def live(socket: WebSocket, name: str) -> None:
        await socket.accept()
        try:
            worker = await run_in_threadpool(hub.get, name)
            if worker.clients >= limits.clients:
                raise BusyError(f"{worker.clients} clients are connected to it already")
        except (KeyError, BusyError, *KNOWN_ERRORS) as error:
            text = "there is no such session" if isinstance(error, KeyError) else str(error)
            await socket.send_json({**error_message(None, text), "gone": True})
            await socket.close(1008)
            return
        outbox = Outbox(asyncio.get_running_loop(), limits.waiting)
        sender = asyncio.create_task(_send(socket, outbox))
        try:
            if await run_in_threadpool(worker.join, outbox):
                await _receive(socket, worker, outbox)
            else:
                await socket.close(1012)  # the page comes again, and the session is opened again
        finally:
            worker.leave(outbox)
            sender.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await sender

    async def _receive(socket: WebSocket, worker: Worker, outbox: Outbox) -> None:
        while True:
            try:
                message = await socket.receive()
            except (WebSocketDisconnect, RuntimeError):
                return
            if message["type"] == "websocket.disconnect":
                return
            _handle(message, worker, outbox)
            while outbox.full:
                await asyncio.sleep(0.02)

    def _handle(message: Any, worker: Worker, outbox: Outbox) -> None:
        text, data = message.get("text"), message.get("bytes")
        given = data if text is None else text
        try:
            if len(given) > max(limits.message_bytes, limits.image_bytes):
                raise expected("message", f"at most {limits.message_bytes} bytes", str(len(given)))
            if text is None:
                worker.see(P.read_live_frame(data), outbox)
                return
            command = P.read_command(text)
        except ValueError as error:
            number = None if text is None else P.command_id(text)
            outbox.reply(error_message(number, str(error)))
            return
        if isinstance(command, P.Ack):
            outbox.acknowledge(command.count)
        elif not worker.ask(command, outbox):
            outbox.reply(error_message(command.id, f"{limits.waiting} commands wait already"))


async def _send(socket: WebSocket, outbox: Outbox) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        while True:
            message = await outbox.next()
            if isinstance(message, str):
                await socket.send_text(message)
            else:
                await socket.send_bytes(message)
