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
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, RLock
from typing import Annotated, Any, Literal

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


@dataclass
class _Entry:
    worker: Worker
    opened: float


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
        self._model: FewShotSegmenter | None = None
        self._click_model: FewShotSegmenter | None = None
        self._model_lock = Lock()
        self._lock = RLock()
        self._entries: dict[str, _Entry] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def _folder(self) -> Path:
        return self.settings.workspace / "sessions"

    def model(self) -> FewShotSegmenter:
        """The model of all sessions."""
        with self._model_lock:
            if self._model is None:
                self._click_model = self._make_click_model()
                self._model = self._make_model()
            return self._model

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
        if not folder.is_dir() or upload in self._entries:
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
        """Open a session; its id.

        Raises:
            BusyError: as many are open as the server takes, and all in use.
            KeyError: no such sample, file or upload.
            ValueError, OSError: what is no video.
        """
        name = source.id if isinstance(source, Upload) else secrets.token_urlsafe(9)
        with self._lock:
            if name not in self._entries:
                self._open(name, source)
        return name

    def get(self, name: str) -> Worker:
        """The worker of a session; one that is saved is opened again. KeyError if there is none."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                path = self._existing(name) / "source.json"
                if not path.exists():
                    raise KeyError(name)
                source = read_source(path.read_bytes())
                if isinstance(source, Camera):
                    raise KeyError(name)  # its frames are gone
                self._open(name, source)
                entry = self._entries[name]
            entry.worker.used = time.monotonic()
            return entry.worker

    def sessions(self) -> list[dict[str, Any]]:
        """Those that are open or saved, for the page, the newest first."""
        found = []
        for path in self._folder.glob("*/source.json"):
            source, name = read_source(path.read_bytes()), path.parent.name
            if isinstance(source, Camera) and name not in self._entries:
                continue  # its frames are gone
            events = path.parent / "session" / "events.jsonl"
            changed = (events if events.exists() else path).stat().st_mtime
            found.append({"id": name, "title": _title(source), "changed": changed})
        return sorted(found, key=lambda one: -one["changed"])

    def remove(self, name: str) -> None:
        """Close a session and delete its files; KeyError if there is none."""
        with self._lock:
            folder = self._existing(name)
            entry = self._entries.pop(name, None)
            if entry is not None:
                entry.worker.close()
            shutil.rmtree(folder)

    def close(self) -> None:
        """Save and close all."""
        with self._lock:
            for name in list(self._entries):
                self._entries.pop(name).worker.close()

    def _open(self, name: str, source: Source) -> None:
        self._make_room()
        settings = self.settings
        folder = self._folder / name
        session = fastfss.video.open(
            self._frames(name, source),
            self.model(),
            click_model=self._click_model,
            size=settings.size,
            cache_bytes=settings.cache_bytes,
            limits=settings.limits.video,
            workspace=folder / "session",
        )
        folder.mkdir(exist_ok=True)
        write_text_atomically(folder / "source.json", source.model_dump_json())
        worker = Worker(session, folder / "session", settings.limits, self._elsewhere)
        self._entries[name] = _Entry(worker, time.monotonic())

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
        if len(self._entries) < self.settings.limits.sessions:
            return
        idle = [name for name, entry in self._entries.items() if entry.worker.clients == 0]
        if not idle:
            raise BusyError(f"{len(self._entries)} sessions are open and in use: close one")
        oldest = min(idle, key=lambda name: self._entries[name].worker.used)
        self._entries.pop(oldest).worker.close()

    def _existing(self, name: str) -> Path:
        folder = self._folder / name
        if _ID.fullmatch(name) is None or not folder.is_dir():
            raise KeyError(name)
        return folder

    def _elsewhere(
        self, session: str, frame: int, object: int
    ) -> tuple[ImageLike, npt.NDArray[np.bool_], str]:
        with self._lock:
            entry = self._entries.get(session)
        if entry is None:
            raise expected("session", "an open one", repr(session))
        other = entry.worker.session
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
