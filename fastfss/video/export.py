"""Masks of a session as files: for DAVIS's tools, COCO's, video editors, and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastfss.atomic import atomic_path, write_text_atomically
from fastfss.data.palette import way_colours
from fastfss.errors import expected, import_extra
from fastfss.result import drawn_over
from fastfss.video.results import FrameResult, Labels
from fastfss.video.rle import coco_rle

if TYPE_CHECKING:
    from fastfss.video.session import VideoSession

ExportFormat = Literal["davis", "binary", "overlay", "coco", "ytvis", "cvat", "cutout", "csv"]
FPS = 24.0  # of overlays of what has no frame rate


def export(session: VideoSession, path: Path, format: ExportFormat) -> Path:
    """Write the masks that the session has now.

    Args:
        session: a session; frames without masks are left out.
        path: a folder, for "davis" (a palette PNG a frame), "binary" (a black and white PNG an
            object and frame) and "cutout" (PNGs with alpha, an object and frame each); a file, for
            "overlay" (.mp4), "coco" (.json, each frame an image), "ytvis" (.json, YouTube-VIS),
            "cvat" (.xml, CVAT for images 1.1) and "csv" (areas and boxes).
        format: one of these.

    Returns:
        The path.

    Raises:
        ValueError: an unknown format, another suffix, or no masks.
        OSError: a file cannot be written.
        MissingExtraError: "overlay" without PyAV.
    """
    if format not in get_args(ExportFormat):
        raise expected("format", f"one of {', '.join(get_args(ExportFormat))}", repr(format))
    if not session.frames:
        raise expected("export", "a session with masks", "none")
    writer, suffix = _WRITERS[format]
    if suffix and path.suffix.lower() != suffix:
        raise expected("path", f"a {suffix} file", f"'{path}'")
    if suffix:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    else:
        path.mkdir(parents=True, exist_ok=True)
    writer(session, path)
    return path


def voc_palette() -> list[int]:
    """The 256 colours of PASCAL VOC and DAVIS, R, G, B one after another.

    Bit 3 k of a number is bit 7 - k of its red, bit 3 k + 1 of its green, bit 3 k + 2 of its blue.
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for k in range(3):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * k + channel) & 1) << (7 - k)).astype(np.uint8)
    found: list[int] = colours.reshape(-1).tolist()
    return found


def write_palette_png(labels: Labels, path: Path) -> None:
    """Write a label map as DAVIS's tools read it."""
    image = Image.fromarray(labels)
    image.putpalette(voc_palette())
    _save(image, path)


def overlay(pixels: npt.NDArray[np.uint8], labels: Labels) -> npt.NDArray[np.uint8]:
    """A frame (H, W, 3) with its objects in colours, as `Result.overlay` draws them."""
    return drawn_over(pixels, labels, way_colours(int(labels.max())))


def _results(session: VideoSession) -> Iterator[FrameResult]:
    for frame in session.frames:
        result = session.result(frame)
        assert result is not None
        yield result


def _pixels(session: VideoSession, frame: int) -> npt.NDArray[np.uint8]:
    found: npt.NDArray[np.uint8] = session.tracker.pixels(frame).permute(1, 2, 0).numpy()
    return found


def _davis(session: VideoSession, folder: Path) -> None:
    for result in _results(session):
        write_palette_png(result.labels, folder / f"{session.source.frame_name(result.frame)}.png")


def _binary(session: VideoSession, folder: Path) -> None:
    for result in _results(session):
        for number in result.objects:
            inside = folder / f"{number}"
            inside.mkdir(exist_ok=True)
            image = Image.fromarray(result.mask(number).astype(np.uint8) * 255)
            _save(image, inside / f"{session.source.frame_name(result.frame)}.png")


def _cutout(session: VideoSession, folder: Path) -> None:
    for result in _results(session):
        pixels = _pixels(session, result.frame)
        for number in result.visible:
            inside = folder / f"{number}"
            inside.mkdir(exist_ok=True)
            alpha = result.mask(number).astype(np.uint8) * 255
            image = Image.fromarray(np.dstack([pixels, alpha]))
            _save(image, inside / f"{session.source.frame_name(result.frame)}.png")


