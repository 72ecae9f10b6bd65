"""Masks of a session as CVAT's XML, version 1.1: written for images, read of images and videos.

A mask is a box of pixels and run lengths row by row in it, the first one of pixels outside:

    <mask label="dog" rle="3, 5, 9" left="10" top="20" width="8" height="4" z_order="0"/>
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fastfss.atomic import write_text_atomically
from fastfss.errors import expected
from fastfss.reading import naming
from fastfss.video.coco import add_named_masks
from fastfss.video.rle import mask_of_lengths, run_lengths

if TYPE_CHECKING:
    from fastfss.video.session import VideoSession

Mask = npt.NDArray[np.bool_]
_MOST_BYTES = 512 << 20


def write_cvat(session: VideoSession, path: Path) -> None:
    """Write "CVAT for images 1.1": each frame with masks an image, each object a label."""
    height, width = session.size
    root = ElementTree.Element("annotations")
    _text(root, "version", "1.1")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    _text(task, "name", session.source.name)
    _text(task, "size", str(session.count))
    _text(task, "mode", "annotation")
    labels = ElementTree.SubElement(task, "labels")
    names = _distinct(session.objects)
    for name in names.values():
        _text(ElementTree.SubElement(labels, "label"), "name", name)
    for frame in session.frames:
        result = session.result(frame)
        assert result is not None
        about = {"id": str(frame), "name": f"{session.source.frame_name(frame)}.jpg"}
        about |= {"width": str(width), "height": str(height)}
        image = ElementTree.SubElement(root, "image", about)
        for number in result.visible:
            ElementTree.SubElement(image, "mask", _mask_element(result.mask(number), names[number]))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    write_text_atomically(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def load_cvat(session: VideoSession, path: str | Path) -> list[int]:
    """Give a session the masks and polygons of a file, each frame's as one change.

    Images are found by the stem of their names, or else by their ids; the frames of tracks by
    number. All of one label are one object, in a video's file all of one track. Boxes, points and
    lines are left out.

    Args:
        session: of the video.
        path: annotations.xml of "CVAT for images" or "CVAT for video", 1.1.

    Returns:
        The frames that got masks, in order.

    Raises:
        OSError: the file cannot be read.
        ValueError: something else, or no masks; the file is named, nothing changed.
    """
    path = Path(path)
    root = _root(path)
    try:
        names, masks = _masks_of(session, root)
    except (KeyError, TypeError, ValueError) as error:
        raise expected(f"'{path}'", "masks and polygons of CVAT's XML 1.1", str(error)) from None
    return add_named_masks(session, names, masks, path)


def _root(path: Path) -> ElementTree.Element:
    if path.stat().st_size > _MOST_BYTES:
        raise expected(f"'{path}'", f"at most {_MOST_BYTES} bytes", str(path.stat().st_size))
    with naming(path):
        data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities can be made to fill the memory
        raise expected(f"'{path}'", "CVAT's XML", "a document type")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise expected(f"'{path}'", "XML", str(error)) from None
    if root.tag != "annotations":
        raise expected(f"'{path}'", "CVAT's XML: <annotations>", f"<{root.tag[:40]}>")
    return root


def _masks_of(
    session: VideoSession, root: ElementTree.Element
) -> tuple[dict[str, str], dict[int, dict[str, Mask]]]:
    frames = {session.source.frame_name(n): n for n in range(session.count)}
    found: list[tuple[int, str, str, ElementTree.Element]] = []
    for image in root.iter("image"):
        stem = Path(image.attrib["name"]).stem
        frame = frames[stem] if stem in frames else int(image.attrib["id"])
        found += [(frame, one.attrib["label"], one.attrib["label"], one) for one in image]
    for track in root.iter("track"):
        key, label = f"track {track.attrib['id']}", track.attrib["label"]
        shown = [one for one in track if one.get("outside", "0") == "0"]
        found += [(int(one.attrib["frame"]), key, label, one) for one in shown]
    names: dict[str, str] = {}
    masks: dict[int, dict[str, Mask]] = defaultdict(dict)
    for frame, key, label, one in found:
        if one.tag not in ("mask", "polygon") or not 0 <= frame < session.count:
            continue
        mask = _mask(one, session.size) if one.tag == "mask" else _polygon(one, session.size)
        masks[frame][key] = masks[frame].get(key, np.zeros(session.size, bool)) | mask
        names[key] = label
    labels = list(names.values())
    repeated = {k: f"{label} {k}" for k, label in names.items() if labels.count(label) > 1}
    return names | repeated, masks


def _mask(one: ElementTree.Element, size: tuple[int, int]) -> Mask:
    left, top, width, height = (
        int(float(one.attrib[name])) for name in ("left", "top", "width", "height")
    )
    inside = 0 <= left < left + width <= size[1] and 0 <= top < top + height <= size[0]
    if not inside:
        wanted = f"a box in {size[1]} x {size[0]} pixels"
        raise expected("mask", wanted, f"{width} x {height} at {left}, {top}")
    lengths = [int(part) for part in one.attrib["rle"].split(",")]
    total = width * height
    if sum(lengths) < total:  # the last run, of pixels outside, may be left out
        lengths += [0, total - sum(lengths)] if len(lengths) % 2 else [total - sum(lengths)]
    mask = np.zeros(size, bool)
    part = mask_of_lengths(np.array(lengths), (height, width), order="C", argument="rle")
    mask[top : top + height, left : left + width] = part
    return mask


def _polygon(one: ElementTree.Element, size: tuple[int, int]) -> Mask:
    points = [
        tuple(float(part) for part in pair.split(",")) for pair in one.attrib["points"].split(";")
    ]
    if len(points) < 3 or any(len(pair) != 2 for pair in points):
        raise expected("polygon", "at least three points x,y", one.attrib["points"][:60])
    image = Image.new("1", (size[1], size[0]))
    # Pixel centres lie at .5 in CVAT, at whole numbers in Pillow.
    ImageDraw.Draw(image).polygon([(x - 0.5, y - 0.5) for x, y in points], fill=1)
    found: Mask = np.array(image)
    return found


def _mask_element(mask: Mask, label: str) -> dict[str, str]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    lengths = run_lengths(np.ascontiguousarray(part).reshape(-1)).tolist()
    box = {"left": left, "top": top, "width": part.shape[1], "height": part.shape[0]}
    about: dict[str, Any] = {"label": label, "source": "semi-auto", "occluded": 0}
    about |= {"rle": ", ".join(map(str, lengths))} | box | {"z_order": 0}
    return {name: str(value) for name, value in about.items()}


def _distinct(objects: Any) -> dict[int, str]:
    names = list(objects.values())
    return {
        number: name if names.count(name) == 1 else f"{name} {number}"
        for number, name in sorted(objects.items())
    }


def _text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text
