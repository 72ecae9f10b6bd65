"""Masks of a session from COCO's and YouTube-VIS's JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastfss.errors import expected, import_extra
from fastfss.reading import read_json
from fastfss.video.rle import from_coco_rle

if TYPE_CHECKING:
    from fastfss.video.session import VideoSession

Mask = npt.NDArray[np.bool_]
Key = TypeVar("Key", int, str)


def load_coco(session: VideoSession, path: str | Path) -> list[int]:
    """Give a session the masks of a file, each frame's as one change.

    Frames are found by the stem of their file names, in YouTube-VIS by their places. Annotations of
    one `track_id` are one object, without any those of one category; objects of the file become
    new ones, or those of the session that have the same name.

    Args:
        session: of the video.
        path: COCO's JSON (`images`), or YouTube-VIS's (`videos`); run lengths or polygons.

    Returns:
        The frames that got masks, in order.

    Raises:
        OSError: the file cannot be read.
        ValueError: something else, or masks of another size; the file is named, nothing changed.
    """
    path = Path(path)
    plain = read_json(path, f"'{path}'")
    try:
        names, masks = _masks_of(session, plain)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError):
        wanted = "images or videos, annotations and categories, as in COCO"
        raise expected(f"'{path}'", wanted, "others") from None
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    return add_named_masks(session, names, masks, path)


def add_named_masks(
    session: VideoSession,
    names: Mapping[Key, str],
    masks: Mapping[int, Mapping[Key, Mask]],
    path: Path,
) -> list[int]:
    """Give a session masks by the keys of a file: key -> name, frame -> key -> mask (H, W).

    Objects become new ones, or those of the session that have the same name.

    Returns:
        The frames that got masks, in order.

    Raises:
        ValueError: none are of the video; the file is named.
    """
    if not masks:
        raise expected(f"'{path}'", f"frames of the video '{session.source.name}'", "none")
    by_name = {name: number for number, name in session.objects.items()}
    numbers = {}
    for key, name in names.items():
        numbers[key] = by_name[name] if name in by_name else session.add_object(name)
    for frame, objects in sorted(masks.items()):
        session.add_mask(frame, {numbers[key]: mask for key, mask in objects.items()})
    return sorted(masks)


def _masks_of(
    session: VideoSession, plain: dict[str, Any]
) -> tuple[dict[int, str], dict[int, dict[int, Mask]]]:
    """Names of the objects, and frame -> object -> mask, both by the file's numbers."""
    categories = {int(one["id"]): str(one["name"]) for one in plain.get("categories", [])}
    masks: dict[int, dict[int, Mask]] = defaultdict(dict)
    names: dict[int, str] = {}
    frames = {session.source.frame_name(n): n for n in range(session.count)}
    images = {int(one["id"]): Path(one["file_name"]).stem for one in plain.get("images", [])}
    videos = "videos" in plain
    for place, one in enumerate(plain["annotations"]):
        category = int(one["category_id"])
        key = int(one["id"] if videos else one.get("track_id", category))
        shown = (
            dict(enumerate(one["segmentations"]))
            if videos
            else {frames.get(images[int(one["image_id"])], -1): one["segmentation"]}
        )
        for frame, segmentation in shown.items():
            if segmentation is None or not 0 <= frame < session.count:
                continue
            mask = _mask(segmentation, session.size, f"annotations[{place}] segmentation")
            masks[frame][key] = masks[frame].get(key, np.zeros(session.size, bool)) | mask
            names.setdefault(key, categories.get(category, f"object {key}"))
    repeated = [key for key, name in names.items() if list(names.values()).count(name) > 1]
    return names | {key: f"{names[key]} {key}" for key in repeated}, masks


def _mask(segmentation: Any, size: tuple[int, int], argument: str) -> Mask:
    if isinstance(segmentation, list):
        coco: Any = import_extra("pycocotools.mask", extra="video", purpose="reading polygons")
        try:
            parts = coco.frPyObjects(segmentation, *size)
            found: Mask = coco.decode(coco.merge(parts)).astype(np.bool_)
        except Exception as error:  # pycocotools raises anything
            raise expected(argument, "COCO polygons", str(error)) from None
    else:
        found = from_coco_rle(segmentation, argument)
    if found.shape != size:
        wanted = f"{size[0]} x {size[1]} pixels, the frames' size"
        raise expected(argument, wanted, f"{found.shape[0]} x {found.shape[1]}")
    return found
