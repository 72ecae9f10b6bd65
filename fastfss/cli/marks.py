"""Points, strokes and boxes on the command line, and annotations kept in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fastfss.annotation import Annotation, Unsaid, annotation_mask
from fastfss.data import MaskLike, read_image
from fastfss.errors import expected
from fastfss.reading import naming
from fastfss.text import Label

ANNOTATION_SUFFIX = ".json"

Shot = tuple[Path, Path | Annotation | Label]


def read_marks(
    clicks: Sequence[str], scribbles: Sequence[str], boxes: Sequence[str]
) -> Annotation | None:
    """What --box, --scribble and --click say, in this order; None where none is given.

    Where they overlap, what is finer counts: a click more than a scribble, a scribble more than a
    box. Of one kind the later counts. A minus before the numbers says "background".

    Args:
        clicks: "X,Y" or "-X,Y" each.
        scribbles: "X,Y,X,Y,..." each.
        boxes: "LEFT,TOP,RIGHT,BOTTOM" each.

    Raises:
        ValueError: other texts; the option is named.

    Examples:
        >>> [mark.positive for mark in read_marks(["30,20", "-5,5"], [], ["2,2,50,40"]).marks]
        [True, True, False]
    """
    annotation = Annotation()
    for text in boxes:
        positive, numbers = _numbers("--box", text, "LEFT,TOP,RIGHT,BOTTOM", 4)
        left, top, right, bottom = numbers
        annotation = annotation.box(left, top, right, bottom, positive=positive)
    for text in scribbles:
        positive, numbers = _numbers("--scribble", text, "X,Y,X,Y,...", None)
        path = list(zip(numbers[::2], numbers[1::2], strict=True))
        annotation = annotation.stroke(path, positive=positive)
    for text in clicks:
        positive, (x, y) = _numbers("--click", text, "X,Y", 2)
        annotation = annotation.point(x, y, positive=positive)
    return annotation if annotation.marks else None


def read_shot(
    shot: Shot, point_width: Callable[[tuple[int, int]], float], unsaid: Unsaid | None
) -> tuple[Path, MaskLike | Annotation | Label]:
    """A support as `fit` takes it: annotations read from their files and, if asked for, drawn.

    Args:
        shot: an image, and its mask, label, annotation or annotation file.
        point_width: of a model: the diameter of a point in an image of that height and width.
        unsaid: what pixels are of which the annotation says nothing; None leaves it to `fit`.

    Raises:
        OSError, ValueError: a file cannot be read, or is no annotation; it is named.
    """
    image, said = shot
    if isinstance(said, Label):
        return image, said
    if isinstance(said, Path):
        if said.suffix.lower() != ANNOTATION_SUFFIX:
            return image, said
        said = load_annotation(said)
    if unsaid is None:
        return image, said
    pixels = read_image(image, argument=f"support image '{image}'")
    size = (pixels.shape[1], pixels.shape[2])
    width = point_width(size)
    argument = f"annotation of '{image}'"
    return image, annotation_mask(said, size, unsaid=unsaid, width=width, argument=argument)


def load_annotation(path: Path) -> Annotation:
    """Read a file of `Annotation.to_json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else; it is named.
    """
    try:
        with naming(path):
            return Annotation.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of text that is not UTF-8, too
        raise ValueError(f"'{path}': {error}") from None


def _numbers(flag: str, text: str, form: str, count: int | None) -> tuple[bool, list[float]]:
    """Whether an option's text says "object", and its numbers."""
    positive = not text.startswith("-")
    try:
        numbers = [float(part) for part in text.removeprefix("-").split(",")]
    except ValueError:
        numbers = []
    whole = len(numbers) == count if count else len(numbers) >= 2 and len(numbers) % 2 == 0
    if not whole or min(numbers) < 0:
        raise expected(flag, f"{form}, or -{form} for the background", repr(text))
    return positive, numbers
