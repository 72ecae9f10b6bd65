"""A Label Studio ML backend: clicks and boxes of its annotators in, brush masks out.

    GET /health, POST /setup, POST /predict, POST /webhook

An image's features are kept, so a further click only matches anew.
"""

from __future__ import annotations

import base64
import binascii
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Annotated, Any
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

import fastfss.video
from fastfss.annotation import Annotation
from fastfss.app.hub import Models
from fastfss.app.images import read_sent_image
from fastfss.app.protocol import first_problem
from fastfss.app.settings import Settings
from fastfss.errors import expected
from fastfss.video import VideoSession
from fastfss.video.rle import run_lengths

VERSION = "fastfss-1"
_KEPT = 8  # images
_SECONDS = 30  # for an image to come
_MOST_OBJECTS = 64

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class _Value(BaseModel):
    x: Percent = 0
    y: Percent = 0
    width: Percent = 0
    height: Percent = 0
    keypointlabels: list[str] = []
    rectanglelabels: list[str] = []


class _Mark(BaseModel):
    type: str
    value: _Value
    is_positive: bool = True


class _Context(BaseModel):
    result: list[_Mark] = []


class _Params(BaseModel):
    context: _Context | None = None


class _Task(BaseModel):
    data: dict[str, Any]


class Request(BaseModel):
    """What Label Studio asks; what else it says is left out."""

    tasks: Annotated[list[_Task], Field(max_length=1000)]
    label_config: Annotated[str, Field(max_length=1 << 20)]
    params: _Params = _Params()
    context: _Context | None = None

    @property
    def marks(self) -> list[_Mark]:
        """What the annotator said, clicks and boxes alone."""
        context = self.params.context or self.context
        marks = [] if context is None else context.result
        return [mark for mark in marks if mark.type in ("keypointlabels", "rectanglelabels")]


@dataclass(frozen=True)
class _Tags:
    """Names in a labelling configuration: of the brush, of the image, of the image's data."""

    brush: str
    image: str
    data: str


