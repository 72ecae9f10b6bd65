"""COCO's instances file, read without holding it as Python objects.

The official train file has 330 MB, which become several GB as dicts. Only its text, and what is
wanted of each annotation, is held here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastfss.data.coco import CATEGORIES
from fastfss.errors import expected, import_extra
from fastfss.reading import read_text

# What is wanted of an annotation besides its image.
_FIELDS = frozenset({"category_id", "segmentation"})
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Instance:
    """One annotated object, or a crowd.

    Attributes:
        cls: class id, 1..80.
        is_crowd: whether it stands for several objects.
        counts: compressed run lengths of its mask.
    """

    cls: int
    is_crowd: bool
    counts: bytes


@dataclass(frozen=True)
class Annotated:
    """An image of an instances file.

    Attributes:
        name: its file name without suffix.
        size: height and width.
        instances: in the file's order.
    """

    name: str
    size: tuple[int, int]
    instances: list[Instance] = field(default_factory=list)


def image_names(path: Path) -> tuple[list[str], list[str]]:
    """The names, without suffix, of all images of an instances file, and of those annotated.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged JSON, or another kind of file.
    """
    images, annotated = _images(read_text(path, f"'{path}'"), path)
    names = sorted(images[number].name for number in annotated)
    return sorted(one.name for one in images.values()), names


def read_instances(path: Path, names: Container[str]) -> list[Annotated]:
    """Read the instances of some images.

    Args:
        path: ``instances_val2014.json`` or its like.
        names: of the images, without suffix.

    Returns:
        Those of the images that have annotations, by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged JSON, another kind of file, or an unknown category or image.
        MissingExtraError: pycocotools is missing.
    """
    coder: Any = import_extra("pycocotools.mask", extra="data", purpose="Making COCO's masks")
    text = read_text(path, f"'{path}'")
    # Twice, because nothing says that images come before annotations.
    images, _ = _images(text, path)
    classes = {category: number for number, category in CATEGORIES.items()}
    for key, entry in _entries(text, path):
        if key != "annotations" or images[entry["image_id"]].name not in names:
            continue
        target = images[entry["image_id"]]
        category = entry["category_id"]
        if category not in classes:
            raise expected(f"'{path}'", "COCO's categories", f"category {category}")
        counts = _run_lengths(coder, entry, target, path)
        target.instances.append(Instance(classes[category], bool(entry.get("iscrowd")), counts))
    return sorted((one for one in images.values() if one.instances), key=lambda one: one.name)


def _images(text: str, path: Path) -> tuple[dict[int, Annotated], set[int]]:
    """Id -> image, and the ids that have annotations.

    Reads to the end, so that damage is found before any work is done.
    """
    images: dict[int, Annotated] = {}
    annotated: set[int] = set()
    found = set()
    try:
        for key, entry in _entries(text, path):
            found.add(key)
            if key == "images":
                name = entry["file_name"].rpartition("/")[2].rpartition(".")[0]
                images[entry["id"]] = Annotated(name, (entry["height"], entry["width"]))
            elif key == "annotations":
                annotated.add(entry["image_id"])
                if not entry.keys() >= _FIELDS:
                    raise KeyError(*(_FIELDS - entry.keys()))
    except (KeyError, TypeError, AttributeError) as error:
        wanted = "COCO's instances"
        raise expected(f"'{path}'", wanted, f"{type(error).__name__}: {error}") from None
    for key in ("images", "annotations"):
        if key not in found:
            raise expected(f"'{path}'", f"COCO's instances with {key}", f"{sorted(found)}")
    if unknown := annotated - images.keys():
        raise expected(f"'{path}'", "annotations of its own images", f"image {min(unknown)}")
    return images, annotated


def _run_lengths(coder: Any, entry: Any, image: Annotated, path: Path) -> bytes:
    """Compressed run lengths of polygons, or of run lengths of either kind."""
    height, width = image.size
    shape = entry["segmentation"]
    try:
        if isinstance(shape, list):
            # As pycocotools draws it; other fills have other border pixels.
            parts = coder.frPyObjects(shape, height, width)
            merged = parts[0] if len(parts) == 1 else coder.merge(parts)
        elif isinstance(shape["counts"], list):
            merged = coder.frPyObjects(shape, height, width)
        else:
            merged = shape
        if tuple(merged["size"]) != image.size:
            raise ValueError(f"run lengths of {merged['size']}")
        counts = merged["counts"]
        return counts if isinstance(counts, bytes) else str(counts).encode()
    except Exception as error:
        # On damaged data pycocotools raises anything.
        wanted = f"polygons or run lengths of {height} x {width}"
        label = f"'{path}' annotation {entry.get('id')} of image '{image.name}'"
        raise expected(label, wanted, f"{type(error).__name__}: {error}") from None


def _entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of the lists of a JSON object, and its other values, with their keys."""
    decode = json.JSONDecoder().raw_decode

    def skip(place: int) -> int:
        match = _SPACE.match(text, place)
        assert match is not None
        return match.end()

    def take(place: int, character: str) -> int:
        place = skip(place)
        if text[place : place + 1] != character:
            raise json.JSONDecodeError(f"no {character!r}", text, place)
        return skip(place + 1)

    def follows(place: int, close: str) -> tuple[bool, int]:
        """Whether another element follows, and where it or the end is."""
        place = skip(place)
        if text[place : place + 1] == close:
            return False, place + 1
        return True, take(place, ",")

    try:
        place = take(0, "{")
        more = text[place : place + 1] != "}"
        while more:
            key, place = decode(text, place)
            place = take(place, ":")
            if text[place : place + 1] != "[":
                value, place = decode(text, place)
                yield key, value
            else:
                place = take(place, "[")
                if text[place : place + 1] == "]":
                    place += 1
                    inner = False
                else:
                    inner = True
                while inner:
                    value, place = decode(text, place)
                    yield key, value
                    inner, place = follows(place, "]")
            more, place = follows(place, "}")
    except json.JSONDecodeError as error:
        came = f"{error.msg} at character {error.pos} of {len(text)}"
        raise expected(f"'{path}'", "whole JSON; load it again", came) from None
