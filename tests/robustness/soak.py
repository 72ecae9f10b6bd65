"""Use `fastfss serve` for long: `python -m tests.robustness.soak serve --minutes 20`.

A page's work goes on and on: a session is opened, objects are clicked and corrected, the clip is
followed, changes are undone, masks are shown and exported, the session is closed. The resident
memory of the server is read every ten seconds; where the mean of the last third is more than 5 %
above that of the middle third, the run has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from websockets.sync.client import ClientConnection, connect

import fastfss
from tests.app.client import clip_folder

SECONDS_BETWEEN_SAMPLES = 10.0
ALLOWED_GROWTH = 0.05


def resident(process: int) -> float:
    """MiB of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def growth(samples: Sequence[float]) -> float:
    """By which share the last third lies above the middle third."""
    third = len(samples) // 3
    if not third:
        raise ValueError(f"samples: expected at least 3, got {len(samples)}")
    return mean(samples[2 * third :]) / mean(samples[third : 2 * third]) - 1


class Server:
    """The program, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        clip = clip_folder(folder / "clip", 8)
        root = str(Path(fastfss.__file__).parents[1])
        command = [sys.executable, "-m", "fastfss", "serve", "--port", "0", "--size", "120"]
        self.process = subprocess.Popen(
            [*command, "--threads", "1", "--workspace", str(folder / "work"), str(clip)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert self.process.stdout is not None
        found = re.search(r"serving (http://\S+?)/? ?$", self.process.stdout.readline().strip())
        assert found, "the server did not start"
        self.address = found[1]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer of the HTTP API."""
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            data = answer.read()
        return json.loads(data) if data[:1] in (b"{", b"[") else data


class Page:
    """A WebSocket, and what came of it."""

    def __init__(self, socket: ClientConnection, counts: Counter[str]) -> None:
        self.socket, self.counts, self.number = socket, counts, 0

    def do(self, what: str, **fields: Any) -> dict[str, Any]:
        """The reply to a command, or the error."""
        self.number += 1
        self.socket.send(json.dumps({"v": 1, "id": self.number, "do": what, **fields}))
        while True:
            found = self._next()
            if found.get("id") == self.number:
                self.counts[what if found["kind"] == "reply" else "refused"] += 1
                return found

    def followed(self) -> None:
        """Wait for the end of a propagation."""
        while (found := self._next())["kind"] != "progress" or not found["ended"]:
            pass

    def _next(self) -> dict[str, Any]:
        message = self.socket.recv(timeout=120)
        if isinstance(message, bytes):
            self.socket.send('{"do": "ack"}')
            self.counts["masks"] += 1
            return {"kind": "masks"}
        found: dict[str, Any] = json.loads(message)
        return found


def one_session(
    server: Server, source: dict[str, str], rng: random.Random, counts: Counter[str]
) -> None:
    """What a person does with a clip."""
    session = server.ask("POST", "sessions", source)["id"]
    address = f"ws{server.address[4:]}/api/sessions/{session}/live"
    with connect(address, max_size=None) as socket:
        page = Page(socket, counts)
        number = page.do("object.add", name="red")["object"]
        for _ in range(12):
            point = [rng.uniform(5, 80), rng.uniform(5, 55)]
            where = {"frame": rng.randrange(8), "object": number}
            page.do("clicks", **where, points=[point], positive=rng.random() < 0.8)
            page.do("show", frame=rng.randrange(8))
            if rng.random() < 0.3:
                page.do("undo")
        page.do("box", frame=0, object=number, box=[8, 10, 28, 30])
        if page.do("propagate", frame=0)["kind"] == "reply":
            page.followed()
        page.do("undo")
        page.do("redo")
        server.ask("GET", f"sessions/{session}/frames/3.jpg")
        server.ask("GET", f"sessions/{session}/export/coco")
    server.ask("DELETE", f"sessions/{session}")
    counts["sessions"] += 1


def serve(minutes: float, seed: int) -> int:
    """Drive a server; 1 if its memory grew."""
    rng, counts, samples = random.Random(seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            source = server.ask("GET", "sources")["sources"][0]["source"]
            began = time.monotonic()
            while (passed := time.monotonic() - began) < 60 * minutes:
                one_session(server, source, rng, counts)
                if passed >= SECONDS_BETWEEN_SAMPLES * (len(samples) + 1):
                    samples.append(resident(server.process.pid))
                    print(f"{passed:6.0f} s  {samples[-1]:7.1f} MiB", flush=True)
            assert server.process.poll() is None, "the server ended by itself"
        finally:
            server.process.terminate()
            server.process.wait(timeout=60)
    grown = growth(samples)
    print(", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    print(f"the last third is {100 * grown:+.1f} % above the middle third")
    return int(grown > ALLOWED_GROWTH)


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["serve"])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    return serve(chosen.minutes, chosen.seed)


if __name__ == "__main__":
    raise SystemExit(main())
