"""Use a program for long: `python -m tests.robustness.soak serve --minutes 20`, or `label`.

`serve`: a page's work goes on and on: a session is opened, objects are clicked and corrected, the
clip is followed, changes are undone, masks are shown and exported, the session is closed. `label`:
one job over as many images as the time takes, of sizes that vary. The resident memory, of the
server or of all processes of the job, is read every ten seconds; where the mean of the last third
is more than 5 % above that of the middle third, the run has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

import fastfss
from fastfss import create_model
from fastfss.cli.label_shard import count_failed
from tests.app.client import clip_folder

SECONDS_BETWEEN_SAMPLES = 10.0
ALLOWED_GROWTH = 0.05
INTERRUPTED = 130
SIDE = 240  # pixels that the model sees of an image's longer side
IMAGES, NAMES = 200, 60_000


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


def processes(root: int) -> list[int]:
    """A process and those that it started, and they."""
    found = [root]
    for one in found:
        with suppress(OSError):
            children = Path(f"/proc/{one}/task/{one}/children").read_text()
            found += map(int, children.split())
    return found


def photographs(folder: Path, rng: random.Random) -> None:
    """A folder of many names of few images, whose sizes vary."""
    folder.mkdir()
    generator = np.random.default_rng(rng.randrange(1 << 30))
    for number in range(IMAGES):
        size = (generator.integers(60, 400), generator.integers(60, 400), 3)
        pixels = generator.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg")
    for name in range(NAMES):
        os.link(folder / f"{name % IMAGES:03}.jpg", folder / f"again-{name:06}.jpg")


def label(minutes: float, seed: int) -> int:
    """Label for long, then as Ctrl-C ends it; 1 if the memory grew or an image failed."""
    samples: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photographs(work / "images", random.Random(seed))
        model = create_model("default", size=SIDE)
        mask = np.zeros((90, 120), np.uint8)
        mask[30:60, 40:80] = 1
        model.fit([(np.full((90, 120, 3), 90, np.uint8), mask)]).save(work / "thing.safetensors")
        command = [
            sys.executable,
            "-m",
            "fastfss",
            "label",
            "--task",
            str(work / "thing.safetensors"),
        ]
        command += ["--images", str(work / "images"), "--out", str(work / "out")]
        root = str(Path(fastfss.__file__).parents[1])
        job = subprocess.Popen(
            [*command, "--size", str(SIDE), "--shard-size", "64", "--workers", "2"],
            env={**os.environ, "PYTHONPATH": root},
        )
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 60 * minutes and job.poll() is None:
            time.sleep(SECONDS_BETWEEN_SAMPLES)
            samples.append(sum(resident(one) for one in processes(job.pid)))
            print(f"{passed:6.0f} s  {samples[-1]:7.1f} MiB", flush=True)
        assert job.poll() is None, "the job ended by itself"
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=60) == INTERRUPTED, "the job did not end as one that Ctrl-C ends"
        shards = sorted((work / "out" / "shards").iterdir())
        failed = sum(count_failed(one) for one in shards)
    grown = growth(samples)
    print(f"{len(shards)} shards of 64 images, {failed} images failed")
    print(f"the last third is {100 * grown:+.1f} % above the middle third")
    return int(grown > ALLOWED_GROWTH or failed > 0)


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["serve", "label"])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # of a shell's background; jobs inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run = serve if chosen.what == "serve" else label
    return run(chosen.minutes, chosen.seed)


if __name__ == "__main__":
    raise SystemExit(main())
