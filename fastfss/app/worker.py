"""The thread that a session belongs to: commands first, then the next frame, then what is idle."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastfss.app import protocol as P
from fastfss.app.commands import Plain, carry_out, frame_note
from fastfss.app.images import read_sent_image
from fastfss.app.outbox import Outbox
from fastfss.app.settings import AppLimits
from fastfss.app.snapshot import snapshot
from fastfss.data import ImageLike
from fastfss.video import FrameResult, LiveSource, VideoSession
from fastfss.video.propagating import Propagation
from fastfss.video.source import frame_of

_log = logging.getLogger("fastfss.app")
_SECONDS_TO_PREPARE = 0.1  # without a command, before the frame that is shown is encoded
_SECONDS_TO_SAVE = 2.0
_SECONDS_BETWEEN_STATES = 0.5  # while masks are propagated
_TIMES = 20  # of the last frames, for frames a second

# What a bad command may raise; anything else is an error of ours, and is logged.
KNOWN_ERRORS = (ValueError, TypeError, OSError, NotImplementedError, ImportError)


class Elsewhere(Protocol):
    """Finds what other sessions show."""

    def __call__(
        self, session: str, frame: int, object: int
    ) -> tuple[ImageLike, npt.NDArray[np.bool_], str]:
        """The image, an object's mask and the name of a frame of another session."""


Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Job:
    command: P.AnyCommand
    client: Outbox
    since: float


