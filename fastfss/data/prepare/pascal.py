"""PASCAL-5i from the archives of VOC 2012 and SBD."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastfss.atomic import atomic_path, write_text_atomically
from fastfss.data.index import read_indices
from fastfss.data.pascal import MERGED, OWN, find_voc, read_image_set
from fastfss.data.prepare.archives import (
    Report,
    Source,
    check_archive,
    existing,
    find_source,
    is_filled,
    missing_sources,
    placed_by,
    quiet,
    reach_disk,
    read_members,
    remove_left_overs,
    unpack,
)
from fastfss.errors import expected, import_extra

VOC = Source(
    ("VOCtrainval_11-May-2012.tar", "VOCtrainval*2012*.tar*"),
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    "6cd6e144f989b92b3379bac3b3de84fd",
)
SBD = Source(
    ("benchmark.tgz", "benchmark*.t*gz"),
    "http://home.bharathh.info/pubs/codes/SBD/download.html",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)

_VOC_FILE = re.compile(
    r"(?:.*/)?VOC2012/((?:JPEGImages/[^/]+\.jpg|Segmentation(?:Class|Object)/[^/]+\.png))"
)
_VOC_LIST = re.compile(r"(?:.*/)?VOC2012/(ImageSets/Segmentation/(?:train|val|trainval)\.txt)")
_SBD_MASK = re.compile(r"(?:.*/)?dataset/cls/([^/]+)\.mat")
_SBD_LIST = re.compile(r"(?:.*/)?dataset/(train|val)\.txt")
_SBD_MASKS = 11355
_MERGED_LISTS = ("train", "val", "sbd_train", "sbd_val")
_MAT_FILES_AT_ONCE = 64


def prepare_pascal(root: Path, archives: Sequence[Path], report: Report = quiet) -> Path:
    """Unpack VOC 2012, merge the masks of SBD, write the lists.

    The merged masks, ``SegmentationClassAug``, are VOC's own where an image has one, else SBD's
    class map; grey PNGs of class numbers, which every published loader reads.

    Args:
        root: gets ``VOC2012/``, or has it in a place where `open_pascal` finds it.
        archives: folders with the archives.
        report: told of the progress.

    Returns:
        The folder that has ``JPEGImages``.

    Raises:
        FileNotFoundError: archives that are needed and not there; all are named.
        ValueError: a damaged archive.
        MissingExtraError: SciPy is missing.
    """
    voc = existing(find_voc, root, "VOC2012")
    needs_voc, needs_sbd = not _has_voc(voc), not _has_sbd(voc)
    sources = {"images and masks": (VOC, needs_voc), "more masks": (SBD, needs_sbd)}
    paths = {source: find_source(source, archives) for source, needed in sources.values() if needed}
    missing = {
        purpose: source
        for purpose, (source, needed) in sources.items()
        if needed and paths[source] is None
    }
    if missing:
        raise missing_sources(missing, archives)
    if needs_sbd:
        import_extra("scipy.io", extra="data", purpose="Reading SBD's masks")
    for source, path in paths.items():
        if path is not None:
            check_archive(path, source, report)
    if voc.exists():
        remove_left_overs(voc)
    if voc_archive := paths.get(VOC):
        # The lists last: with them a folder counts as unpacked.
        for pattern in (_VOC_FILE, _VOC_LIST):
            unpack(voc_archive, voc, placed_by(pattern), report)
        if not _has_voc(voc):
            wanted = "VOC2012 with JPEGImages, SegmentationClass and ImageSets/Segmentation"
            raise expected(f"archive '{voc_archive}'", wanted, _what_voc_lacks(voc))
    if sbd_archive := paths.get(SBD):
        _merge(voc, sbd_archive, report)
    return voc


def _has_voc(voc: Path) -> bool:
    return not _what_voc_lacks(voc)


def _what_voc_lacks(voc: Path) -> str:
    """The first file of VOC that is not there."""
    for part in ("train", "val"):
        path = voc / "ImageSets" / "Segmentation" / f"{part}.txt"
        if not path.is_file():
            return f"no '{path}'"
        for name in read_image_set(voc, part):
            for file in (f"JPEGImages/{name}.jpg", f"{OWN}/{name}.png"):
                if not is_filled(voc / file):
                    return f"no '{voc / file}'"
    return ""


def _has_sbd(voc: Path) -> bool:
    # The list is written after the last mask.
    if not (voc / "ImageSets" / "Segmentation" / "trainaug.txt").is_file():
        return False
    listed = {name for part in _MERGED_LISTS for name in read_image_set(voc, part)}
    return all(is_filled(voc / MERGED / f"{name}.png") for name in listed)


def _merge(voc: Path, archive: Path, report: Report) -> None:
    merged = voc / MERGED
    merged.mkdir(exist_ok=True)
    own = sorted({*read_image_set(voc, "train"), *read_image_set(voc, "val")})
    for done, name in enumerate(own, start=1):
        target = merged / f"{name}.png"
        if not is_filled(target):
            _write(target, read_indices(voc / OWN / f"{name}.png"))
        report("writing VOC's masks", done, len(own))
    lists = _merge_sbd(voc, archive, set(own), report)
    for part, names in lists.items():
        _write_list(voc, f"sbd_{part}", names)
    reach_disk()
    held_out = set(read_image_set(voc, "val"))
    everything = {*read_image_set(voc, "train"), *lists["train"], *lists["val"]}
    _write_list(voc, "trainaug", sorted(everything - held_out))


def _merge_sbd(
    voc: Path, archive: Path, own: set[str], report: Report
) -> dict[str, tuple[str, ...]]:
    """Write the masks that VOC has not; return SBD's lists."""
    lists: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()

    def wanted(name: str) -> bool:
        match = _SBD_MASK.fullmatch(name)
        if match is None:
            return _SBD_LIST.fullmatch(name) is not None
        seen.add(match[1])
        return match[1] not in own and not is_filled(voc / MERGED / f"{match[1]}.png")

    def write(member: tuple[str, bytes]) -> None:
        name, content = member
        if match := _SBD_LIST.fullmatch(name):
            lists[match[1]] = tuple(content.decode("utf-8").split())
        elif match := _SBD_MASK.fullmatch(name):
            _write(voc / MERGED / f"{match[1]}.png", _read_mat(content, f"{archive}: {name}"))

    members = read_members(archive, wanted)
    with ThreadPoolExecutor() as pool:
        while part := list(islice(members, _MAT_FILES_AT_ONCE)):
            list(pool.map(write, part))
            report("merging SBD's masks", len(seen), max(_SBD_MASKS, len(seen)))
    report("merging SBD's masks", len(seen), len(seen))
    for part_name in ("train", "val"):
        if part_name not in lists:
            wanted_file = f"dataset/{part_name}.txt"
            raise expected(f"archive '{archive}'", f"a file {wanted_file}", "none")
        for name in lists[part_name]:
            if name not in seen:
                raise expected(f"archive '{archive}'", f"a mask of '{name}' in its list", "none")
            if not is_filled(voc / "JPEGImages" / f"{name}.jpg"):
                wanted_file = f"the images of SBD in '{voc / 'JPEGImages'}'"
                raise expected(f"archive '{archive}'", wanted_file, f"no {name}.jpg")
    return lists


def _read_mat(content: bytes, label: str) -> npt.NDArray[np.uint8]:
    reader: Any = import_extra("scipy.io", extra="data", purpose="Reading SBD's masks")
    try:
        values = reader.loadmat(io.BytesIO(content))["GTcls"][0, 0]["Segmentation"]
        labels = np.asarray(values)
        if labels.ndim != 2 or labels.max(initial=0) > 255:
            raise ValueError(f"shape {labels.shape}")
        return labels.astype(np.uint8)
    except Exception as error:
        # On damaged data SciPy raises anything.
        wanted = "a MATLAB file with GTcls.Segmentation"
        raise expected(f"'{label}'", wanted, f"{type(error).__name__}: {error}") from None


def _write(path: Path, labels: npt.NDArray[np.uint8]) -> None:
    with atomic_path(path, flush=False) as temporary:
        Image.fromarray(labels).save(temporary, format="PNG")


def _write_list(voc: Path, name: str, names: Sequence[str]) -> None:
    path = voc / "ImageSets" / "Segmentation" / f"{name}.txt"
    write_text_atomically(path, "".join(f"{one}\n" for one in names))
