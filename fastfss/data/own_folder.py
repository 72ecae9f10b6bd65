"""Data of one's own: label maps beside images, or one folder a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastfss.data.folders import list_images, read_support_folder
from fastfss.data.images import read_image
from fastfss.data.index import Pair, Progress, Scanned, read_labels, read_pair, scan
from fastfss.data.masks import IGNORED
from fastfss.data.sets import MOST_CLASSES, Item, MaskSet
from fastfss.errors import expected
from fastfss.reading import read_json, read_text

_NAMELESS = "object"


def open_folder(root: Path, part: str = "val", progress: Progress | None = None) -> MaskSet:
    """Open a folder of one's own, in one of two layouts.

    Label maps: ``images/N.jpg`` with ``masks/N.png``, whose values are classes. ``classes.txt``
    names them: line n is class n, or a line states its number (``3 belt``; 0 and 255 are no
    classes). Without it all masks must hold one class, which is called ``object``. ``index.json``
    (class name -> names of images without their suffix) restricts which images the episodes of a
    class may use. 255 is ignored, but where no mask holds any other label it is the object.

    One folder a class: ``apple/1.jpg`` with ``apple/1.png`` and so on, as
    `fastfss.data.read_support_folder` reads them; all labels but 0 (and 255 beside another) are
    the class. Classes are numbered by name.

    Args:
        root: the folder.
        part: not used; such a folder has one part.
        progress: called while masks are read for the first time.

    Raises:
        ValueError: no pairs, labels that are no classes, sizes that differ; the file is named.
        FileNotFoundError: an image or mask is missing; it is named.
    """
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return LabelMapFolder(root, progress)
    return ClassFolders(root, progress)


class LabelMapFolder(MaskSet):
    """``images/`` and ``masks/``; see `open_folder`."""

    name = "folder"

    def __init__(self, root: Path, progress: Progress | None = None) -> None:
        self.root = root
        files = read_support_folder(root)
        _check_unique([image for image, _ in files], root)
        classes = read_classes(root / "classes.txt") if (root / "classes.txt").exists() else None
        scanned = scan(root, _below(root, files), read_pair, "folder", progress)
        self._value: int | None = None  # of the only class, where classes have no names
        if classes is None:
            self.classes = {1: _NAMELESS}
            self._value, self.ignores = _meaning(scanned, files)
        else:
            self.classes = classes
            _check_known(scanned, files, classes, root)
            self.ignores = any(IGNORED in one.labels for one in scanned)
        self.items = tuple(
            Item(image.stem, image, mask, self._classes_of(one.labels), one.size)
            for (image, mask), one in zip(files, scanned, strict=True)
        )
        self._offered = self._read_listed(root / "index.json")

    def offers(self, number: int, cls: int) -> bool:
        """Whether index.json, if there is one, lists the image for the class."""
        return self._offered is None or (number, cls) in self._offered

    def image(self, number: int) -> Tensor:
        """As `MaskSet.image`; EXIF rotation is applied."""
        return read_image(self.items[number].image)

    def labels(self, number: int) -> Tensor:
        """As `MaskSet.labels`."""
        labels = torch.from_numpy(read_labels(self.items[number].mask))
        if self._value is None:
            return labels
        objects = (labels == self._value).to(torch.uint8)
        return objects.masked_fill_(labels == IGNORED, IGNORED) if self.ignores else objects

    def _classes_of(self, labels: Mapping[int, int]) -> dict[int, int]:
        if self._value is not None:
            return {1: labels[self._value]} if self._value in labels else {}
        return {label: count for label, count in labels.items() if label not in (0, IGNORED)}

    def _read_listed(self, path: Path) -> frozenset[tuple[int, int]] | None:
        if not path.exists():
            return None
        listed = read_json(path, f"'{path}'")
        if not isinstance(listed, dict) or not all(isinstance(v, list) for v in listed.values()):
            raise expected(f"'{path}'", "an object: class name -> names of images", "another kind")
        ids = {name: number for number, name in self.classes.items()}
        places = {item.name: place for place, item in enumerate(self.items)}
        offered = set()
        for name, images in listed.items():
            if name not in ids:
                raise expected(f"'{path}'", "names of classes.txt", repr(name))
            for image in images:
                if not isinstance(image, str) or image not in places:
                    raise expected(f"'{path}' class {name!r}", "names of images", repr(image))
                offered.add((places[image], ids[name]))
        return frozenset(offered)


class ClassFolders(MaskSet):
    """One folder a class; see `open_folder`."""

    name = "folder"

    def __init__(self, root: Path, progress: Progress | None = None) -> None:
        self.root = root
        folders = [
            folder
            for folder in sorted(root.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
        ]
        if not any(_has_images(folder) for folder in folders):
            wanted = "images/ and masks/, or one folder a class with 1.jpg and 1.png"
            came = "no folders" if not folders else f"folders without images ('{folders[0].name}')"
            raise expected(f"root '{root}'", wanted, came)
        pairs = {folder: read_support_folder(folder) for folder in folders}
        self.classes = {number: folder.name for number, folder in enumerate(folders, start=1)}
        files = [pair for of_class in pairs.values() for pair in of_class]
        scanned = scan(root, _below(root, files), read_pair, "folder", progress)
        items: list[Item] = []
        self._meanings: dict[int, tuple[int, bool]] = {}  # class -> value, ignores
        self._own: list[int] = []  # of each item, its class
        for number, folder in enumerate(folders, start=1):
            of_class = scanned[len(items) : len(items) + len(pairs[folder])]
            value, ignores = _meaning(of_class, pairs[folder])
            self._meanings[number] = value, ignores
            _check_unique([image for image, _ in pairs[folder]], folder)
            for (image, mask), one in zip(pairs[folder], of_class, strict=True):
                pixels = {number: one.labels[value]} if value in one.labels else {}
                items.append(Item(f"{folder.name}/{image.stem}", image, mask, pixels, one.size))
                self._own.append(number)
        self.items = tuple(items)
        self.ignores = any(ignores for _, ignores in self._meanings.values())

    def image(self, number: int) -> Tensor:
        """As `MaskSet.image`; EXIF rotation is applied."""
        return read_image(self.items[number].image)

    def labels(self, number: int) -> Tensor:
        """As `MaskSet.labels`."""
        self.check_labels()
        own = self._own[number]
        mask = self.mask(number, own)
        return mask.masked_fill_(mask == 1, own)

    def mask(self, number: int, cls: int) -> Tensor:
        """As `MaskSet.mask`; of a class other than the image's own nothing is object."""
        self.check_class(cls)
        value, ignores = self._meanings[self._own[number]]
        labels: Tensor = torch.from_numpy(read_labels(self.items[number].mask))
        mask = torch.eq(labels, value).to(torch.uint8)
        if cls != self._own[number]:
            mask.zero_()
        return mask.masked_fill_(labels == IGNORED, IGNORED) if ignores else mask


