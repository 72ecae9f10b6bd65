"""Where a label is in an image: masks for any method, activation maps for IMR-HSNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.coco import COCO_CLASSES
from fastfss.data.masks import IGNORED
from fastfss.data.pascal import PASCAL_CLASSES
from fastfss.errors import expected, expected_kind
from fastfss.reading import read_text
from fastfss.text.cam import MAP_SIZE, TEMPLATE, class_features, class_maps
from fastfss.text.clip import ClipTower, centre_square, load_tower, whole_square

# published: the map of the centre square, laid over the whole image, which displaces it; placed:
# laid where it was taken, 0 beside it; whole: of the whole image, brought to a square.
View = Literal["published", "placed", "whole"]
OTHERS = {"coco": tuple(COCO_CLASSES.values()), "pascal": tuple(PASCAL_CLASSES.values())}


class LabelNotFoundError(ValueError):
    """Nothing in an image speaks for a label."""


@dataclass(frozen=True)
class Label:
    """A label that stands for a mask: `fit([(image, Label("cat"))])`.

    Attributes:
        text: one word or a few, as in "a photo of a cat".
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise expected_kind("label", "a text", type(self.text).__name__)
        if not self.text.strip():
            raise expected("label", "a name", repr(self.text))


class TextLabels:
    """CLIP's answer to where labels are in images, by Grad-CAM.

    A label competes with others for the image (softmax); what speaks for it is its map.

    Args:
        tower: CLIP.
        others: the competitors: "coco" (80 names), "pascal" (20 names) or names of one's own. Of
            the published maps, the data set's. A synonym of the label among them takes from its
            map.
        template: the sentence around a label.
        threshold: what share of a map's maximum makes its mask.
        unsure: pixels whose share is so close to the threshold are ignored (255).
        view: of masks, see `View`.

    Raises:
        ValueError: an option out of range, or names that the tokenizer cannot take.
    """

    def __init__(
        self,
        tower: ClipTower,
        *,
        others: str | Sequence[str] = "coco",
        template: str = TEMPLATE,
        threshold: float = 0.5,
        unsure: float = 0.0,
        view: View = "whole",
    ) -> None:
        if isinstance(others, str):
            if others not in OTHERS:
                wanted = f"one of {', '.join(sorted(OTHERS))}, or names"
                raise expected("others", wanted, repr(others))
            others = OTHERS[others]
        if not others:
            raise expected("others", "at least one name: a label must compete", "none")
        if not 0 < threshold < 1:
            raise expected("threshold", "a share of the maximum, between 0 and 1", str(threshold))
        most = min(threshold, 1 - threshold)
        if not 0 <= unsure < most:
            wanted = f"0 <= unsure < {most:g}, for threshold {threshold:g}"
            raise expected("unsure", wanted, str(unsure))
        if view not in get_args(View):
            raise expected("view", f"one of {', '.join(get_args(View))}", repr(view))
        self.tower, self.others, self.template = tower, tuple(dict.fromkeys(others)), template
        self.threshold, self.unsure, self.view = threshold, unsure, view
        self._features: dict[str, Tensor] = {}
        self._features_of(self.others)

    def maps(self, image: Tensor, labels: Sequence[str], view: View = "published") -> Tensor:
        """The activation maps of labels, as published: on the grid of IMR-HSNet.

        Args:
            image: uint8 (3, H, W).
            labels: N names; each competes with `others` alone, not with the rest of `labels`.
            view: of the image.

        Returns:
            float32 (N, 50, 50) in [0, 1], on the CPU; all 0 where nothing speaks for the label.

        Raises:
            TypeError, ValueError: an empty label, or one that the tokenizer cannot take.
        """
        maps = self._maps(image, labels, view, MAP_SIZE if view != "placed" else None)
        if view != "placed":
            return maps
        size = (image.shape[1], image.shape[2])
        placed = torch.stack([_placed(one, size) for one in maps]).unsqueeze(1)
        small = F.interpolate(placed, (MAP_SIZE, MAP_SIZE), mode="bilinear", antialias=True)
        return small.squeeze(1).clamp(0, 1)

    __call__ = maps

    def mask(self, image: Tensor, label: str, *, argument: str = "image") -> Tensor:
        """A support mask of a label.

        Args:
            image: uint8 (3, H, W).
            label: its name.
            argument: what messages call the image.

        Returns:
            uint8 (H, W) of {0, 1, 255}, with at least one pixel of 1.

        Raises:
            LabelNotFoundError: nothing in the image speaks for the label.
            TypeError, ValueError: as in `maps`.
        """
        found = self._maps(image, [label], self.view, None)[0]
        check_found(found, label, argument)
        size = (image.shape[1], image.shape[2])
        if self.view == "placed":
            large = _placed(found, size)
        else:
            large = F.interpolate(found[None, None], size, mode="bilinear")[0, 0]
        share = large / large.max()
        mask = (share >= self.threshold).to(torch.uint8)
        return mask.masked_fill_((share - self.threshold).abs() < self.unsure, IGNORED)

    def _maps(self, image: Tensor, labels: Sequence[str], view: View, size: int | None) -> Tensor:
        """Maps on the grid of what CLIP sees of the image."""
        if not labels:
            raise expected("labels", "at least one", "none")
        tower = self.tower
        square = whole_square if view == "whole" else centre_square
        prepared = square(image, tower.size).unsqueeze(0)
        names = list(dict.fromkeys([*self.others, *labels]))
        chosen = [names.index(label) for label in labels]
        # Each label competes with the others alone.
        absent = torch.arange(len(names), device=tower.device) >= len(self.others)
        absent = absent.repeat(len(labels), 1)
        absent[range(len(labels)), chosen] = False
        pairs = [(0, number) for number in chosen]
        return class_maps(tower, prepared, self._features_of(names), pairs, size, absent).cpu()

    def _features_of(self, labels: Sequence[str]) -> Tensor:
        """The text features of labels, each computed once."""
        new = [label for label in dict.fromkeys(labels) if label not in self._features]
        if new:
            features = class_features(self.tower, new, self.template)
            self._features |= zip(new, features, strict=True)
        return torch.stack([self._features[label] for label in labels]).to(self.tower.device)


