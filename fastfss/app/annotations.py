"""Annotations that a client sends as a file."""

from __future__ import annotations

from pathlib import Path

from fastfss.errors import expected
from fastfss.video import VideoSession
from fastfss.video.coco import load_coco
from fastfss.video.cvat import load_cvat
from fastfss.video.label_files import read_labels

IMPORTS = (".png", ".json", ".xml")


def add_annotations(session: VideoSession, path: Path, frame: int) -> list[int]:
    """Give a session the masks of a file; the frames that got some.

    Args:
        session: of the video.
        path: a palette PNG of one frame, COCO's or YouTube-VIS's JSON, CVAT's XML.
        frame: of the PNG.

    Raises:
        ValueError: another file, or one of another video; nothing changed.
    """
    if path.suffix == ".png":
        session.limits.check_size(session.size, "frame")
        session.add_labels(frame, read_labels(path, session.size, "masks").numpy())
        return [frame]
    if path.suffix == ".json":
        return load_coco(session, path)
    if path.suffix == ".xml":
        return load_cvat(session, path)
    raise expected("file", f"one of {', '.join(IMPORTS)}", path.suffix or "another")
