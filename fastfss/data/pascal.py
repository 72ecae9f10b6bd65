"""PASCAL-5i: PASCAL VOC 2012 with the masks of SBD.

Everingham et al., IJCV 2010; Hariharan et al., ICCV 2011 (SBD); Shaban et al., BMVC 2017 (the
split of its classes in four folds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fastfss.data.index import Progress
from fastfss.data.label_maps import LabelMaps
from fastfss.data.lists import read_pfenet_list
from fastfss.errors import expected

PASCAL_CLASSES = dict(
    enumerate(
        (
            *("aeroplane", "bicycle", "bird", "boat", "bottle"),
            *("bus", "car", "cat", "chair", "cow"),
            *("diningtable", "dog", "horse", "motorbike", "person"),
            *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
        ),
        start=1,
    )
)

MERGED, OWN = "SegmentationClassAug", "SegmentationClass"

# The published code's folders below a common root, ours first.
_PLACES = ("VOC2012", "VOCdevkit/VOC2012", "VOC/VOCdevkit/VOC2012", ".")


def open_pascal(
    root: Path,
    part: str = "val",
    names: str | Path | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> LabelMaps:
    """Open PASCAL-5i as ``fastfss data prepare pascal`` leaves it, or as published code wants it.

    Parts:
        - ``train``: VOC train and SBD without VOC val, 10582 images ("trainaug"), by name.
        - ``val``: VOC val, 1449 images.
        - ``voc_train``: VOC train, 1464 images.
        - ``pfenet_train``: SBD's train list without VOC val, then VOC train: PFENet's 5953, in its
          order. ``denet_train``: the same images, VOC's first.
        - ``denet_val``: VOC val, then SBD's val list.
        - ``all``: every image that has a mask, by name.

    Args:
        root: holds ``VOC2012/`` (or ``VOCdevkit/VOC2012/``), or is that folder.
        part: one of the above.
        names: instead of a part, names of images in order, or a file of them, for example one of
            PFENet's lists.
        progress: called while masks are read for the first time.

    Raises:
        FileNotFoundError: a folder, list or file is missing; it is named.
        ValueError: an unknown part, an unreadable mask, or one with other labels.
    """
    voc = find_voc(root)
    chosen = _names(names) if names is not None else _part(voc, part)
    folder = MERGED if (voc / MERGED).is_dir() else OWN
    if folder == OWN and chosen:
        without = next((one for one in chosen if not (voc / OWN / f"{one}.png").exists()), None)
        if without is not None:
            raise FileNotFoundError(
                f"'{voc / MERGED}': no such folder, and '{without}' has no mask in {OWN}; "
                "fastfss data prepare pascal makes it from VOC's and SBD's archives"
            )
    return LabelMaps(
        "pascal",
        voc,
        PASCAL_CLASSES,
        chosen,
        [f"JPEGImages/{one}.jpg" for one in chosen],
        [f"{folder}/{one}.png" for one in chosen],
        ignores=True,
        key=f"pascal-{folder}",
        progress=progress,
    )


def find_voc(root: Path) -> Path:
    """The folder with ``JPEGImages``, at or below a root.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in _PLACES:
        if (root / place / "JPEGImages").is_dir():
            return root / place
    raise FileNotFoundError(
        f"root '{root}': expected VOC2012/JPEGImages, found none; fastfss data prepare pascal "
        "makes it from the official archives"
    )


def read_image_set(voc: Path, name: str) -> list[str]:
    """Names of images from ``ImageSets/Segmentation/NAME.txt``, or ``ImageSets/NAME.txt``."""
    for folder in (voc / "ImageSets" / "Segmentation", voc / "ImageSets"):
        if (folder / f"{name}.txt").is_file():
            return list(read_pfenet_list(folder / f"{name}.txt"))
    wanted = voc / "ImageSets" / "Segmentation" / f"{name}.txt"
    hint = "; fastfss data prepare pascal makes it" if name not in ("train", "val") else ""
    raise FileNotFoundError(f"'{wanted}': no such file{hint}")


def _pfenet_train(voc: Path) -> list[str]:
    return [*_sbd_train(voc), *read_image_set(voc, "train")]


def _denet_train(voc: Path) -> list[str]:
    return [*read_image_set(voc, "train"), *_sbd_train(voc)]


def _denet_val(voc: Path) -> list[str]:
    return [*read_image_set(voc, "val"), *read_image_set(voc, "sbd_val")]


def _sbd_train(voc: Path) -> list[str]:
    held_out = set(read_image_set(voc, "val"))
    return [name for name in read_image_set(voc, "sbd_train") if name not in held_out]


def _all(voc: Path) -> list[str]:
    folder = voc / MERGED if (voc / MERGED).is_dir() else voc / OWN
    return sorted(path.stem for path in folder.glob("*.png"))


_PARTS: dict[str, Callable[[Path], list[str]]] = {
    "train": lambda voc: read_image_set(voc, "trainaug"),
    "val": lambda voc: read_image_set(voc, "val"),
    "voc_train": lambda voc: read_image_set(voc, "train"),
    "pfenet_train": _pfenet_train,
    "denet_train": _denet_train,
    "denet_val": _denet_val,
    "all": _all,
}


def _part(voc: Path, part: str) -> list[str]:
    if part not in _PARTS:
        raise expected("part", f"one of {', '.join(_PARTS)}", repr(part))
    # An image of two lists counts once, at its first place.
    return list(dict.fromkeys(_PARTS[part](voc)))


def _names(names: str | Path | Sequence[str]) -> list[str]:
    return list(read_pfenet_list(names) if isinstance(names, str | Path) else names)
