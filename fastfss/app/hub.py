"""All sessions of a server: opened from samples, uploads and named files; saved in its workspace.

WORKSPACE/sessions/ID/source.json   where the frames come from
WORKSPACE/sessions/ID/source/       files that were uploaded
WORKSPACE/sessions/ID/session/      as `VideoSession.save` writes it
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock, RLock
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

import fastfss.video
from fastfss.app.protocol import Name, SessionId, first_problem
from fastfss.app.samples import SAMPLES, open_sample
from fastfss.app.settings import Settings
from fastfss.app.worker import Worker, frame_pixels
from fastfss.atomic import write_text_atomically
from fastfss.data import ImageLike
from fastfss.errors import expected
from fastfss.methods import FewShotSegmenter
from fastfss.video import LiveSource
from fastfss.video.source import IMAGE_SUFFIXES, open_source

_VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".gif"))
_SECONDS_TO_OPEN = 3600  # an upload, before it is deleted
_ID = re.compile(r"[A-Za-z0-9_-]{8,32}")


class BusyError(RuntimeError):
    """The server has as much to do as it takes."""


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sample(_Source):
    """A sample, by its name."""

    kind: Literal["sample"]
    name: str


class Named(_Source):
    """A file that the server was started with, by its name."""

    kind: Literal["named"]
    name: str


class Upload(_Source):
    """What was uploaded under an id; the title is for people."""

    kind: Literal["upload"]
    id: SessionId
    title: Name = "upload"


class Camera(_Source):
    """Frames that the page sends."""

    kind: Literal["camera"]


Source = Annotated[Sample | Named | Upload | Camera, Field(discriminator="kind")]
_SOURCES: TypeAdapter[Source] = TypeAdapter(Source)


def read_source(text: str | bytes) -> Source:
    """A source of its JSON; ValueError for anything else."""
    try:
        return _SOURCES.validate_json(text)
    except ValidationError as error:
        raise ValueError(first_problem(error, "source")) from None


class Models(NamedTuple):
    """What follows objects, and what answers clicks; None: the same."""

    model: FewShotSegmenter
    click_model: FewShotSegmenter | None


class Hub:
    """Opens sessions, and finds them by their ids.

    Args:
        settings: of the server.
        make_model: gives the model, once, when the first session needs it.
        make_click_model: likewise what answers clicks, see VideoSession.
    """

    def __init__(
        self,
        settings: Settings,
        make_model: Callable[[], FewShotSegmenter],
        make_click_model: Callable[[], FewShotSegmenter | None] = lambda: None,
    ) -> None:
        self.settings = settings
        self._make_model = make_model
        self._make_click_model = make_click_model
        self._models: Models | None = None
        self._model_lock = Lock()
        self._opening = RLock()  # while a session is opened or closed, which takes its time
        self._lock = Lock()  # of the entries
        self._entries: dict[str, Worker] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def _folder(self) -> Path:
        return self.settings.workspace / "sessions"

    def models(self) -> Models:
        """Those of all sessions."""
        with self._model_lock:
            if self._models is None:
                self._models = Models(self._make_model(), self._make_click_model())
            return self._models

    # ---- What can be opened

    def sources(self) -> list[dict[str, Any]]:
        """Named files and samples, for the page."""
        sources: list[Named | Sample] = [
            Named(kind="named", name=name) for name in self.settings.sources
        ]
        sources += [Sample(kind="sample", name=name) for name in SAMPLES]
        return [{"title": _title(one), "source": one.model_dump()} for one in sources]

    def begin_upload(self) -> str:
        """A new id, with a folder for what comes.

        Raises:
            BusyError: the workspace is full.
        """
        self._drop_abandoned()
        used = sum(p.stat().st_size for p in self._folder.rglob("*") if p.is_file())
        if used + self.settings.limits.upload_bytes > self.settings.limits.workspace_bytes:
            raise BusyError(f"the workspace is full ({used >> 20} MiB): remove sessions")
        name = secrets.token_urlsafe(9)
        (self._folder / name / "source").mkdir(parents=True)
        return name

    def upload_path(self, upload: str, number: int, name: str) -> Path:
        """Where a file of an upload goes: of the client's name only the suffix counts.

        Raises:
            KeyError: no such upload.
            ValueError: too many files, or neither image nor video.
        """
        folder = self._existing(upload) / "source"
        if not folder.is_dir() or (folder.parent / "source.json").exists():
            raise KeyError(upload)
        if not 0 <= number < self.settings.limits.files:
            raise expected("file", f"at most {self.settings.limits.files} files", str(number + 1))
        suffix = Path(name).suffix.lower()
        if suffix not in IMAGE_SUFFIXES | _VIDEO_SUFFIXES:
            wanted = f"an image or a video ({', '.join(sorted(IMAGE_SUFFIXES | _VIDEO_SUFFIXES))})"
            raise expected(f"file {name[-60:]!r}", wanted, suffix or "no suffix")
        return folder / f"{number:05d}{suffix}"

    def upload_bytes_left(self, upload: str) -> int:
        """How much may still come."""
        folder = self._existing(upload) / "source"
        used = sum(path.stat().st_size for path in folder.iterdir())
        return self.settings.limits.upload_bytes - used

    # ---- Sessions

    def open(self, source: Source) -> str:
        """Open a session; its id. An upload that is no video is deleted.

        Raises:
            BusyError: as many are open as the server takes, and all in use.
            KeyError: no such sample, file or upload.
            ValueError, OSError: what is no video.
        """
        name = source.id if isinstance(source, Upload) else secrets.token_urlsafe(9)
        with self._opening:
            if self._open_one(name) is None:
                self._open(name, source)
        return name

    def get(self, name: str) -> Worker:
        """The worker of a session; one that is saved is opened again. KeyError if there is none."""
        worker = self._open_one(name)
        if worker is None:
            with self._opening:
                worker = self._open_one(name) or self._open_again(name)
        worker.used = time.monotonic()
        return worker

    def sessions(self) -> list[dict[str, Any]]:
        """Those that are open or saved, for the page, the newest first."""
        found = []
        for path in self._folder.glob("*/source.json"):
            source, name = read_source(path.read_bytes()), path.parent.name
            events, worker = path.parent / "session" / "events.jsonl", self._open_one(name)
            said = events.exists() or (worker is not None and bool(worker.session.history))
            if not said or (worker is None and isinstance(source, Camera)):
                continue
            changed = (events if events.exists() else path).stat().st_mtime
            found.append({"id": name, "title": _title(source), "changed": changed})
        return sorted(found, key=lambda one: -one["changed"])

    def remove(self, name: str) -> None:
        """Close a session and delete its files; KeyError if there is none."""
        with self._opening:
            folder = self._existing(name)
            self._close(name)
            shutil.rmtree(folder)

    def close(self) -> None:
        """Save and close all; webcams go, and what is neither uploaded nor was said anything of."""
        with self._opening:
            for name, worker in list(self._entries.items()):
                source = read_source((self._folder / name / "source.json").read_bytes())
                said = bool(worker.session.history)
                self._close(name)
                if isinstance(source, Camera) or not (said or isinstance(source, Upload)):
                    shutil.rmtree(self._folder / name)

    def _open_one(self, name: str) -> Worker | None:
        with self._lock:
            return self._entries.get(name)

    def _close(self, name: str) -> None:
        with self._lock:
            worker = self._entries.pop(name, None)
        if worker is not None:
            worker.close()

    def _open_again(self, name: str) -> Worker:
        path = self._existing(name) / "source.json"
        if not path.exists():
            raise KeyError(name)
        source = read_source(path.read_bytes())
        if isinstance(source, Camera):
            raise KeyError(name)  # its frames are gone
        return self._open(name, source)

    def _open(self, name: str, source: Source) -> Worker:
        self._make_room()
        settings, models = self.settings, self.models()
        folder = self._folder / name
        try:
            session = fastfss.video.open(
                self._frames(name, source),
                models.model,
                click_model=models.click_model,
                size=settings.size,
                cache_bytes=settings.cache_bytes,
                limits=settings.limits.video,
                workspace=folder / "session",
            )
        except (ValueError, OSError):
            if isinstance(source, Upload) and not (folder / "source.json").exists():
                shutil.rmtree(folder)
            raise
        folder.mkdir(exist_ok=True)
        write_text_atomically(folder / "source.json", source.model_dump_json())
        worker = Worker(session, folder / "session", settings.limits, self._elsewhere)
        with self._lock:
            self._entries[name] = worker
        return worker

    def _drop_abandoned(self) -> None:
        """Delete uploads that nobody opened."""
        for folder in self._folder.iterdir():
            old = time.time() - folder.stat().st_mtime > _SECONDS_TO_OPEN
            if old and not (folder / "source.json").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def _frames(self, name: str, source: Source) -> object:
        if isinstance(source, Sample):
            return open_sample(source.name)
        if isinstance(source, Named):
            return self.settings.sources[source.name]
        if isinstance(source, Camera):
            return LiveSource(limits=self.settings.limits.video)
        files = sorted((self._existing(name) / "source").iterdir())
        if not files:
            raise expected("upload", "at least one file", "none")
        videos = [path for path in files if path.suffix in _VIDEO_SUFFIXES]
        if videos and len(files) > 1:
            raise expected("upload", "one video, or images alone", f"{len(files)} files")
        opened = open_source(videos[0] if videos else files, self.settings.limits.video)
        opened.name = source.title
        return opened

    def _make_room(self) -> None:
        with self._lock:
            if len(self._entries) < self.settings.limits.sessions:
                return
            idle = [name for name, worker in self._entries.items() if worker.clients == 0]
            if not idle:
                raise BusyError(f"{len(self._entries)} sessions are open and in use: close one")
            oldest = min(idle, key=lambda name: self._entries[name].used)
        self._close(oldest)

    def _existing(self, name: str) -> Path:
        folder = self._folder / name
        if _ID.fullmatch(name) is None or not folder.is_dir():
            raise KeyError(name)
        return folder

    def _elsewhere(
        self, session: str, frame: int, object: int
    ) -> tuple[ImageLike, npt.NDArray[np.bool_], str]:
        worker = self._open_one(session)
        if worker is None:
            raise expected("session", "an open one", repr(session))
        other = worker.session
        result = other.result(frame)
        if result is None or object not in result.objects:
            raise expected("shown", f"an object that has a mask in frame {frame}", str(object))
        return frame_pixels(other, frame), result.mask(object), other.source.name


def _title(source: Source) -> str:
    if isinstance(source, Sample):
        return SAMPLES[source.name]
    if isinstance(source, Camera):
        return "Webcam"
    return source.title if isinstance(source, Upload) else source.name


def with_sources(settings: Settings, paths: list[Path]) -> Settings:
    """The settings, with files and folders that the page offers.

    Raises:
        FileNotFoundError: there is none.
    """
    named: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"source '{path}': no such file or folder")
        name = path.resolve().name
        named[name if name not in named else f"{name} ({len(named) + 1})"] = path.resolve()
    return replace(settings, sources=named)
