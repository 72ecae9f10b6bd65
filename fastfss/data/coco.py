"""COCO-20i: COCO 2014 with one label map an image (Nguyen and Todorovic, ICCV 2019)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastfss.data.index import Progress, read_rgb
from fastfss.data.label_maps import LabelMaps
from fastfss.data.sets import Item, MaskSet
from fastfss.errors import expected, import_extra

# Category ids of the instances file, ascending; class n of 1..80 is the n-th. As in COCO's file.
COCO_CLASSES = dict(
    enumerate(
        (
            *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck"),
            *("boat", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
            *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra"),
            *("giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis"),
            *("snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
            *("skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork"),
            *("knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli"),
            *("carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant"),
            *("bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
            *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
            *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
        ),
        start=1,
    )
)
MISSING_CATEGORIES = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
CATEGORIES = dict(
    enumerate((n for n in range(1, 91) if n not in MISSING_CATEGORIES), start=1)
)  # class id -> category id

PARTS = {"train": "train2014", "val": "val2014"}

_PLACES = ("COCO2014", "COCO", ".")


def open_coco(
    root: Path,
    part: str = "val",
    crowds: bool = True,
    overlaps: bool = False,
    progress: Progress | None = None,
) -> MaskSet:
    """Open COCO-20i as ``fastfss data prepare coco`` leaves it.

    Args:
        root: holds ``COCO2014/`` with ``train2014/``, ``val2014/`` and ``annotations/``, or is it.
        part: ``train`` or ``val``: images that have annotations, by name.
        crowds: whether crowd regions count as their class, as in PANet; DENet leaves them out.
        overlaps: a mask of its own for each class, as in PANet, so that a pixel may belong to
            several; else later instances cover earlier ones. Needs what
            ``prepare coco --overlaps`` writes, and the extra ``fastfss[data]``.
        progress: called while masks are read for the first time.

    Raises:
        FileNotFoundError: a folder or file is missing; it is named.
        ValueError: an unknown part, an unreadable mask, or one with other labels.
    """
    if part not in PARTS:
        raise expected("part", f"one of {', '.join(PARTS)}", repr(part))
    folder = find_coco(root)
    images = PARTS[part]
    masks = f"annotations/{mask_folder(part, crowds)}"
    if overlaps:
        return OverlappingMasks(folder, folder / f"{masks}.jsonl", images)
    if not (folder / masks).is_dir():
        option = "" if crowds else " --crowds skip"
        raise FileNotFoundError(
            f"'{folder / masks}': no such folder; fastfss data prepare coco{option} makes it"
        )
    names = sorted(path.stem for path in (folder / masks).glob("*.png"))
    return LabelMaps(
        "coco",
        folder,
        COCO_CLASSES,
        names,
        [f"{images}/{name}.jpg" for name in names],
        [f"{masks}/{name}.png" for name in names],
        ignores=False,
        key=f"coco-{mask_folder(part, crowds)}",
        progress=progress,
    )


def mask_folder(part: str, crowds: bool) -> str:
    """The folder of a part's masks below ``annotations/``."""
    return PARTS[part] if crowds else f"{PARTS[part]}-without-crowds"


def find_coco(root: Path) -> Path:
    """The folder with ``train2014`` or ``val2014``, at or below a root.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in _PLACES:
        if any((root / place / images).is_dir() for images in PARTS.values()):
            return root / place
    raise FileNotFoundError(
        f"root '{root}': expected COCO2014/val2014, found none; fastfss data prepare coco makes "
        "it from the official archives"
    )


class OverlappingMasks(MaskSet):
    """COCO with a mask of its own for each class of an image.

    Args:
        root: of the images.
        path: JSON lines: name, size, pixels and run lengths of each class.
        images: the folder of the images below the root.
    """

    name = "coco"
    ignores = False
    overlaps = True

    def __init__(self, root: Path, path: Path, images: str) -> None:
        self.root, self.classes, self._path = root, COCO_CLASSES, path
        items: list[Item] = []
        self._starts: list[int] = []
        if not path.exists():
            raise FileNotFoundError(
                f"'{path}': no such file; fastfss data prepare coco --overlaps makes it"
            )
        with path.open("rb") as file:
            start = 0
            for line in file:
                try:
                    entry = json.loads(line)
                    pixels = {int(number): int(n) for number, n in entry["pixels"].items()}
                    image = root / images / f"{entry['name']}.jpg"
                    height, width = map(int, entry["size"])
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    wanted = "a line an image, as fastfss data prepare writes it"
                    came = f"another at line {len(items) + 1} ({error})"
                    raise expected(f"'{path}'", wanted, came) from None
                items.append(Item(entry["name"], image, path, pixels, (height, width)))
                self._starts.append(start)
                start += len(line)
        self.items = tuple(items)
        self._last: tuple[int, Any] = -1, None

    def image(self, number: int) -> Tensor:
        """As `MaskSet.image`."""
        return read_rgb(self.items[number].image)

    def labels(self, number: int) -> Tensor:
        """As `MaskSet.labels`; where classes overlap the higher one is taken."""
        labels = torch.zeros(self._size(number), dtype=torch.uint8)
        for cls in sorted(self.items[number].pixels):
            labels[self.mask(number, cls) == 1] = cls
        return labels

    def mask(self, number: int, cls: int) -> Tensor:
        """As `MaskSet.mask`."""
        self.check_class(cls)
        entry = self._entry(number)
        if str(cls) not in entry["counts"]:
            return torch.zeros(self._size(number), dtype=torch.uint8)
        coder: Any = import_extra(
            "pycocotools.mask", extra="data", purpose="Reading COCO's overlapping masks"
        )
        run = {"size": entry["size"], "counts": entry["counts"][str(cls)]}
        return torch.from_numpy(coder.decode(run)).contiguous()

    def _size(self, number: int) -> tuple[int, int]:
        size = self.items[number].size
        assert size is not None
        return size

    def _entry(self, number: int) -> Any:
        """An image's line; the last one is kept, for its classes are asked for one by one."""
        kept, entry = self._last
        if kept != number:
            with self._path.open("rb") as file:
                file.seek(self._starts[number])
                entry = json.loads(file.readline())
            self._last = number, entry
        return entry
