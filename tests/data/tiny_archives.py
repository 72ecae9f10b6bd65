"""Tiny archives in the layouts of the official ones, and what is in them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Labels = npt.NDArray[np.uint8]

VOC_TRAIN = ("2007_000032", "2007_000039")
VOC_VAL = ("2007_000033", "2007_000042")
# SBD files one VOC val image and both VOC train images too, as the real one does.
SBD_TRAIN = ("2008_000008", "2007_000032", "2007_000033")
SBD_VAL = ("2008_000002", "2007_000039")


def photo(name: str, height: int, width: int) -> bytes:
    """A JPEG file of random colours that depend on the name."""
    rng = np.random.default_rng(list(name.encode()))
    small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return encoded(Image.fromarray(small).resize((width, height)), "JPEG")


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def palette_png(labels: Labels) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette([value for n in range(256) for value in (n, 255 - n, 7 * n % 256)])
    return encoded(image, "PNG")


def blocks(name: str, height: int, width: int, labels: Sequence[int]) -> Labels:
    """Random rectangles of labels on background."""
    rng = np.random.default_rng([7, *name.encode()])
    mask = np.zeros((height, width), dtype=np.uint8)
    for label in labels:
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 2] = label
    return mask


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@dataclass(frozen=True)
class Pascal:
    """The archives' folder, and the merged masks that are to come out."""

    folder: Path
    masks: dict[str, Labels]


def size_of(name: str) -> tuple[int, int]:
    return 61 + int(name[-2:]) % 7, 75 + int(name[-2:]) % 5


def make_pascal(folder: Path, more: int = 0) -> Pascal:
    """VOC 2012 and SBD with 6 images and `more` that only SBD has."""
    from scipy.io import savemat

    extra = [f"2010_{n:06}" for n in range(more)]
    masks: dict[str, Labels] = {}
    voc: dict[str, bytes] = {"VOCdevkit/VOC2012/Annotations/2007_000032.xml": b"<x/>"}
    sbd: dict[str, bytes] = {}
    everything = [*dict.fromkeys([*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL, *extra])]
    for place, name in enumerate(everything):
        height, width = size_of(name)
        voc[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"] = photo(name, height, width)
        masks[name] = blocks(name, height, width, [1 + place % 20, 15])
        if name in (*VOC_TRAIN, *VOC_VAL):
            masks[name][:2] = 255
            own = palette_png(masks[name])
            voc[f"VOCdevkit/VOC2012/SegmentationClass/{name}.png"] = own
            voc[f"VOCdevkit/VOC2012/SegmentationObject/{name}.png"] = own
    for part, names in (("train", VOC_TRAIN), ("val", VOC_VAL), ("trainval", VOC_TRAIN + VOC_VAL)):
        listed = "".join(f"{name}\n" for name in names).encode()
        voc[f"VOCdevkit/VOC2012/ImageSets/Segmentation/{part}.txt"] = listed
    lists = {"train": (*SBD_TRAIN, *extra), "val": SBD_VAL}
    for part, names in lists.items():
        sbd[f"benchmark_RELEASE/dataset/{part}.txt"] = "".join(f"{n}\n" for n in names).encode()
        for name in names:
            # SBD's own map of an image that VOC has too is another one, and must not be taken.
            own = masks[name] if name not in (*VOC_TRAIN, *VOC_VAL) else masks[name][::-1]
            buffer = io.BytesIO()
            savemat(buffer, {"GTcls": {"Segmentation": own}}, do_compression=True)
            sbd[f"benchmark_RELEASE/dataset/cls/{name}.mat"] = buffer.getvalue()
            sbd[f"benchmark_RELEASE/dataset/img/{name}.jpg"] = b"not needed"
    folder.mkdir(parents=True, exist_ok=True)
    write_tar(folder / "VOCtrainval_11-May-2012.tar", voc)
    write_tar(folder / "benchmark.tgz", sbd, "w:gz")
    return Pascal(folder, masks)


@dataclass(frozen=True)
class Coco:
    """The archives' folder, and of each part name -> (class, mask, is crowd) in order."""

    folder: Path
    instances: dict[str, dict[str, list[tuple[int, Labels, bool]]]]

    def painted(self, part: str, name: str, crowds: bool = True) -> Labels:
        found = self.instances[part][name]
        labels = np.zeros_like(found[0][1])
        for cls, mask, is_crowd in found:
            if crowds or not is_crowd:
                labels[mask == 1] = cls
        return labels


def run_lengths(mask: Labels) -> list[int]:
    """COCO's uncompressed run lengths: by columns, beginning with zeros."""
    flat = mask.T.ravel()
    ends = [*np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat)]
    runs = np.diff([0, *ends]).tolist()
    return [0, *runs] if flat[0] else runs


