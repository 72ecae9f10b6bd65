"""What a client is to get, when it can take it: newer masks and states replace those waiting."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import Any

Plain = Mapping[str, Any]

# Mask frames on the way that the page has not drawn yet.
WINDOW = 4
_ANSWERS = 64  # masks of frames that were asked for, waiting


class Outbox:
    """Messages to one client; filled from any thread, emptied by the event loop.

    Replies all arrive, in order. Of each other kind only the newest waits. Mask frames go only
    while fewer than `WINDOW` are unacknowledged: of a propagation the newest waits, of frames that
    were asked for the newest of each frame.

    Args:
        loop: that empties it.
        waiting: replies at most, before no more commands are read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, waiting: int) -> None:
        self._loop = loop
        self._waiting = waiting
        self._lock = Lock()
        self._ready = asyncio.Event()
        self._replies: deque[str] = deque()
        self._newest: OrderedDict[str, str] = OrderedDict()
        self._answers: OrderedDict[int, bytes] = OrderedDict()
        self._played: bytes | None = None
        self._on_the_way = 0
        self.skipped = 0

    @property
    def full(self) -> bool:
        """Whether the client must read before it may ask for more."""
        return len(self._replies) >= self._waiting

    def reply(self, message: Plain) -> None:
        """A message that must arrive."""
        with self._lock:
            self._replies.append(json.dumps(message))
        self._wake()

    def newest(self, message: Plain) -> None:
        """A message that replaces those of its kind."""
        kind = str(message["kind"])
        with self._lock:
            self._newest[kind] = json.dumps(message)
            self._newest.move_to_end(kind)
        self._wake()

    def answer(self, frame: int, masks: bytes) -> None:
        """Masks of a frame that was asked for or changed."""
        with self._lock:
            self._answers[frame] = masks
            self._answers.move_to_end(frame)
            if len(self._answers) > _ANSWERS:
                self._answers.popitem(last=False)
                self.skipped += 1
        self._wake()

    def play(self, masks: bytes) -> None:
        """Masks of a propagation."""
        with self._lock:
            self.skipped += self._played is not None
            self._played = masks
        self._wake()

    def acknowledge(self, count: int) -> None:
        """So many mask frames were drawn."""
        with self._lock:
            self._on_the_way = max(0, self._on_the_way - count)
        self._wake()

    async def next(self) -> str | bytes:
        """The next message, when there is one that may go."""
        while True:
            self._ready.clear()
            if (found := self.take()) is not None:
                return found
            await self._ready.wait()

    def take(self) -> str | bytes | None:
        """The next message that may go now; None if there is none."""
        with self._lock:
            # Masks before replies: an answered click has been drawn.
            if self._on_the_way < WINDOW and (self._answers or self._played is not None):
                self._on_the_way += 1
                if self._answers:
                    return self._answers.popitem(last=False)[1]
                played, self._played = self._played, None
                return played
            if self._replies:
                return self._replies.popleft()
            if self._newest:
                return self._newest.popitem(last=False)[1]
            return None

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it the client
            self._loop.call_soon_threadsafe(self._ready.set)
