"""COCO-20i from the archives of COCO 2014."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastfss.atomic import atomic_path
from fastfss.data.coco import PARTS, find_coco, mask_folder
from fastfss.data.prepare.archives import (
    Report,
    Source,
    check_archive,
    existing,
    filled_stems,
    find_source,
    is_filled,
    missing_sources,
    placed_by,
    quiet,
    reach_disk,
    remove_left_overs,
    unpack,
)
from fastfss.data.prepare.instances import Annotated, image_names, read_instances
from fastfss.errors import expected, import_extra

_ORIGIN = "https://cocodataset.org/#download"
ANNOTATIONS = Source(("annotations_trainval2014.zip",), _ORIGIN)
IMAGES = {part: Source((f"{images}.zip",), _ORIGIN) for part, images in PARTS.items()}

_AT_ONCE = 64


def prepare_coco(
    root: Path,
    archives: Sequence[Path],
    report: Report = quiet,
    *,
    parts: Sequence[str] = tuple(PARTS),
    crowds: bool = True,
    overlaps: bool = False,
) -> Path:
    """Unpack COCO 2014 and make a mask of each image that has annotations.

    The instances of an image are painted in the file's order, later ones over earlier ones; grey
    PNGs of class numbers 1..80, 0 background.

    Args:
        root: gets ``COCO2014/``, or has it in a place where `open_coco` finds it.
        archives: folders with the archives.
        report: told of the progress.
        parts: ``train``, ``val``.
        crowds: paint crowd regions too; without them the masks go to a folder of their own.
        overlaps: also write a mask of each class by itself, as PANet has them.

    Returns:
        The folder that has ``annotations``.

    Raises:
        FileNotFoundError: archives that are needed and not there; all are named.
        ValueError: an unknown part, or a damaged archive or file.
        MissingExtraError: pycocotools is missing.
    """
    for part in parts:
        if part not in PARTS:
            raise expected("parts", f"some of {', '.join(PARTS)}", repr(part))
    import_extra("pycocotools.mask", extra="data", purpose="Making COCO's masks")
    coco = existing(find_coco, root, "COCO2014")
    if coco.exists():
        remove_left_overs(coco)
    files = {part: coco / "annotations" / f"instances_{PARTS[part]}.json" for part in parts}
    _check_sources(coco, files, archives, report)
    annotations = find_source(ANNOTATIONS, archives)
    if annotations is not None and not all(is_filled(path) for path in files.values()):
        pattern = re.compile(r"(?:.*/)?(annotations/instances_(?:train|val)2014\.json)")
        unpack(annotations, coco, placed_by(pattern), report)
        for path in files.values():
            if not path.is_file():
                raise expected(f"archive '{annotations}'", f"a file {path.name}", "none")
    names = {part: image_names(path) for part, path in files.items()}
    for part, (images, _) in names.items():
        _unpack_images(coco, part, images, archives, report)
    for part, (_, annotated) in names.items():
        masks = coco / "annotations" / mask_folder(part, crowds)
        masks.mkdir(exist_ok=True)
        lines = masks.with_suffix(".jsonl")
        lacking = set(annotated) - filled_stems(masks, ".png")
        needs_lines = overlaps and not is_filled(lines)
        if lacking or needs_lines:
            report(f"reading {files[part].name}", 0, 1)
            wanted = set(annotated) if needs_lines else lacking
            instances = read_instances(files[part], wanted)
            report(f"reading {files[part].name}", 1, 1)
            _write_masks(masks, [one for one in instances if one.name in lacking], crowds, report)
            if needs_lines:
                _write_overlaps(lines, instances, crowds, report)
    reach_disk()
    return coco


def _check_sources(
    coco: Path, files: Mapping[str, Path], archives: Sequence[Path], report: Report
) -> None:
    """Raise before any work if an archive that is needed for certain is missing or damaged."""
    needed: dict[str, Source] = {}
    if not all(is_filled(path) for path in files.values()):
        needed["annotations"] = ANNOTATIONS
    for part in files:
        if not any((coco / PARTS[part]).glob("*.jpg")):
            needed[f"{part} images"] = IMAGES[part]
    found = {purpose: find_source(source, archives) for purpose, source in needed.items()}
    missing = {purpose: needed[purpose] for purpose, path in found.items() if path is None}
    if missing:
        raise missing_sources(missing, archives)
    for purpose, path in found.items():
        if path is not None:
            check_archive(path, needed[purpose], report)


def _unpack_images(
    coco: Path, part: str, names: Sequence[str], archives: Sequence[Path], report: Report
) -> None:
    """Unpack the images that are not there."""
    folder = coco / PARTS[part]
    lacking = _lacking(folder, names)
    if not lacking:
        return
    archive = find_source(IMAGES[part], archives)
    if archive is None:
        purpose = f"{part}: {len(lacking)} images are missing, the first is {lacking[0]}.jpg"
        raise missing_sources({purpose: IMAGES[part]}, archives)
    pattern = re.compile(rf"(?:.*/)?({PARTS[part]}/[^/]+\.jpg)")
    unpack(archive, coco, placed_by(pattern), report)
    if lacking := _lacking(folder, names):
        wanted = f"all {len(names)} images of the annotations"
        came = f"{len(lacking)} missing, the first {lacking[0]}.jpg"
        raise expected(f"archive '{archive}'", wanted, came)


def _lacking(folder: Path, names: Sequence[str]) -> list[str]:
    there = filled_stems(folder, ".jpg")
    return [name for name in names if name not in there]


def _write_masks(
    folder: Path, annotated: Sequence[Annotated], crowds: bool, report: Report
) -> None:
    def write(one: Annotated) -> None:
        with atomic_path(folder / f"{one.name}.png", flush=False) as temporary:
            Image.fromarray(paint(one, crowds)).save(temporary, format="PNG")

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(annotated), _AT_ONCE):
            part = annotated[start : start + _AT_ONCE]
            list(pool.map(write, part))
            report(f"making masks of {folder.name}", start + len(part), len(annotated))


def paint(image: Annotated, crowds: bool) -> npt.NDArray[np.uint8]:
    """The label map of an image: its instances in order, later ones over earlier ones."""
    coder: Any = import_extra("pycocotools.mask", extra="data", purpose="Making COCO's masks")
    labels = np.zeros(image.size, dtype=np.uint8)
    for instance in image.instances:
        if crowds or not instance.is_crowd:
            mask = coder.decode({"size": list(image.size), "counts": instance.counts})
            labels[mask == 1] = instance.cls
    return labels


def _write_overlaps(
    path: Path, annotated: Sequence[Annotated], crowds: bool, report: Report
) -> None:
    """One JSON line an image: name, size, pixels and run lengths of each class."""
    coder: Any = import_extra("pycocotools.mask", extra="data", purpose="Making COCO's masks")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for done, one in enumerate(annotated, start=1):
            of_class: dict[int, list[dict[str, Any]]] = {}
            for instance in one.instances:
                if crowds or not instance.is_crowd:
                    run = {"size": list(one.size), "counts": instance.counts}
                    of_class.setdefault(instance.cls, []).append(run)
            merged = {cls: coder.merge(runs) for cls, runs in sorted(of_class.items())}
            entry = {
                "name": one.name,
                "size": one.size,
                "pixels": {cls: int(coder.area(run)) for cls, run in merged.items()},
                "counts": {cls: run["counts"].decode() for cls, run in merged.items()},
            }
            out.write(json.dumps(entry, separators=(",", ":")) + "\n")
            if done % 500 == 0 or done == len(annotated):
                report(f"writing {path.name}", done, len(annotated))