def make_coco(folder: Path, images: int = 6) -> Coco:
    """COCO 2014 with some images of each part, of which the last has no annotation."""
    from fastfss.data.coco import CATEGORIES

    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, dict[str, list[tuple[int, Labels, bool]]]] = {}
    annotation_files: dict[str, bytes] = {}
    for part in ("train", "val"):
        entries: list[dict[str, Any]] = []
        listed: list[dict[str, Any]] = []
        files: dict[str, bytes] = {}
        known[part] = {}
        for n in range(1, images + 1):
            height, width = 50 + n % 9, 64 - n % 7
            name = f"COCO_{part}2014_{n:012}"
            image = photo(name, height, width)
            if n == 1:
                grey = Image.open(io.BytesIO(image)).convert("L")
                image = encoded(grey, "JPEG")
            files[f"{part}2014/{name}.jpg"] = image
            listed.append({"id": n, "file_name": f"{name}.jpg", "height": height, "width": width})
            if n == images:
                continue
            shapes: list[tuple[int, Labels, bool]] = []
            for step, cls in enumerate((1 + n % 80, 80, 12)):
                top, left, tall, wide = 5 * step + n % 3, 7 * step, 20, 25
                mask = np.zeros((height, width), dtype=np.uint8)
                mask[top : top + tall, left : left + wide] = 1
                is_crowd = step == 1
                corners = [left, top, left + wide, top]
                corners += [left + wide, top + tall, left, top + tall]
                shape = {"counts": run_lengths(mask), "size": [height, width]}
                entry = {
                    "id": len(entries),
                    "image_id": n,
                    "category_id": CATEGORIES[cls],
                    "iscrowd": int(is_crowd),
                    "segmentation": shape if is_crowd else [corners],
                }
                entries.append(entry)
                shapes.append((cls, mask, is_crowd))
            known[part][name] = shapes
        # In the official order of keys but for train, where annotations come first.
        content: dict[str, Any] = {"info": {"year": 2014}, "images": listed, "licenses": []}
        content["annotations"] = entries
        content["categories"] = [{"id": n, "name": str(n)} for n in CATEGORIES.values()]
        if part == "train":
            content = {"annotations": entries, **content}
        text = json.dumps(content, indent=None if part == "train" else 1)
        annotation_files[f"annotations/instances_{part}2014.json"] = text.encode()
        annotation_files[f"annotations/captions_{part}2014.json"] = b"{}"
        write_zip(folder / f"{part}2014.zip", files)
    write_zip(folder / "annotations_trainval2014.zip", annotation_files)
    return Coco(folder, known)


FSS_CLASSES = ("abacus", "abe's_flyingfish", "zebra")


def make_fss1000(folder: Path, classes: Sequence[str] = FSS_CLASSES) -> Path:
    """FSS-1000 with a few classes, whose masks are grey, 1-bit and RGB."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {"fewshot_data/readme.txt": b"hello"}
    for place, name in enumerate(classes):
        for n in range(1, 11):
            files[f"fewshot_data/{name}/{n}.jpg"] = photo(f"{name}{n}", 32, 32)
            grey = Image.fromarray(fss_grey(name, n))
            image = (grey, grey.point(lambda level: 255 * (level >= 128)).convert("1"))
            mask = [*image, grey.convert("RGB")][place % 3]
            files[f"fewshot_data/{name}/{n}.png"] = encoded(mask, "PNG")
    write_zip(folder / "fewshot_data.zip", files)
    return folder


def fss_grey(name: str, n: int) -> Labels:
    """A mask of grey levels: below 128 is background."""
    grey = blocks(f"{name}{n}", 32, 32, [200])
    grey[0, :2] = 127, 128
    return grey


def make_davis(folder: Path) -> Path:
    """DAVIS 2016 with bear and dog, DAVIS 2017 with bear (two objects) and cat."""
    folder.mkdir(parents=True, exist_ok=True)
    old: dict[str, bytes] = {}
    new: dict[str, bytes] = {}
    for name in ("bear", "dog"):
        for n in range(4):
            labels = davis_labels(name, n)
            old[f"DAVIS/JPEGImages/480p/{name}/{n:05}.jpg"] = photo(f"{name}{n}", 24, 43)
            old[f"DAVIS/JPEGImages/1080p/{name}/{n:05}.jpg"] = b"not needed"
            grey = Image.fromarray(((labels > 0) * 255).astype(np.uint8))
            old[f"DAVIS/Annotations/480p/{name}/{n:05}.png"] = encoded(grey, "PNG")
    for part, name in (("train", "bear"), ("val", "dog")):
        lines = [
            f"/JPEGImages/480p/{name}/{n:05}.jpg /Annotations/480p/{name}/{n:05}.png\n"
            for n in range(4)
        ]
        old[f"DAVIS/ImageSets/480p/{part}.txt"] = "".join(lines).encode()
    for name in ("bear", "cat"):
        for n in range(4):
            new[f"DAVIS/JPEGImages/480p/{name}/{n:05}.jpg"] = photo(f"{name}{n}", 24, 43)
            mask = palette_png(davis_labels(name, n))
            new[f"DAVIS/Annotations/480p/{name}/{n:05}.png"] = mask
    new["DAVIS/ImageSets/2017/train.txt"] = b"bear\n"
    new["DAVIS/ImageSets/2017/val.txt"] = b"cat\n"
    write_zip(folder / "DAVIS-data.zip", old)
    write_zip(folder / "DAVIS-2017-trainval-480p.zip", new)
    return folder


def davis_labels(name: str, n: int) -> Labels:
    labels = blocks(name, 24, 43, [1, 2])
    labels[n] = 1
    return labels


def tree(root: Path) -> dict[str, bytes]:
    """The files below a folder that are no index."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".fastfss")
    }


MAKERS: dict[str, Callable[[Path], object]] = {
    "pascal": make_pascal,
    "coco": make_coco,
    "fss1000": make_fss1000,
    "davis": make_davis,
}
