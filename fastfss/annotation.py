"""Annotations: points, strokes, boxes and masks, as a person gives them."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Union, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fastfss.data import MaskLike
from fastfss.data.masks import IGNORED
from fastfss.errors import expected, expected_kind
from fastfss.reading import parse_json

UNSAID = IGNORED

# What pixels are of which nothing is said.
Unsaid = Literal["auto", "ignored", "background", "border"]
# "border": the background is a frame of this share of the shorter side.
BORDER = 0.03

MarkKind = Literal["point", "stroke", "box", "mask"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """One thing that was said.

    Attributes:
        kind: of the mark.
        positive: whether it says "object" or "background".
        points: (x, y) in pixels from the top left: of a point one, of a stroke its corners, of a
            box two opposite corners. (x, y) lies in the pixel of column floor(x) and row floor(y).
        width: of a stroke, or the diameter of a point; None: as `rasterize` says.
        mask: of a mask, (H, W) of {0, 1, 255}.
    """

    kind: MarkKind
    positive: bool = True
    points: tuple[Point, ...] = ()
    width: float | None = None
    mask: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Annotation:
    """Everything that was said of an object in an image, in order; a later mark wins over earlier.

    Immutable: what adds a mark returns a new annotation.

    Examples:
        >>> said = Annotation().point(30, 20).point(5, 5, positive=False)
        >>> said.rasterize((40, 60))[20, 30], said.rasterize((40, 60))[5, 5], len(said)
        (tensor(1, dtype=torch.uint8), tensor(0, dtype=torch.uint8), 2)
    """

    marks: tuple[Mark, ...] = ()

    def point(
        self, x: float, y: float, *, positive: bool = True, width: float | None = None
    ) -> Annotation:
        """Say what is at a pixel; a disk of diameter `width` around it."""
        return self._with(Mark("point", positive, _points([(x, y)], 1), _width(width)))

    def stroke(
        self, points: Sequence[Point], *, positive: bool = True, width: float = 5
    ) -> Annotation:
        """Say what is along a line of corners."""
        return self._with(Mark("stroke", positive, _points(points, 1), _width(width)))

    def box(
        self, left: float, top: float, right: float, bottom: float, *, positive: bool = True
    ) -> Annotation:
        """Say what is in a box. Outside of positive boxes, where nothing is said, is background.

        So boxes are in PANet's weak annotations (Wang et al., ICCV 2019).
        """
        corners = _points([(left, top), (right, bottom)], 2)
        if not (left < right and top < bottom):
            raise expected("box", "left < right and top < bottom", str((left, top, right, bottom)))
        return self._with(Mark("box", positive, corners))

    def area(self, mask: Tensor | npt.NDArray[Any]) -> Annotation:
        """Say all that a mask says: 1 or True object, 0 or False background, 255 nothing."""
        if isinstance(mask, np.ndarray):
            mask = torch.from_numpy(mask)
        if not isinstance(mask, Tensor):
            raise expected_kind("mask", "a tensor or an array", type(mask).__name__)
        mask = mask.detach().cpu()
        if mask.dtype == torch.bool:
            mask = mask.to(torch.uint8)
        if mask.ndim != 2 or not torch.isin(mask, torch.tensor([0, 1, UNSAID])).all():
            raise expected("mask", "(H, W) of {0, 1, 255}", str(tuple(mask.shape)))
        return self._with(Mark("mask", True, mask=mask.to(torch.uint8).clone()))

    def without_last(self) -> Annotation:
        """The annotation before its last mark; ValueError if there is none."""
        if not self.marks:
            raise expected("annotation", "a mark to take back", "none")
        return replace(self, marks=self.marks[:-1])

    def __len__(self) -> int:
        return len(self.marks)

    @property
    def positive(self) -> bool:
        """Whether anything is said to be the object."""
        return any(
            bool((mark.mask == 1).any()) if mark.mask is not None else mark.positive
            for mark in self.marks
        )

    def rasterize(self, size: tuple[int, int], *, width: float | None = None) -> Tensor:
        """The annotation as a mask.

        Args:
            size: height and width of the image.
            width: of points that have none: their disk's diameter; None: one pixel.

        Returns:
            uint8 (H, W): 1 object, 0 background, 255 nothing said.

        Raises:
            ValueError: a mark outside of the image, or a mask of another size; it is named.
        """
        height, length = size
        picture = Image.new("L", (length, height), UNSAID)
        boxed = False
        for number, mark in enumerate(self.marks):
            _check_inside(number, mark, size)
            value = int(mark.positive)
            if mark.mask is not None:
                said = mark.mask.numpy()
                where = Image.fromarray(((said != UNSAID) * 255).astype(np.uint8))
                picture.paste(Image.fromarray(said), (0, 0), where)
                continue
            draw = ImageDraw.Draw(picture)
            if mark.kind == "box":
                (left, top), (right, bottom) = mark.points
                draw.rectangle((left, top, right - 1, bottom - 1), fill=value)
                boxed |= mark.positive
            else:
                _draw_stroke(draw, mark.points, mark.width or width or 1, value)
        found = torch.from_numpy(np.asarray(picture).copy())
        return found.masked_fill_(found == UNSAID, 0) if boxed else found

    def to_json(self) -> str:
        """The marks as JSON; of a mask its run lengths, row by row."""
        marks = [_plain(mark) for mark in self.marks]
        return json.dumps({"format": "fastfss-annotation-1", "marks": marks})

    @staticmethod
    def from_json(text: str) -> Annotation:
        """Read what `to_json` wrote; ValueError for anything else."""
        try:
            plain = parse_json(text, "text")
            if plain["format"] != "fastfss-annotation-1":
                raise ValueError(f"format {plain['format']!r}")
            return Annotation(tuple(_mark(one) for one in plain["marks"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise expected("annotation", "JSON of Annotation.to_json", str(error)) from None

    def _with(self, mark: Mark) -> Annotation:
        return replace(self, marks=(*self.marks, mark))


def annotation_mask(
    annotation: Annotation,
    size: tuple[int, int],
    *,
    unsaid: Unsaid = "auto",
    width: float | None = None,
    argument: str = "annotation",
) -> Tensor:
    """An annotation as a support mask.

    Args:
        annotation: with something positive.
        size: height and width of the image.
        unsaid: what pixels are of which nothing is said: "ignored"; "background"; "border":
            background in a frame along the border alone. Prototypes of the background need some:
            "auto" ignores them where the annotation itself says what is background, else they are
            background.
        width: of points, see Annotation.rasterize; by default a sixtieth of the shorter side. A
            method may need more, see FewShotSegmenter.point_width.
        argument: what messages call it.

    Returns:
        uint8 (H, W) of {0, 1, 255}.

    Raises:
        ValueError: nothing positive, or nothing that later marks do not cover; marks outside of the
            image.
    """
    if unsaid not in get_args(Unsaid):
        raise expected("unsaid", f"one of {', '.join(get_args(Unsaid))}", repr(unsaid))
    if not annotation.positive:
        came = "only background" if annotation.marks else "nothing"
        raise expected(argument, "at least one positive mark", came)
    mask = annotation.rasterize(size, width=width or max(1.0, min(size) / 60))
    if not bool((mask == 1).any()):
        wanted = "a pixel that the last mark on it says to be the object"
        raise expected(argument, wanted, "none: later marks cover all positive ones")
    if unsaid == "auto":
        unsaid = "ignored" if bool((mask == 0).any()) else "background"
    if unsaid == "background":
        return mask.masked_fill_(mask == UNSAID, 0)
    if unsaid == "border":
        frame = max(1, round(BORDER * min(size)))
        inside = torch.zeros(size, dtype=torch.bool)
        inside[frame:-frame, frame:-frame] = True
        mask.masked_fill_((mask == UNSAID) & ~inside, 0)
    return mask


def _points(points: Sequence[Point], least: int) -> tuple[Point, ...]:
    found = []
    for point in points:
        if len(point) != 2 or not all(math.isfinite(value) for value in point):
            raise expected("points", "pairs of finite numbers (x, y)", str(point))
        found.append((float(point[0]), float(point[1])))
    if len(found) < least:
        raise expected("points", f"at least {least}", str(len(found)))
    return tuple(found)


def _width(width: float | None) -> float | None:
    if width is not None and not width > 0:
        raise expected("width", "a positive number of pixels", str(width))
    return width


def _check_inside(number: int, mark: Mark, size: tuple[int, int]) -> None:
    height, width = size
    if mark.mask is not None:
        if tuple(mark.mask.shape) != size:
            came = f"{mark.mask.shape[0]} x {mark.mask.shape[1]}"
            raise expected(f"marks[{number}]", f"a mask of {height} x {width}", came)
        return
    for x, y in mark.points:
        within = 0 <= x < width and 0 <= y < height
        # A box may end where the image ends.
        if not (within or (mark.kind == "box" and 0 <= x <= width and 0 <= y <= height)):
            wanted = f"points inside of the image, {width} pixels wide and {height} high"
            raise expected(f"marks[{number}]", wanted, f"({x:g}, {y:g})")


def _draw_stroke(
    draw: ImageDraw.ImageDraw, points: tuple[Point, ...], width: float, value: int
) -> None:
    radius = width / 2
    pixels = [(math.floor(x), math.floor(y)) for x, y in points]
    if width > 1:
        for x, y in pixels:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
    else:
        draw.point(pixels, fill=value)
    if len(pixels) > 1:
        draw.line(pixels, fill=value, width=max(1, round(width)))


def _plain(mark: Mark) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": mark.kind, "positive": mark.positive}
    if mark.points:
        plain["points"] = [list(point) for point in mark.points]
    if mark.width is not None:
        plain["width"] = mark.width
    if mark.mask is not None:
        flat = mark.mask.flatten().numpy()
        starts = np.flatnonzero(np.diff(flat, prepend=np.int16(-1)))
        lengths = np.diff(starts, append=len(flat))
        plain["size"] = list(mark.mask.shape)
        plain["runs"] = [[int(flat[s]), int(n)] for s, n in zip(starts, lengths, strict=True)]
    return plain


def _mark(plain: dict[str, Any]) -> Mark:
    if plain["kind"] not in get_args(MarkKind):
        raise ValueError(f"kind {plain['kind']!r}")
    points = _points([tuple(point) for point in plain.get("points", [])], 0)
    mask = None
    if "runs" in plain:
        values, lengths = zip(*plain["runs"], strict=True)
        height, length = (operator.index(side) for side in plain["size"])
        # Before they are unpacked: a few digits could ask for any amount of memory.
        fits = min(height, length) > 0 and all(0 <= n <= height * length for n in lengths)
        if not fits or sum(lengths) != height * length or not {*values} <= {0, 1, UNSAID}:
            raise ValueError(f"runs of no mask of {height} x {length}")
        flat = np.repeat(np.array(values, dtype=np.uint8), lengths)
        mask = torch.from_numpy(flat).view(height, length)
    count = {"point": len(points) == 1, "box": len(points) == 2, "stroke": len(points) > 0}
    if not count.get(plain["kind"], mask is not None and not points):
        raise ValueError(f"a {plain['kind']} of {len(points)} points")
    width = plain.get("width")
    if width is not None and not (isinstance(width, int | float) and math.isfinite(width)):
        raise ValueError(f"width {width!r}")
    return Mark(plain["kind"], bool(plain["positive"]), points, _width(width), mask)


# What `fit` takes beside an image.
SupportMask = Union[MaskLike, Annotation]  # noqa: UP007 (MaskLike may be a string at run time)
