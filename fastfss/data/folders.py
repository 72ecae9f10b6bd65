"""The folder convention: image files, and the pairs of image and mask of an annotated class."""

from __future__ import annotations

import os
from pathlib import Path

from fastfss.errors import expected

# What a folder's images are picked by. A file named by itself may have any suffix Pillow knows.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"}
    | {".avif", ".jfif"}
)
_MASK_ENDINGS = ("_mask", "-mask", ".mask")


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files directly in a folder, by name.

    Args:
        folder: the folder; its subfolders and hidden files are left out.

    Returns:
        The paths, sorted.
    """
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def read_support_folder(folder: str | os.PathLike[str]) -> list[tuple[Path, Path]]:
    """Pair the images and masks of one annotated class.

    Three layouts: ``images/1.jpg`` with ``masks/1.png``; ``1.jpg`` beside ``1_mask.png`` (or
    ``1-mask.png``, ``1.mask.png``); ``1.jpg`` beside ``1.png``, as in FSS-1000.

    Args:
        folder: the class's folder.

    Returns:
        (image, mask) for each shot, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
        ValueError: no images, an image without a mask or with several, or a mask without an image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"support folder '{folder}': no such folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"support folder '{folder}': expected a folder, got a file")
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        images, masks = list_images(folder / "images"), list_images(folder / "masks")
        pairs = _pairs(images, {path: path.stem for path in masks}, folder)
    else:
        files = list_images(folder)
        stems = {path: _stem_of_mask(path) for path in files}
        masks_by_ending = {path: stem for path, stem in stems.items() if stem is not None}
        if masks_by_ending:
            images = [path for path in files if path not in masks_by_ending]
            pairs = _pairs(images, masks_by_ending, folder)
        else:
            # A PNG beside another file of the same stem is that file's mask.
            photos = [path for path in files if path.suffix.lower() != ".png"]
            masks = [path for path in files if path.suffix.lower() == ".png"]
            pairs = _pairs(photos, {path: path.stem for path in masks}, folder)
    if not pairs:
        wanted = "1.jpg with 1.png or 1_mask.png, or images/1.jpg with masks/1.png"
        raise expected(f"support folder '{folder}'", wanted, "no images")
    return pairs


def _stem_of_mask(path: Path) -> str | None:
    """Return the stem of the image that a file is the mask of by its name's ending."""
    for ending in _MASK_ENDINGS:
        if path.stem.lower().endswith(ending):
            return path.stem[: -len(ending)]
    return None


def _pairs(images: list[Path], masks: dict[Path, str], folder: Path) -> list[tuple[Path, Path]]:
    """Match images with the masks that carry their stems, one for one."""
    by_stem: dict[str, list[Path]] = {}
    for mask, stem in masks.items():
        by_stem.setdefault(stem, []).append(mask)
    pairs = []
    for image in images:
        found = by_stem.pop(image.stem, [])
        if len(found) != 1:
            listed = ", ".join(f"'{mask.name}'" for mask in found) or "none"
            raise expected(f"support folder '{folder}' image '{image.name}'", "one mask", listed)
        pairs.append((image, found[0]))
    if by_stem:
        mask = next(iter(by_stem.values()))[0]
        raise expected(f"support folder '{folder}' mask '{mask.name}'", "one image", "none")
    return pairs
