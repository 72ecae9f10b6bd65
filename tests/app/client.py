"""A server in this process with a small model, and a client that speaks as the page does."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from fastfss.app.server import make_app
from fastfss.app.settings import Settings
from fastfss.video.rle import decode_mask
from tests.video.clips import clip, model

ADDRESS = "http://localhost:7860"
SOCKET = "ws://localhost:7860"
TOKEN = "a token of the tests"


@contextmanager
def serving(workspace: Path, **options: Any) -> Iterator[TestClient]:
    """A client of a server that runs meanwhile."""
    settings = Settings(workspace, **{"size": 96, **options})
    with TestClient(make_app(settings, model), base_url=ADDRESS) as client:
        yield client


def clip_folder(folder: Path, count: int = 4, objects: int = 2) -> Path:
    """The frames of tests.video.clips.clip, as PNGs."""
    folder.mkdir()
    for number, frame in enumerate(clip(count, objects)[0]):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


def opened(client: TestClient, **source: Any) -> str:
    """The id of a new session; of the named source "clip" by default."""
    answer = client.post("/api/sessions", json=source or {"kind": "named", "name": "clip"})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


class Masks:
    """A mask frame, decoded."""

    def __init__(self, data: bytes) -> None:
        kind, self.flags, count, self.frame, self.seq, width, height = struct.unpack_from(
            "<BBHIIHH", data
        )
        assert kind == 1
        self.bytes = len(data)
        self.labels = np.zeros((height, width), np.uint8)
        at = 16
        for _ in range(count):
            number, length = struct.unpack_from("<HI", data, at)
            runs = data[at + 6 : at + 6 + length]
            self.labels[decode_mask(runs, (height, width))] = number
            at += 6 + length
        assert at == len(data)


class Page:
    """What a page does with its WebSocket."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.number = 0
        self.state: dict[str, Any] = {}
        self.masks: dict[int, Masks] = {}
        self.messages: list[dict[str, Any]] = []
        self.until("state")

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """The reply to a command, or its error."""
        self.number += 1
        self.socket.send_text(json.dumps({"v": 1, "id": self.number, "do": what, **fields}))
        while True:
            found = self.receive()
            if found.get("id") == self.number:
                return found

    def until(self, kind: str) -> dict[str, Any]:
        """The next message of a kind."""
        while True:
            found = self.receive()
            if found["kind"] == kind:
                return found

    def receive(self) -> dict[str, Any]:
        """The next message; mask frames are kept and acknowledged."""
        message = self.socket.receive()
        if message["type"] == "websocket.close":
            raise ConnectionError(message)
        if message.get("bytes") is not None:
            masks = Masks(message["bytes"])
            self.masks[masks.frame] = masks
            self.socket.send_text('{"do": "ack"}')
            return {"kind": "masks", "frame": masks.frame}
        plain: dict[str, Any] = json.loads(message["text"])
        self.messages.append(plain)
        if plain["kind"] == "state":
            self.state = plain
        return plain

    def labels(self, frame: int) -> np.ndarray:
        """The label map of a frame, as it is now."""
        reply = self.ask("show", frame=frame)
        assert reply["kind"] == "reply", reply
        return self.masks[frame].labels


@contextmanager
def page(client: TestClient, session: str) -> Iterator[Page]:
    """A page that is connected meanwhile."""
    with client.websocket_connect(f"{SOCKET}/api/sessions/{session}/live") as socket:
        yield Page(socket)
