"""Lists of images that published protocols draw from: read, made again, and checked.

HSNet's split lists (Min, Kang, Cho, ICCV 2021) serve most later methods too; PFENet (Tian et al.,
TPAMI 2020) has lists of its own. They cannot be shipped with fastfss. They are read from the
published files, or made again from a prepared data set; digests say whether the result is theirs.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from fastfss.data.list_digests import PUBLISHED_LISTS
from fastfss.data.sets import MaskSet
from fastfss.errors import expected
from fastfss.reading import read_text

ListKind: TypeAlias = Literal["pascal", "coco"]
ListPart: TypeAlias = Literal["trn", "val"]

# An object of fewer pixels, at the image's own size, is in none of HSNet's lists.
LARGE = 2 * 32 * 32

_CLASSES = {"pascal": 20, "coco": 80}
_FOLDS = 4
_PASCAL_LINE = re.compile(r"(\S+?)__(\d\d)")


@dataclass(frozen=True)
class HSNetList:
    """One of HSNet's lists: which images episodes of a class may use.

    Attributes:
        kind: ``pascal`` or ``coco``.
        part: ``trn`` or ``val``.
        fold: 0..3; its classes are those that the part's fold offers, see `hsnet_classes`.
        pairs: class id, from 1, and name of the image (``2007_000032``,
            ``COCO_val2014_000000000042``), in the list's order; a COCO list is one a class, and
            its pairs go by class.
    """

    kind: ListKind
    part: ListPart
    fold: int
    pairs: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """Such as ``hsnet/pascal/val/fold0``."""
        return f"hsnet/{self.kind}/{self.part}/fold{self.fold}"

    def index(self) -> dict[int, list[str]]:
        """Class id -> names of its images, in the list's order; every class of the list is a key.

        Training on PASCAL joins the lists of three folds: their classes are theirs together.
        """
        found: dict[int, list[str]] = {
            number: [] for number in hsnet_classes(self.kind, self.part, self.fold)
        }
        for number, image in self.pairs:
            found[number].append(image)
        return found

    def lines(self) -> Iterator[str]:
        """The lines over which digests are taken."""
        for number, image in self.pairs:
            if self.kind == "pascal":
                yield f"{image}__{number:02}"
            else:
                yield f"{number - 1:02} {_coco_folder(self.part)}/{image}.jpg"

    @cached_property
    def digests(self) -> tuple[str, str]:
        """sha256 over the sorted lines, and over the lines in order."""
        lines = list(self.lines())
        return lines_digest(sorted(lines)), lines_digest(lines)

    @property
    def is_published(self) -> bool:
        """Whether it has the published pairs, in any order."""
        return self.digests[0] == PUBLISHED_LISTS[self.name].sorted

    @property
    def is_published_in_order(self) -> bool:
        """Whether seeded episodes drawn from it are the published ones."""
        return self.digests[1] == PUBLISHED_LISTS[self.name].ordered

    def places(self, images: MaskSet) -> list[tuple[int, int]]:
        """The pairs as (class, number of the item in a set).

        Raises:
            ValueError: an image that the set has not, or that does not show the class there.
        """
        numbers = {item.name: number for number, item in enumerate(images.items)}
        found = []
        for cls, image in self.pairs:
            if image not in numbers:
                wanted = f"images of {images.name} in '{images.root}'"
                raise expected(f"list {self.name}", wanted, f"{image!r}, which is not there")
            if cls not in images.items[numbers[image]].pixels:
                wanted = f"images that show their class in '{images.root}'"
                raise expected(f"list {self.name}", wanted, f"{image!r} without class {cls}")
            found.append((cls, numbers[image]))
        return found


def hsnet_classes(kind: ListKind, part: ListPart, fold: int) -> tuple[int, ...]:
    """The classes of a list, ids from 1.

    PASCAL has one list of a fold's own classes for either part. COCO's ``trn`` list has the other
    60 classes, and its folds are interleaved.
    """
    check_fold(fold)
    if kind == "pascal":
        return tuple(range(5 * fold + 1, 5 * fold + 6))
    own = range(fold + 1, 81, _FOLDS)
    return tuple(number for number in range(1, 81) if (number in own) == (part == "val"))


def read_hsnet_list(path: str | Path, kind: ListKind, part: ListPart, fold: int) -> HSNetList:
    """Read a published list file.

    Args:
        path: ``foldN.txt`` of PASCAL, ``foldN.pkl`` of COCO.
        kind, part, fold: which it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a list, or classes that are not of the fold; the line is named.
    """
    path = Path(path)
    pairs = _read_pascal(path) if kind == "pascal" else _read_coco(path, part)
    allowed = set(hsnet_classes(kind, part, fold))
    for number, image in pairs:
        if number not in allowed:
            wanted = f"classes of {part} of fold {fold} ({min(allowed)}..{max(allowed)})"
            raise expected(f"list '{path}'", wanted, f"{image!r} of class {number}")
    return HSNetList(kind, part, fold, pairs)


def read_hsnet_lists(
    folder: str | Path, kind: ListKind, part: ListPart
) -> tuple[HSNetList, HSNetList, HSNetList, HSNetList]:
    """Read the published lists of the four folds.

    Args:
        folder: holds ``trn/`` and ``val/``, or ``pascal/`` and ``coco/`` with them.
        kind, part: which to read.

    Raises:
        FileNotFoundError, ValueError: as `read_hsnet_list`.
    """
    base = Path(folder)
    if (base / kind).is_dir():
        base = base / kind
    suffix = "txt" if kind == "pascal" else "pkl"
    lists = [
        read_hsnet_list(base / part / f"fold{fold}.{suffix}", kind, part, fold)
        for fold in range(_FOLDS)
    ]
    return lists[0], lists[1], lists[2], lists[3]


def make_hsnet_list(images: MaskSet, part: ListPart, fold: int, minimum: int = LARGE) -> HSNetList:
    """Make a list again from the masks of a prepared set.

    Args:
        images: ``pascal`` (part ``val``, or ``train`` for trn) or ``coco``.
        part, fold: which list.
        minimum: pixels of the smallest object.

    Returns:
        Sorted as published for PASCAL. The order in COCO's published lists follows no known rule:
        seeded episodes are other than HSNet's, from the same distribution.

    Raises:
        ValueError: a set of another kind.
    """
    kind: ListKind
    if images.name == "pascal":
        kind = "pascal"
    elif images.name == "coco":
        kind = "coco"
    else:
        raise expected("images", "a set of pascal or coco", images.name)
    index = images.index(minimum)
    pairs = [
        (number, images.items[place].name)
        for number in hsnet_classes(kind, part, fold)
        for place in index[number]
    ]
    by_line = kind == "pascal" and part == "val"
    pairs.sort(key=lambda pair: (pair[1], pair[0]) if by_line else pair)
    return HSNetList(kind, part, fold, tuple(pairs))


def read_pfenet_list(path: str | Path) -> tuple[str, ...]:
    """Read one of PFENet's lists: names of images (their files' stems), in the file's order.

    Args:
        path: lines ``JPEGImages/2007_000032.jpg SegmentationClassAug/2007_000032.png``, or names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of another form, an image and a mask of different names, or a name twice.
    """
    names: list[str] = []
    for number, line in enumerate(_lines(Path(path)), start=1):
        stems = [PurePosixPath(word).stem for word in line.split()]
        if len(stems) not in (1, 2) or len(set(stems)) != 1:
            wanted = "an image and its mask of the same name"
            raise expected(f"list '{path}' line {number}", wanted, repr(line))
        names.append(stems[0])
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise expected(f"list '{path}'", "each name once", f"{twice!r} twice")
    return tuple(names)


def read_panet_lists(folder: str | Path) -> dict[int, tuple[str, ...]]:
    """Read PANet's lists of PASCAL: the images of each class, in the files' order.

    The order is that of the directory on the authors' machine, and decides the episodes.

    Args:
        folder: ``ImageSets/Segmentation/trainaug`` with ``class1.txt`` to ``class20.txt``.

    Returns:
        Class id -> names of images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a bad line, as `read_pfenet_list`.
    """
    return {
        number: read_pfenet_list(Path(folder) / f"class{number}.txt")
        for number in range(1, _CLASSES["pascal"] + 1)
    }


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read a list of names, one a line, such as FSS-1000's classes; empty lines are left out."""
    return tuple(_lines(Path(path)))