class LabelStudio:
    """Answers Label Studio.

    Args:
        settings: of the server: where Label Studio is, its key, limits.
        models: gives what answers.
    """

    def __init__(self, settings: Settings, models: Callable[[], Models]) -> None:
        assert settings.label_studio is not None
        self._settings = settings
        self._address = settings.label_studio
        self._models = models
        self._kept: OrderedDict[str, VideoSession] = OrderedDict()
        self._lock = Lock()

    def predict(self, body: bytes) -> dict[str, Any]:
        """What /predict answers.

        Raises:
            ValueError: no request of Label Studio, a configuration without BrushLabels, an image
                that cannot be had.
        """
        try:
            request = Request.model_validate_json(body)
        except ValidationError as error:
            raise ValueError(first_problem(error, "request")) from None
        marks = request.marks
        # Only the task that is open has marks; without any nothing is looked for.
        results = [
            self._answer(task, marks, request.label_config)
            if marks and place == 0
            else {"result": [], "score": 0.0, "model_version": VERSION}
            for place, task in enumerate(request.tasks)
        ]
        return {"results": results, "model_version": VERSION}

    def _answer(self, task: _Task, marks: list[_Mark], config: str) -> dict[str, Any]:
        tags = tags_of(config)
        where = task.data.get(tags.data)
        if not isinstance(where, str):
            raise expected(f"task data {tags.data!r}", "the address of an image", repr(where)[:60])
        with self._lock:
            session = self._session(where)
            height, width = session.size
            said: dict[str, Annotation] = {}
            for mark in marks:
                if label := _label(mark):
                    said[label] = _with_mark(said.get(label, Annotation()), mark, width, height)
            regions, scores = [], []
            for label, annotation in list(said.items())[:_MOST_OBJECTS]:
                if not annotation.positive:
                    continue
                mask, sure = _masks(session, annotation)
                value = {"format": "rle", "rle": brush_runs(mask), "brushlabels": [label]}
                regions.append(
                    {"from_name": tags.brush, "to_name": tags.image, "type": "brushlabels"}
                    | {"original_width": width, "original_height": height}
                    | {"image_rotation": 0, "origin": "prediction", "score": sure, "value": value}
                )
                scores.append(sure)
        score = float(np.mean(scores)) if scores else 0.0
        return {"result": regions, "score": score, "model_version": VERSION}

    def _session(self, where: str) -> VideoSession:
        kept = self._kept.get(where)
        if kept is None:
            limits = self._settings.limits
            image = read_sent_image(self._fetched(where), limits.video, "image")
            model, click_model = self._models()
            kept = fastfss.video.open(
                image,
                model,
                size=self._settings.size,
                limits=limits.video,
                click_model=click_model,
            )
            self._kept[where] = kept
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)[1].close()
        self._kept.move_to_end(where)
        return kept

    def _fetched(self, where: str) -> bytes:
        most = self._settings.limits.image_bytes
        if where.startswith("data:image/"):
            try:
                found = base64.b64decode(where.partition(";base64,")[2], validate=True)
            except binascii.Error as error:
                raise expected("image", "base64", str(error)) from None
        else:
            found = self._downloaded(urljoin(f"{self._address}/", where), most)
        if len(found) > most:
            raise expected("image", f"at most {most} bytes", "more")
        return found

    def _downloaded(self, address: str, most: int) -> bytes:
        # From Label Studio alone: a task's data could name any machine that this one reaches.
        if urlsplit(address)[:2] != urlsplit(self._address)[:2]:
            raise expected("image", f"an address at {self._address}", address[:120])
        request = urllib.request.Request(address)
        if self._settings.label_studio_key:
            request.add_header("Authorization", f"Token {self._settings.label_studio_key}")
        try:
            with _OPENER.open(request, timeout=_SECONDS) as answer:
                found: bytes = answer.read(most + 1)
                return found
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise ValueError(f"image '{address[:120]}': {error}") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None of them: a redirect is an error."""


_OPENER = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def tags_of(config: str) -> _Tags:
    """The names that an answer needs, of a labelling configuration.

    Raises:
        ValueError: no XML, or without BrushLabels on an Image.
    """
    wanted = "a labelling configuration with BrushLabels on an Image"
    if "<!DOCTYPE" in config or "<!ENTITY" in config:
        raise expected("label_config", wanted, "a document type")
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise expected("label_config", wanted, str(error)) from None
    images = {one.get("name"): one.get("value", "") for one in root.iter("Image")}
    for brush in root.iter("BrushLabels"):
        name, image = brush.get("name"), brush.get("toName")
        if name and image and images.get(image, "").startswith("$"):
            return _Tags(name, image, images[image][1:])
    raise expected("label_config", wanted, "none")


def brush_runs(mask: npt.NDArray[np.bool_]) -> list[int]:
    """A mask as Label Studio's brush: RGBA bytes, 255 inside, run-length coded bit by bit.

    Header: the number of bytes (32 bits), the size of a word less one (5), four sizes of lengths
    less one (4 each). Then blocks: a bit that says "run" (1) or "as it is" (0; not used here), the
    number of a size (2), the length less one in so many bits, the word (8).
    """
    lengths = run_lengths(mask.reshape(-1)) * 4
    values = np.where(np.arange(len(lengths)) % 2 == 1, 255, 0)
    # A length has at most 16 bits: longer runs are cut.
    pieces = -(-lengths // _LONGEST)
    words = np.repeat(values, pieces)
    sizes = np.full(len(words), _LONGEST)
    ends = pieces.cumsum()[pieces > 0] - 1
    sizes[ends] = (lengths - (pieces - 1) * _LONGEST)[pieces > 0]
    blocks = (1 << 26) | (3 << 24) | ((sizes - 1) << 8) | words
    header = [(mask.size * 4, 32), (7, 5), *((size - 1, 4) for size in _LENGTH_BITS)]
    bits = [np.concatenate([_bits(np.array([number]), width)[0] for number, width in header])]
    bits.append(_bits(blocks, 27).reshape(-1))
    packed: list[int] = np.packbits(np.concatenate(bits)).tolist()
    return packed


_LENGTH_BITS = (3, 4, 8, 16)
_LONGEST = 1 << 16


def _bits(numbers: npt.NDArray[Any], width: int) -> npt.NDArray[np.uint8]:
    places = np.arange(width - 1, -1, -1)
    found: npt.NDArray[np.uint8] = (numbers[:, None] >> places & 1).astype(np.uint8)
    return found


def _label(mark: _Mark) -> str | None:
    labels = mark.value.keypointlabels or mark.value.rectanglelabels
    return labels[0][:80] if labels else None


def _with_mark(said: Annotation, mark: _Mark, width: int, height: int) -> Annotation:
    value = mark.value
    x = min(value.x * width / 100, width - 0.01)
    y = min(value.y * height / 100, height - 0.01)
    if mark.type == "keypointlabels":
        return said.point(x, y, positive=mark.is_positive)
    right = min(x + max(value.width * width / 100, 1), width)
    bottom = min(y + max(value.height * height / 100, 1), height)
    return said.box(x, y, right, bottom) if x < right and y < bottom else said


def _masks(session: VideoSession, said: Annotation) -> tuple[npt.NDArray[np.bool_], float]:
    number = next(iter(session.objects), None) or session.add_object()
    result = session.annotate(0, number, said)
    session.undo()  # each request says everything anew
    return result.mask(number), round(result.confidence[number], 4)