def read_classes(path: Path) -> dict[int, str]:
    """Read a classes.txt: line n names class n, or lines begin with their numbers.

    Args:
        path: the file. Numbers 0 and 255 (background, ignored) are left out.

    Returns:
        Class id -> name.

    Raises:
        ValueError: no classes, too many, a number twice, or numbers on some lines only.
    """
    text = read_text(path, f"'{path}'", encoding="utf-8-sig")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    stated = [line.partition(" ") for line in lines]
    numbered = [first.isdigit() for first, _, _ in stated]
    if lines and all(numbered):
        pairs = [(int(first), rest.strip() or first) for first, _, rest in stated]
    elif any(numbered) and numbered[0]:
        line = lines[numbered.index(False)]
        raise expected(f"'{path}'", "a number at the beginning of all lines or none", repr(line))
    else:
        pairs = list(enumerate(lines, start=1))
    repeated = [number for number, count in Counter(n for n, _ in pairs).items() if count > 1]
    if repeated:
        raise expected(f"'{path}'", "each number once", str(repeated[0]))
    classes = {number: name for number, name in pairs if number not in (0, IGNORED)}
    if not classes or max(classes) > MOST_CLASSES:
        wanted = f"1 to {MOST_CLASSES} classes"
        raise expected(f"'{path}'", wanted, f"{max(classes)}" if classes else "none")
    return classes


def _has_images(folder: Path) -> bool:
    return (folder / "images").is_dir() or bool(list_images(folder))


def _below(root: Path, files: Sequence[tuple[Path, Path]]) -> list[Pair]:
    return [
        Pair(image.relative_to(root).as_posix(), mask.relative_to(root).as_posix())
        for image, mask in files
    ]


def _check_unique(images: Sequence[Path], folder: Path) -> None:
    """Two images of one stem, a.jpg and a.png, cannot be told apart by name."""
    for stem, count in Counter(image.stem for image in images).items():
        if count > 1:
            raise expected(f"folder '{folder}'", "one image of a name", f"{count} called {stem!r}")


def _meaning(scanned: Sequence[Scanned], files: Sequence[tuple[Path, Path]]) -> tuple[int, bool]:
    """Which label is the object of masks without names, and whether 255 is ignored."""
    present = {label for one in scanned for label in one.labels} - {0}
    objects = sorted(present - {IGNORED}) or sorted(present)
    if len(objects) > 1:
        mask = next(
            mask for (_, mask), one in zip(files, scanned, strict=True) if objects[1] in one.labels
        )
        wanted = f"one label, or a classes.txt beside masks/ (mask '{mask}' holds {objects[1]})"
        shown = ", ".join(map(str, objects[:10])) + ", ..." * (len(objects) > 10)
        raise expected("masks", wanted, f"labels {shown}")
    value = objects[0] if objects else 1
    return value, IGNORED in present and value != IGNORED


def _check_known(
    scanned: Sequence[Scanned],
    files: Sequence[tuple[Path, Path]],
    classes: Mapping[int, str],
    root: Path,
) -> None:
    for (_, mask), one in zip(files, scanned, strict=True):
        unknown = sorted(set(one.labels) - set(classes) - {0, IGNORED})
        if unknown:
            wanted = f"the classes of '{root / 'classes.txt'}' ({min(classes)}..{max(classes)})"
            raise expected(f"mask '{mask}'", wanted, f"label {unknown[0]}")