def load_clip(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    others: str | Sequence[str] = "coco",
    template: str = TEMPLATE,
    threshold: float = 0.5,
    unsure: float = 0.0,
    view: View = "whole",
) -> TextLabels:
    """Read CLIP's weights, for `model.text`.

    Args:
        path: as in `fastfss.text.load_tower`.
        device: likewise.
        others: as in `TextLabels`.
        template: likewise.
        threshold: likewise.
        unsure: likewise.
        view: likewise.

    Errors are those of both.
    """
    return TextLabels(
        load_tower(path, device),
        others=others,
        template=template,
        threshold=threshold,
        unsure=unsure,
        view=view,
    )


def label_names(others: str, argument: str = "--others") -> tuple[str, ...]:
    """The names that labels compete with, as the command line takes them.

    Args:
        others: "coco", "pascal", or a UTF-8 file of one name a line.
        argument: what messages call it.

    Raises:
        ValueError: no such file, or one without a name.
    """
    if others in OTHERS:
        return OTHERS[others]
    path = Path(others)
    if not path.is_file():
        raise expected(argument, "coco, pascal, or a file of one name a line", repr(others))
    names = [line.strip() for line in read_text(path, f"{argument} '{others}'").splitlines()]
    if not any(names):
        raise expected(f"{argument} '{others}'", "at least one name", "none")
    return tuple(name for name in names if name)


def as_label(mask: object, known: bool) -> Label | None:
    """The label that is given instead of a mask, or None for a mask.

    A text is a label where a model reads labels, unless it looks like a file: one that exists, or
    with a suffix or a folder in its name. `Label` says it without doubt.

    Args:
        mask: what stands beside an image.
        known: whether the model reads labels.
    """
    if isinstance(mask, Label):
        return mask
    if not known or not isinstance(mask, str):
        return None
    separators = {os.sep, os.altsep or os.sep}
    if Path(mask).suffix or separators & set(mask) or _exists(mask):
        return None
    return Label(mask)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a text that is too long for a name
        return False


def check_found(activation: Tensor, label: str, argument: str = "image") -> None:
    """Raise a LabelNotFoundError if a map is 0 everywhere."""
    if not bool((activation > 0).any()):
        raise LabelNotFoundError(
            f"{argument}: {label!r} was not found: nothing in the image speaks for it"
        )


def _placed(activation: Tensor, size: tuple[int, int]) -> Tensor:
    """The map of an image's centre square on the image: (s, s) -> (H, W), 0 beside the square."""
    height, width = size
    side = min(size)
    top, left = round((height - side) / 2), round((width - side) / 2)
    square = F.interpolate(activation[None, None], (side, side), mode="bilinear")[0, 0]
    return F.pad(square, (left, width - side - left, top, height - side - top))
