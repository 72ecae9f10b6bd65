"""A session in a folder: events, masks and images, so that it can go on another day.

    session.json     the video, the model, the size
    events.jsonl     the log, an event a line
    results.jsonl    the masks of each frame in each state, a line each
    trails.npz       what propagations remembered of their last frames
    images/          supports from elsewhere

Features are not kept: they are made again where they are needed.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fastfss.atomic import atomic_path, write_text_atomically
from fastfss.data import read_image
from fastfss.errors import expected
from fastfss.reading import naming, read_json, read_text
from fastfss.video.log import EventLog
from fastfss.video.results import Results
from fastfss.video.trail import read_trails, write_trails

if TYPE_CHECKING:
    from fastfss.video.session import VideoSession

FORMAT = "fastfss-video-1"
_DAMAGE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)
_SESSION, _EVENTS, _RESULTS, _IMAGES = "session.json", "events.jsonl", "results.jsonl", "images"
_TRAILS = "trails.npz"


def save(session: VideoSession, folder: Path) -> None:
    """Write a session; a reader sees the old one or the new one, whenever it comes.

    Raises:
        OSError: a file cannot be written.
    """
    history = session.at
    images = folder / _IMAGES
    images.mkdir(parents=True, exist_ok=True)
    for name, pixels in session.tracker.images.items():
        path = images / f"{name}.png"
        if not path.exists():
            with atomic_path(path) as temporary:
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    # Masks before events: masks of events that are not there are left out when it is read.
    _write_lines(folder / _RESULTS, _result_lines(history.results))
    write_trails(folder / _TRAILS, history.trails)
    _write_lines(folder / _EVENTS, history.log.to_lines())
    write_text_atomically(folder / _SESSION, json.dumps(_about(session), indent=2) + "\n")


def load(session: VideoSession, folder: Path) -> bool:
    """Fill a new session from its folder; False where none was saved.

    Raises:
        ValueError: of another video or model, or damaged; the file is named.
    """
    path = folder / _SESSION
    if not path.exists():
        return False
    about, own = _read_json(path), _about(session)
    for key, value in own.items():
        if about.get(key) != value:
            wanted = f"a session with {key} {json.dumps(value)}"
            raise expected(f"workspace '{path}'", wanted, json.dumps(about.get(key)))
    events = folder / _EVENTS
    lines = read_text(events, f"'{events}'").splitlines()
    try:
        log = EventLog.from_lines(lines)
    except ValueError as error:
        raise ValueError(f"'{events}': {error}") from None
    results = Results(session.size)
    for number, line in enumerate(_lines(folder / _RESULTS), start=1):
        try:
            frame, seq, packed, objects, confidence = json.loads(line)
            if seq > len(log):
                continue
            if frame not in range(session.count) or not all(type(n) is int for n in objects):
                raise ValueError(f"frame {frame} with objects {objects}")
            sure = {int(n): float(value) for n, value in confidence.items()}
            results.add_row(int(frame), int(seq), base64.b64decode(packed), tuple(objects), sure)
        except (*_DAMAGE, zlib.error) as error:
            raise ValueError(f"'{folder / _RESULTS}', line {number}: {error}") from None
    images = {}
    for event in log.events:
        name = event.data.get("image") if event.kind == "support" else None
        if name is not None:
            if not str(name).startswith("support-") or "/" in name or "\\" in name:
                raise expected(f"'{events}'", "names of images", repr(name))
            images[str(name)] = read_image(folder / _IMAGES / f"{name}.png", argument="support")
    trails = read_trails(folder / _TRAILS)
    try:
        session.restore(log, results, trails, images)
    except ValueError as error:
        raise ValueError(f"'{events}': {error}") from None
    return True


def _about(session: VideoSession) -> dict[str, Any]:
    source = session.source
    about = {"name": source.name, "size": list(source.size), "frames": source.count}
    return {"format": FORMAT, "video": about, "model": session.about}


def _result_lines(results: Results) -> Iterator[str]:
    for frame, seq, packed, objects, confidence in results.rows():
        text = base64.b64encode(packed).decode("ascii")
        sure = {str(n): round(value, 6) for n, value in confidence.items()}
        yield json.dumps([frame, seq, text, list(objects), sure], separators=(",", ":"))


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        for line in lines:
            file.write(line + "\n")


def _lines(path: Path) -> Iterator[str]:
    with (
        naming(path),
        path.open(encoding="utf-8", errors="replace") as file,
    ):  # which is no JSON then
        yield from file


def _read_json(path: Path) -> dict[str, Any]:
    try:
        plain = read_json(path, "its text")
        if plain["format"] != FORMAT:
            raise expected("format", FORMAT, repr(plain["format"]))
    except (KeyError, TypeError, ValueError) as error:
        raise expected(f"workspace '{path}'", f"a session of {FORMAT}", str(error)) from None
    return dict(plain)
