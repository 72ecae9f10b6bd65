"""Which images ``fastfss label`` labels, in what order, and how one is read."""

from __future__ import annotations

import glob
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor

from fastfss.cli.queries import assign_names
from fastfss.data import read_image
from fastfss.data.folders import IMAGE_SUFFIXES
from fastfss.data.pixels import decoding
from fastfss.errors import expected


@dataclass(frozen=True)
class LabelImage:
    """One image of a job: a file, or a member of a WebDataset's shard.

    Attributes:
        name: what the results call it: its path below the job's root, with slashes.
        path: the file, or the .tar that holds it; absolute.
        mask: its label map's path below the folder of masks, with slashes and ``.png``.
        offset, size: where in the .tar its bytes are; None for a file.
    """

    name: str
    path: str
    mask: str = ""
    offset: int | None = None
    size: int = 0

    def read(self) -> Tensor:
        """Read the image as `fastfss.data.read_image` does; its errors name it."""
        if self.offset is None:
            return read_image(self.path)
        label = f"image '{self.name}' of '{self.path}'"
        with decoding(label):
            with open(self.path, "rb") as archive:  # noqa: PTH123
                archive.seek(self.offset)
                content = archive.read(self.size)
            if len(content) < self.size:
                raise ValueError(f"{len(content)} of {self.size} bytes")
            image = Image.open(io.BytesIO(content))
        return read_image(image, argument=label)


def find_label_images(sources: Sequence[str]) -> list[LabelImage]:
    """List the images of ``--images``.

    Args:
        sources: folders (with their subfolders; hidden ones are left out), patterns (``**`` goes
            through subfolders), files, and .tar files of a WebDataset, wherever they stand.

    Returns:
        The images, each once, sorted by name; the order and names stay the same from run to run.

    Raises:
        FileNotFoundError: there is no such file or folder, or nothing matches a pattern.
        ValueError: a folder without images, a .tar that cannot be read, or names that clash.
    """
    files: dict[Path, None] = {}
    roots = []
    for source in sources:
        root, found = _expand(source)
        roots.append(str(root))
        files.update(dict.fromkeys(found))
    root = Path(os.path.commonpath(roots))
    images = [image for file in files for image in _images_of(file, root)]
    if not images:
        raise expected(f"--images '{sources[0]}'", "images", ".tar files without any")
    named: dict[str, LabelImage] = {}
    for image in images:
        other = named.setdefault(image.name, image)
        if other is not image:
            raise expected("--images", "different names", f"'{image.name}' in two places")
    return _with_masks([named[name] for name in sorted(named)])


def _expand(source: str) -> tuple[Path, list[Path]]:
    """What the names of a source's images are relative to, and its files."""
    path = Path(source).absolute()
    if path.is_dir():
        files = sorted(_walk(path))
        if not files:
            raise expected(f"--images '{source}'", "a folder with images", "none")
        return path, files
    if path.exists():
        return path.parent, [path]
    matches = (Path(name).absolute() for name in sorted(glob.glob(source, recursive=True)))  # noqa: PTH207
    files = [match for match in matches if match.is_file()]
    if not files:
        raise FileNotFoundError(f"--images '{source}': no such file or folder")
    plain = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain), files


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if not name.startswith(".") and (suffix in IMAGE_SUFFIXES or suffix == ".tar"):
                yield Path(place, name)


def _images_of(file: Path, root: Path) -> Iterator[LabelImage]:
    name = Path(os.path.relpath(file, root)).as_posix()
    if file.suffix.lower() != ".tar":
        yield LabelImage(name, str(file))
        return
    try:
        # Uncompressed, as WebDatasets are: a member can then be read without what is before it.
        with tarfile.open(file, "r:") as archive:
            # A later member replaces an earlier one of the same name.
            members = {member.name: member for member in archive if member.isreg()}
    except (tarfile.TarError, EOFError) as error:
        wanted = "an uncompressed .tar"
        raise expected(f"--images '{file}'", wanted, f"another file ({error})") from None
    for member in members.values():
        # Whatever a member is called, its mask stays in the folder of masks.
        parts = [part for part in PurePosixPath(member.name).parts if part not in ("/", "..")]
        inside = PurePosixPath(*parts)
        if inside.suffix.lower() in IMAGE_SUFFIXES and not inside.name.startswith("."):
            below = f"{name.removesuffix(file.suffix)}/{inside}"
            yield LabelImage(below, str(file), offset=member.offset_data, size=member.size)


def _with_masks(images: Iterable[LabelImage]) -> list[LabelImage]:
    """Give each image its mask's name: in the same folder, numbered where stems clash."""
    images = list(images)
    folders: dict[str, list[Path]] = {}
    for image in images:
        path = Path(image.name)
        folders.setdefault(path.parent.as_posix().casefold(), []).append(path)
    masks = {
        path.as_posix(): (path.parent / f"{name}.png").as_posix()
        for paths in folders.values()
        for path, name in assign_names(paths, {}).items()
    }
    return [
        LabelImage(image.name, image.path, masks[image.name], image.offset, image.size)
        for image in images
    ]
