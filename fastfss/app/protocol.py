"""The messages between the page and the server, version 1.

From the page, as JSON: commands, a class each, as `{"v": 1, "id": 7, "do": "clicks", ...}`. Each is
answered by `{"kind": "reply", "id": 7, ...}` or `{"kind": "error", "id": 7, "message": "..."}`. As
bytes: a frame of a webcam, see `LiveFrame`.

To the page, as JSON by `kind`: those two, "state", "progress", "prompts", "stats", "live". As
bytes: the masks of a frame, little-endian:

    type u8 = 1, flags u8, objects u16, frame u32, seq u32, width u16, height u16
    for each object: number u16, bytes u32, row-major run lengths as varints, the first outside

Flag 1: it is one of a propagation. Each mask frame is acknowledged by `{"do": "ack", "count": n}`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import (
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from fastfss.errors import expected
from fastfss.video.export import ExportFormat
from fastfss.video.results import FrameResult
from fastfss.video.rle import encode_mask
from fastfss.video.session import Direction

VERSION = 1
PROPAGATED = 1  # a flag of a mask frame

_MASKS, _LIVE = 1, 2
_HEADER = struct.Struct("<BBHIIHH")
_OBJECT = struct.Struct("<HI")
_LIVE_HEADER = struct.Struct("<BI")

Frame = Annotated[int, Field(ge=0, lt=1 << 31)]
Number = Annotated[int, Field(ge=1, le=254)]
Coordinate = Annotated[float, Field(ge=-1e5, le=1e5, allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate]
Path = Annotated[list[Point], Field(min_length=1, max_length=5000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)]
SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,32}$")]


class Command(BaseModel):
    """What the page asks for; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    v: Literal[1] = 1
    id: Annotated[int, Field(ge=0, lt=1 << 53)] = 0


class Show(Command):
    """The masks and prompts of a frame; it becomes the one that is prepared for clicks."""

    do: Literal["show"]
    frame: Frame


class AddObject(Command):
    """A new object."""

    do: Literal["object.add"]
    name: Name | None = None


class RenameObject(Command):
    """Another name of an object."""

    do: Literal["object.rename"]
    object: Number
    name: Name


class RemoveObject(Command):
    """An object goes, with all that was said of it."""

    do: Literal["object.remove"]
    object: Number


class Clicks(Command):
    """Points on the object, or not on it."""

    do: Literal["clicks"]
    frame: Frame
    object: Number
    points: Path
    positive: bool = True


class Box(Command):
    """The object is in a box: left, top, right, bottom."""

    do: Literal["box"]
    frame: Frame
    object: Number
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate]


class Scribble(Command):
    """A line on the object, or not on it."""

    do: Literal["scribble"]
    frame: Frame
    object: Number
    path: Path
    positive: bool = True
    width: Annotated[float, Field(gt=0, le=500)] = 5


class Mask(Command):
    """The mask of an object as it is, its runs as in a mask frame."""

    do: Literal["mask"]
    frame: Frame
    object: Number
    runs: Base64Bytes


class Clear(Command):
    """Nothing is said any more of a frame, or of an object in it."""

    do: Literal["clear"]
    frame: Frame
    object: Number | None = None


class Commit(Command):
    """A frame with its masks stays known for good."""

    do: Literal["commit"]
    frame: Frame


class AddSupport(Command):
    """An object of another session's image becomes known, by the mask it has there."""

    do: Literal["support.add"]
    session: SessionId
    frame: Frame = 0
    shown: Number
    object: Number
    name: Name | None = None


class Forget(Command):
    """A support, or a committed frame, goes."""

    do: Literal["support.forget"]
    support: Annotated[int, Field(ge=1)]


class Propagate(Command):
    """Carry the masks on from a frame."""

    do: Literal["propagate"]
    frame: Frame
    direction: Direction = "forward"


class Cancel(Command):
    """End the propagation, whoever began it."""

    do: Literal["cancel"]


class Undo(Command):
    """Take the last change back."""

    do: Literal["undo"]


class Redo(Command):
    """Bring it back."""

    do: Literal["redo"]


class Ack(Command):
    """So many mask frames were drawn since the last time."""

    do: Literal["ack"]
    count: Annotated[int, Field(ge=1, le=1000)] = 1


class Ping(Command):
    """Are you there?"""

    do: Literal["ping"]


AnyCommand = Annotated[
    Show | AddObject | RenameObject | RemoveObject
    | Clicks | Box | Scribble | Mask | Clear
    | Commit | AddSupport | Forget | Propagate | Cancel
    | Undo | Redo | Ack | Ping,
    Field(discriminator="do"),
]  # fmt: skip
_COMMANDS: TypeAdapter[AnyCommand] = TypeAdapter(AnyCommand)


def read_command(text: str | bytes) -> AnyCommand:
    """A command of its JSON; ValueError, with what is wrong, for anything else."""
    try:
        return _COMMANDS.validate_json(text)
    except ValidationError as error:
        raise ValueError(first_problem(error, "message")) from None


def first_problem(error: ValidationError, argument: str) -> str:
    """The first of pydantic's errors, in one line and in the house's form."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or argument
    came = repr(first["input"])
    shown = came if len(came) <= 60 else f"{came[:57]}..."
    return f"{where}: {first['msg']}, got {shown}"


def command_id(text: str | bytes) -> int | None:
    """The id of a message that is no command, so that its error finds who asked; None if none."""
    try:
        return _Identified.model_validate_json(text).id
    except ValidationError:
        return None


class _Identified(BaseModel):
    id: Annotated[int, Field(ge=0, lt=1 << 53)]


@dataclass(frozen=True)
class LiveFrame:
    """A frame of a webcam: type u8 = 2, the page's number u32, then JPEG, PNG or WebP."""

    number: int
    image: bytes


def read_live_frame(data: bytes) -> LiveFrame:
    """A frame of a webcam; ValueError for other bytes."""
    if len(data) <= _LIVE_HEADER.size or data[0] != _LIVE:
        raise expected("message", "a frame of a webcam", f"{len(data)} bytes of others")
    return LiveFrame(_LIVE_HEADER.unpack_from(data)[1], data[_LIVE_HEADER.size :])


def mask_frame(frame: int, result: FrameResult | None, size: tuple[int, int], flags: int) -> bytes:
    """The masks of a frame as the page draws them; None is a frame without any."""
    labels = {} if result is None else {n: result.mask(n) for n in result.visible}
    seq, (height, width) = 0 if result is None else result.seq, size
    parts = [_HEADER.pack(_MASKS, flags, len(labels), frame, seq, width, height)]
    for number, mask in labels.items():
        runs = encode_mask(mask)
        parts += [_OBJECT.pack(number, len(runs)), runs]
    return b"".join(parts)


EXPORTS: tuple[ExportFormat, ...] = (
    "davis", "binary", "overlay", "coco", "ytvis", "cvat", "cutout", "csv",
)  # fmt: skip
