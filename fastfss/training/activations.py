"""Activation maps of labels on disk, in IMR-HSNet's published layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastfss.data.sets import Item
from fastfss.errors import expected
from fastfss.reading import naming
from fastfss.training.checkpoints import write_torch_file


class ActivationMaps:
    """Maps of (image, class) pairs, as `torch.save` wrote them: float (h, w) in [0, 1].

    A file is `<image>--<class>.pt`, the class counted from 0. The image is the item's name or, as
    published for COCO, the folder and file of its photograph.

    Args:
        folder: where they lie.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"data.activations: no folder '{folder}'")

    def path(self, item: Item, cls: int) -> Path:
        """The file of a pair.

        Raises:
            FileNotFoundError: there is none.
        """
        names = (item.name, f"{item.image.parent.name}/{item.image.name}")
        for name in names:
            path = self.folder / f"{name}--{cls - 1}.pt"
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"data.activations: no {names[0]}--{cls - 1}.pt in '{self.folder}', the map of class "
            f"{cls} in image {item.name!r}"
        )

    def read(self, item: Item, cls: int) -> Tensor:
        """The map of a pair: float32 (h, w).

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file of something else.
        """
        return read_map(self.path(item, cls))


def published_name(kind: str, item: Item, cls: int) -> str:
    """The file of a pair below the folder of its maps, as published.

    Args:
        kind: of the set, MaskSet.name; COCO's files name the folder of the photograph, and its
            suffix.
        item: the image.
        cls: the class, from 1.
    """
    name = f"{item.image.parent.name}/{item.image.name}" if kind == "coco" else item.name
    return f"{name}--{cls - 1}.pt"


def write_map(path: Path, activation: Tensor) -> None:
    """Write a map (h, w) as published: a bare tensor by torch.save."""
    write_torch_file(path, activation.detach().cpu().float().clone())


def read_map(path: Path) -> Tensor:
    """Read a map: float32 (h, w).

    Raises:
        ValueError: a file of something else.
    """
    try:
        with naming(path):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of damaged bytes: whatever the unpickler stumbles over
        raise expected(str(path), "a map saved by torch", f"an error: {error}") from error
    if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point():
        came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise expected(str(path), "a floating-point tensor (h, w)", str(came))
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise expected(str(path), "values in 0..1", "others")
    return found.float()