def _overlay(session: VideoSession, path: Path) -> None:
    av: Any = import_extra("av", extra="video", purpose="writing videos")
    height, width = session.size
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(session.source.fps or FPS))
        # H.264 in 4:2:0 has even sides.
        stream.width, stream.height = width - width % 2, height - height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        for result in _results(session):
            drawn = overlay(_pixels(session, result.frame), result.labels)
            even = np.ascontiguousarray(drawn[: stream.height, : stream.width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _coco(session: VideoSession, path: Path) -> None:
    """Each frame an image; annotations of one object have its number as their track_id."""
    height, width = session.size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for result in _results(session):
        name = session.source.frame_name(result.frame)
        image = {"id": result.frame + 1, "file_name": f"{name}.jpg"}
        images.append({**image, "height": height, "width": width})
        for number in result.visible:
            about = {"id": len(annotations) + 1, "image_id": result.frame + 1}
            about |= {"category_id": number, "track_id": number, "iscrowd": 0}
            annotations.append(about | _region(result.mask(number)))
    _write_json(path, {"images": images, "annotations": annotations} | _categories(session))


def _ytvis(session: VideoSession, path: Path) -> None:
    height, width = session.size
    count = session.count
    tracks: dict[int, list[dict[str, Any] | None]] = {n: [None] * count for n in session.objects}
    for result in _results(session):
        for number in result.visible:
            tracks[number][result.frame] = _region(result.mask(number))
    names = [f"{session.source.name}/{session.source.frame_name(n)}.jpg" for n in range(count)]
    video = {"id": 1, "height": height, "width": width, "length": count, "file_names": names}
    annotations = [
        {
            "id": place,
            "video_id": 1,
            "category_id": number,
            "iscrowd": 0,
            "height": height,
            "width": width,
            "length": 1,
            "segmentations": [None if one is None else one["segmentation"] for one in track],
            "bboxes": [None if one is None else one["bbox"] for one in track],
            "areas": [None if one is None else one["area"] for one in track],
        }
        for place, (number, track) in enumerate(sorted(tracks.items()), start=1)
    ]
    _write_json(path, {"videos": [video], "annotations": annotations} | _categories(session))


def _cvat(session: VideoSession, path: Path) -> None:
    from fastfss.video.cvat import write_cvat

    write_cvat(session, path)


def _csv(session: VideoSession, path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("frame", "object", "name", "area", "left", "top", "width", "height", "sure"))
        for result in _results(session):
            for number in result.visible:
                region = _region(result.mask(number))
                name, sure = session.objects[number], f"{result.confidence[number]:.3f}"
                rows.writerow((result.frame, number, name, region["area"], *region["bbox"], sure))


def _region(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    return {"segmentation": coco_rle(mask), "bbox": box, "area": int(np.count_nonzero(mask))}


def _categories(session: VideoSession) -> dict[str, Any]:
    return {"categories": [{"id": n, "name": name} for n, name in sorted(session.objects.items())]}


def _write_json(path: Path, plain: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(plain, separators=(",", ":")) + "\n")


def _save(image: Image.Image, path: Path) -> None:
    # Thousands of small files that can be made again: not each is brought to the disk at once.
    with atomic_path(path, flush=False) as temporary:
        image.save(temporary, format="PNG", compress_level=3)


_WRITERS: dict[ExportFormat, tuple[Callable[[VideoSession, Path], None], str]] = {
    "davis": (_davis, ""),
    "binary": (_binary, ""),
    "cutout": (_cutout, ""),
    "overlay": (_overlay, ".mp4"),
    "coco": (_coco, ".json"),
    "ytvis": (_ytvis, ".json"),
    "cvat": (_cvat, ".xml"),
    "csv": (_csv, ".csv"),
}