class Worker:
    """Carries out commands of any number of clients on one session, in a thread of its own.

    Args:
        session: nothing else may change it.
        folder: where it is saved when it changed and nothing is to do.
        limits: of images that are sent.
        elsewhere: finds what other sessions show.
    """

    def __init__(
        self, session: VideoSession, folder: Path, limits: AppLimits, elsewhere: Elsewhere
    ) -> None:
        self.session = session
        self.used = time.monotonic()
        self._folder = folder
        self._limits = limits
        self._elsewhere = elsewhere
        self._wake = Condition()
        self._jobs: deque[_Job] = deque()
        self._others: deque[Callable[[], None]] = deque()
        self._live: tuple[P.LiveFrame, Outbox] | None = None
        self._clients: list[Outbox] = []
        self._closed = False
        # Of the thread alone:
        self._propagation: Propagation | None = None
        self._times: deque[float] = deque(maxlen=_TIMES)
        self._told = 0.0
        self._saved_events = len(session.history)
        self._told_unsaved = -1
        self._focus: int | None = None
        self._latencies: deque[float] = deque(maxlen=200)
        self._thread = Thread(target=self._run, name="fastfss session", daemon=True)
        self._thread.start()

    # ---- Called by any thread

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def join(self, client: Outbox) -> bool:
        """A client connects: it is told the state. False if the session was closed meanwhile."""
        with self._wake:
            if self._closed:
                return False
            self._clients = [*self._clients, client]
            self.used = time.monotonic()
        client.newest(self._state())
        return True

    def leave(self, client: Outbox) -> None:
        """A client is gone."""
        with self._wake:
            self._clients = [one for one in self._clients if one is not client]
            self._jobs = deque(job for job in self._jobs if job.client is not client)

    def ask(self, command: P.AnyCommand, client: Outbox) -> bool:
        """Have a command carried out, which the client is told of; False if too many wait."""
        with self._wake:
            if sum(job.client is client for job in self._jobs) >= self._limits.waiting:
                return False
            self._jobs.append(_Job(command, client, time.perf_counter()))
            self._wake.notify()
        return True

    def run(self, action: Callable[[VideoSession], Answer]) -> Future[Answer]:
        """Have anything else done to the session, between two commands."""
        future: Future[Answer] = Future()

        def do() -> None:
            seq = self.session.seq
            try:
                future.set_result(action(self.session))
            except Exception as error:
                future.set_exception(error)
            self._followed_up(seq)

        with self._wake:
            if self._closed:
                future.set_exception(ValueError("session: it was closed meanwhile"))
            else:
                self._others.append(do)
                self._wake.notify()
        return future

    def see(self, frame: P.LiveFrame, client: Outbox) -> None:
        """A frame of a webcam; one that still waits is dropped."""
        with self._wake:
            self._live = frame, client
            self._wake.notify()

    def close(self) -> None:
        """End the thread, save, and close the session."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    # ---- The thread

    def _run(self) -> None:
        while True:
            with self._wake:
                waited = 0.0
                while not self._work():
                    # Idle work one after another, each when nothing came for a while.
                    before = time.monotonic()
                    self._wake.wait(self._idle_in(waited))
                    waited += time.monotonic() - before
                    if not self._work() and self._idle_in(waited) == 0.0:
                        break
                other = self._others.popleft() if self._others else None
                job = self._jobs.popleft() if self._jobs and other is None else None
                live = None if job or other else self._live
                if live is not None:
                    self._live = None
                closed = self._closed and other is None
            if closed:
                self._finish()
                return
            try:
                if other is not None:
                    other()
                elif job is not None:
                    self._do(job)
                elif live is not None:
                    self._step(*live)
                elif self._propagation is not None:
                    self._advance()
                else:
                    self._idle()
            except Exception:
                # Whatever happens, the session stays open.
                _log.exception("an error in a session's thread")

    def _do(self, job: _Job) -> None:
        command, client = job.command, job.client
        seq = self.session.seq
        try:
            reply = carry_out(self, command)
        except KNOWN_ERRORS as error:
            client.reply(error_message(command.id, self._problem(error)))
            return
        except Exception as error:
            _log.exception("%s", command.do)
            client.reply(error_message(command.id, f"internal error: {type(error).__name__}"))
            return
        if isinstance(command, P.Show):
            client.answer(command.frame, self._masks(command.frame))
        took = time.perf_counter() - job.since
        client.reply({"kind": "reply", "id": command.id, "seconds": round(took, 4), **reply})
        if isinstance(command, P.Clicks | P.Box | P.Scribble):
            self._latencies.append(took)
        self._followed_up(seq)

    def _followed_up(self, seq: int) -> None:
        """After something that may have changed the state `seq`."""
        if self.session.seq == seq:
            return
        self.used = time.monotonic()
        if self._propagation is not None and self._propagation.seq != self.session.seq:
            self.end()
        self._tell(self._state())
        self._tell(self._stats())

    def _work(self) -> bool:
        """Whether there is anything to do at once."""
        waiting = self._jobs or self._others or self._live or self._propagation
        return self._closed or bool(waiting)

    def _step(self, sent: P.LiveFrame, client: Outbox) -> None:
        try:
            if not isinstance(self.session.source, LiveSource):
                raise TypeError("message: expected commands, got a frame; the session is no webcam")
            image = read_sent_image(sent.image, self._limits.video, "frame")
            result = self.session.step(image)
        except KNOWN_ERRORS as error:
            client.reply(error_message(None, self._problem(error)))
            return
        self._focus = result.frame
        masks = P.mask_frame(result.frame, result, self.session.size, P.PROPAGATED)
        client.answer(result.frame, masks)
        client.reply({"kind": "live", "number": sent.number, "frame": result.frame})
        self._told_now_and_then()

    def _advance(self) -> None:
        propagation = self._propagation
        assert propagation is not None
        try:
            result = next(propagation, None)
        except KNOWN_ERRORS as error:  # a frame that cannot be read
            for client in self._clients:
                client.reply(error_message(None, self._problem(error)))
            result = None
        if result is None:
            self.end()
            return
        self._times.append(time.monotonic())
        masks = P.mask_frame(result.frame, result, self.session.size, P.PROPAGATED)
        for client in self._clients:
            client.play(masks)
        self._tell(self._progress(result.frame, ended=False))
        self._told_now_and_then()

    def _told_now_and_then(self) -> None:
        if time.monotonic() - self._told > _SECONDS_BETWEEN_STATES:
            self._told = time.monotonic()
            self._tell(self._state())
            self._tell(self._stats())

    def _idle_in(self, waited: float) -> float | None:
        """Seconds until something idle is to do; None if nothing is."""
        if self._focus is not None and not self.session.tracker.prepared(self._focus):
            return max(0.0, _SECONDS_TO_PREPARE - waited)
        if len(self.session.history) != self._saved_events:
            return max(0.0, _SECONDS_TO_SAVE - waited)
        return None

    def _idle(self) -> None:
        focus, self._focus = self._focus, None
        if focus is not None and not self.session.tracker.prepared(focus):
            with suppress(*KNOWN_ERRORS):  # who asks for the frame is told
                self.session.tracker.prepare_click(focus)
        elif len(self.session.history) != self._saved_events:
            try:
                self._save()
            except OSError as error:  # a full disk: tried again until it is saved
                self._tell_unsaved(error)

    def _save(self) -> None:
        events = len(self.session.history)
        if not isinstance(self.session.source, LiveSource):
            self.session.save(self._folder)
        self._saved_events = events

    def _tell_unsaved(self, error: OSError) -> None:
        """Say once after each change that it is not saved."""
        events = len(self.session.history)
        if events == self._told_unsaved:
            return
        self._told_unsaved = events
        _log.error("a session could not be saved in '%s': %s", self._folder, error)
        for client in self._clients:
            client.reply(error_message(None, f"not saved: {self._problem(error)}"))

    def _finish(self) -> None:
        try:
            if self._propagation is not None:
                self._propagation.close()
            if len(self.session.history) != self._saved_events:
                self._save()
        except Exception:
            _log.exception("a session could not be saved in '%s'", self._folder)
        finally:
            self.session.close()

    # ---- What commands use

    def changed(self, frame: int) -> Plain:
        """See Place."""
        masks = self._masks(frame)
        for client in self._clients:
            client.answer(frame, masks)
        note = frame_note(self.session, frame)
        self._tell({"kind": "prompts", **note})
        return note

    def begin(self, frame: int, direction: Any) -> Plain:
        """See Place."""
        propagation = self.session.propagate(frame, direction=direction)
        if self._propagation is not None:
            self._propagation.close()
        self._propagation = propagation
        self._times.clear()
        self._tell(self._progress(frame, ended=False))
        return {"total": propagation.total, "seq": propagation.seq}

    def end(self) -> Plain:
        """See Place."""
        propagation, self._propagation = self._propagation, None
        if propagation is None:
            return {"done": 0}
        propagation.close()
        self._tell(
            {"kind": "progress", "done": propagation.done, "total": propagation.total}
            | {"ended": True, "fps": self._rate()}
        )
        self._tell(self._state())
        self._tell(self._stats())
        return {"done": propagation.done}

    def look_at(self, frame: int) -> None:
        """See Place."""
        self._focus = frame

    def shown_elsewhere(
        self, session: str, frame: int, object: int
    ) -> tuple[ImageLike, npt.NDArray[np.bool_], str]:
        """See Place."""
        return self._elsewhere(session, frame, object)

    # ---- Messages

    def _problem(self, error: BaseException) -> str:
        return str(error).replace(f"{self._folder.parent}/", "")  # where it lies concerns no client

    def _tell(self, message: Plain) -> None:
        for client in self._clients:
            client.newest(message)

    def _masks(self, frame: int) -> bytes:
        result: FrameResult | None = self.session.result(frame)
        return P.mask_frame(frame, result, self.session.size, 0)

    def _state(self) -> Plain:
        return {"kind": "state", "busy": self._propagation is not None, **snapshot(self.session)}

    def _progress(self, frame: int, *, ended: bool) -> Plain:
        assert self._propagation is not None
        done, total = self._propagation.done, self._propagation.total
        plain = {"kind": "progress", "done": done, "total": total, "frame": frame}
        return plain | {"ended": ended, "fps": self._rate()}

    def _rate(self) -> float:
        if len(self._times) < 2:
            return 0.0
        return round((len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-6), 1)

    def _stats(self) -> Plain:
        answers = sorted(self._latencies)
        plain = (
            {"p50": answers[len(answers) // 2], "p95": answers[int(len(answers) * 0.95)]}
            if (answers)
            else {}
        )
        return {"kind": "stats", "answers": plain, **self.session.stats()}


def error_message(number: int | None, text: str) -> Plain:
    """An error as the page is told it."""
    return {"kind": "error", "id": number, "message": text}


def frame_pixels(session: VideoSession, frame: int) -> Tensor:
    """uint8 (3, H, W) of a frame, for a picture; from any thread."""
    return session.tracker.pixels(frame_of(session.source, frame))