def matches(name: str, lines: Iterable[str]) -> bool:
    """Whether lines are those of a published list (a key of PUBLISHED_LISTS), in any order."""
    return lines_digest(sorted(lines)) == PUBLISHED_LISTS[name].sorted


def lines_digest(lines: Iterable[str]) -> str:
    """sha256 over lines, each followed by a newline.

    Examples:
        >>> lines_digest(["a", "b"])[:8]
        '911169dd'
    """
    content = hashlib.sha256()
    for line in lines:
        content.update(f"{line}\n".encode())
    return content.hexdigest()


def check_fold(fold: int) -> None:
    """Raise a ValueError unless it is 0..3."""
    if fold not in range(_FOLDS):
        raise expected("fold", "0..3", str(fold))


def _read_pascal(path: Path) -> tuple[tuple[int, str], ...]:
    pairs = []
    for number, line in enumerate(_lines(path), start=1):
        match = _PASCAL_LINE.fullmatch(line)
        if match is None or not 1 <= int(match[2]) <= _CLASSES["pascal"]:
            wanted = "an image and a class 01..20, such as 2007_000032__01"
            raise expected(f"list '{path}' line {number}", wanted, repr(line))
        pairs.append((int(match[2]), match[1]))
    return tuple(pairs)


def _read_coco(path: Path, part: ListPart) -> tuple[tuple[int, str], ...]:
    lists = _unpickle(path)
    folder = _coco_folder(part)
    if not isinstance(lists, Mapping) or not set(lists) <= set(range(_CLASSES["coco"])):
        raise expected(f"list '{path}'", "a dict: class 0..79 -> files", type(lists).__name__)
    pairs = []
    for number in sorted(lists):
        for file in lists[number]:
            name = PurePosixPath(str(file))
            if name.suffix != ".jpg" or name.parent.name != folder:
                raise expected(f"list '{path}' class {number}", f"{folder}/*.jpg", repr(file))
            pairs.append((number + 1, name.stem))
    return tuple(pairs)


class _PlainUnpickler(pickle.Unpickler):
    """Of dicts, lists, strings and numbers alone: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file).load()
        except Exception as error:
            # On damaged data the unpickler raises anything.
            raise expected(f"list '{path}'", "a pickled dict of lists", str(error)) from None


def _coco_folder(part: ListPart) -> str:
    return "train2014" if part == "trn" else "val2014"


def _lines(path: Path) -> Sequence[str]:
    text = read_text(path, f"list '{path}'", encoding="utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]
