"""The state of a session as the page shows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastfss.annotation import Mark
from fastfss.data.palette import way_colours
from fastfss.video import LiveSource, VideoSession

_POINTS = 200  # of a mark that are drawn


def snapshot(session: VideoSession) -> dict[str, Any]:
    """Everything but masks and prompts, ready for JSON."""
    state, source = session.state, session.source
    colours = way_colours(max(state.objects, default=0)).tolist()
    visible: dict[int, list[int]] = {number: [] for number in state.objects}
    for frame, found in session.sightings():
        for number in found:
            visible[number].append(frame)
    return {
        "seq": session.seq,
        "name": source.name,
        "size": list(session.size),
        "count": session.count,
        "fps": source.fps,
        "live": isinstance(source, LiveSource),
        "objects": [
            {"id": n, "name": name, "colour": colours[n], "visible": ranges(visible[n])}
            for n, name in sorted(state.objects.items())
        ],
        "masked": ranges(session.frames),
        "prompted": sorted([frame, number] for frame, number in state.annotations),
        "supports": [
            {
                "seq": one.seq,
                "frame": one.frame,
                "image": one.image,
                "name": _name(session, one.seq),
                "objects": sorted(one.annotations),
            }
            for one in state.supports
        ],
        "can_undo": session.can_undo,
        "can_redo": session.can_redo,
        "model": session.about,
    }


def prompts(session: VideoSession, frame: int) -> list[dict[str, Any]]:
    """What is said of a frame, for drawing."""
    return [
        {"object": number, **_mark(mark)}
        for number, said in sorted(session.state.said_of(frame).items())
        for mark in said.marks
    ]


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers in order as [first, last] of each run."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def _mark(mark: Mark) -> dict[str, Any]:
    step = max(1, len(mark.points) // _POINTS)
    points = [[round(x, 1), round(y, 1)] for x, y in mark.points[::step]]
    plain = {"kind": mark.kind, "positive": mark.positive, "points": points}
    return plain | ({} if mark.width is None else {"width": mark.width})


def _name(session: VideoSession, seq: int) -> str | None:
    name = session.history[seq - 1].data.get("name")
    return None if name is None else str(name)
