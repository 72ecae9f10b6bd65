"""What a person says of frames and of images from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfss.annotation import Annotation, SupportMask
from fastfss.data import ImageLike, MaskLike, read_image, read_mask
from fastfss.errors import expected
from fastfss.video.label_files import read_object_mask
from fastfss.video.logged import LoggedSession
from fastfss.video.results import FrameResult
from fastfss.video.source import frame_of
from fastfss.video.state import marks_of


class PromptedSession(LoggedSession):
    """A session to which clicks, strokes, boxes, masks and supports are given."""

    # ---- What is said of a frame

    def add_clicks(
        self,
        frame: int,
        object: int,
        points: Sequence[tuple[float, float]],
        labels: Sequence[int] | None = None,
        *,
        replace: bool = False,
    ) -> FrameResult:
        """Say what is at pixels; the frame's new masks.

        Args:
            frame: its number.
            object: its number.
            points: (x, y) from the upper left corner.
            labels: 1 object, 0 not the object; all 1 by default.
            replace: forget what was said of the object in this frame before.

        Raises:
            ValueError: an unknown frame or object, points outside, as many labels as no points.
        """
        given = [1] * len(points) if labels is None else list(labels)
        if len(given) != len(points) or not points or set(given) - {0, 1}:
            raise expected("labels", "0 or 1 for each of at least one point", str(labels))
        said = Annotation()
        for (x, y), label in zip(points, given, strict=True):
            said = said.point(x, y, positive=bool(label))
        return self.annotate(frame, object, said, replace=replace)

    def add_box(
        self, frame: int, object: int, box: tuple[float, float, float, float], **options: bool
    ) -> FrameResult:
        """Say that the object is in a box (left, top, right, bottom), and nowhere else."""
        return self.annotate(frame, object, Annotation().box(*box), **options)

    def add_scribble(
        self,
        frame: int,
        object: int,
        path: Sequence[tuple[float, float]],
        *,
        positive: bool = True,
        width: float = 5,
        replace: bool = False,
    ) -> FrameResult:
        """Say what is along a line of points."""
        said = Annotation().stroke(path, positive=positive, width=width)
        return self.annotate(frame, object, said, replace=replace)

    def annotate(
        self, frame: int, object: int, said: Annotation, *, replace: bool = False
    ) -> FrameResult:
        """Say anything of an object in a frame; the frame's new masks.

        Raises:
            ValueError: an unknown frame or object, no mark, or marks outside of the frame.
        """
        with self._lock:
            frame, object = frame_of(self.source, frame), self._object(object)
            if not said.marks:
                raise expected("annotation", "at least one mark", "none")
            said.rasterize(self.size)  # so that a bad mark changes nothing
            data: dict[str, Any] = {"marks": marks_of(said)}
            if replace:
                data["replace"] = True
            self._append("annotate", frame=frame, object=object, data=data)
            return self._needed(frame)

    def add_mask(self, frame: int, masks: Mapping[int, MaskLike]) -> FrameResult:
        """Give the masks of objects in a frame: they are taken as they are.

        Args:
            frame: its number.
            masks: object -> mask of the frame's size: 0 background, anything else object.

        Raises:
            ValueError: an unknown frame or object, a mask of another size or that no mask can be.
        """
        with self._lock:
            frame = frame_of(self.source, frame)
            given = {
                self._object(number): read_object_mask(mask, self.size, f"masks[{number}]")
                for number, mask in masks.items()
            }
            if not given:
                raise expected("masks", "at least one", "none")
            data = {"masks": {str(n): marks_of(Annotation().area(m)) for n, m in given.items()}}
            self._append("mask", frame=frame, data=data)
            return self._needed(frame)

    def add_labels(self, frame: int, labels: Tensor | npt.NDArray[np.integer]) -> FrameResult:
        """Give the masks of all objects in a frame as one label map; those that are new are added.

        Args:
            frame: its number.
            labels: (H, W): 0 background, n object n, 255 nothing said.

        Raises:
            ValueError: an unknown frame, another size, or numbers that no object may have.
        """
        with self._lock:
            frame = frame_of(self.source, frame)
            found = torch.as_tensor(np.asarray(labels))
            if tuple(found.shape) != self.size:
                wanted = f"(H, W) of the frame, {self.size[0]} x {self.size[1]}"
                raise expected("labels", wanted, str(tuple(found.shape)))
            present = [int(n) for n in found.unique() if n not in (0, 255)]
            if not present or not 1 <= min(present) <= max(present) <= self.limits.objects:
                wanted = f"numbers 1 to {self.limits.objects}, 0 for background, 255 for unsaid"
                raise expected("labels", wanted, str(present[:5] or "only background"))
            numbers = sorted({*self.objects, *present})
            masks = {}
            for number in numbers:
                mask = (found == number).to(torch.uint8).masked_fill_(found == 255, 255)
                masks[str(number)] = marks_of(Annotation().area(mask))
            new = {str(n): f"object {n}" for n in present if n not in self.objects}
            self._append("mask", frame=frame, data={"masks": masks, "objects": new})
            return self._needed(frame)

    def clear(self, frame: int, object: int | None = None) -> FrameResult | None:
        """Forget what was said of a frame, or of one object in it; its masks then.

        They are those that were propagated to it, if any.
        """
        with self._lock:
            frame = frame_of(self.source, frame)
            number = None if object is None else self._object(object)
            said = self.state.said_of(frame)
            if not said or (number is not None and number not in said):
                raise expected("frame", "one of which something is said", str(frame))
            self._append("clear", frame=frame, object=number)
            return self.at.newest(frame)

    # ---- Supports

    def add_support(
        self, image: ImageLike, masks: Mapping[int, SupportMask], *, name: str | None = None
    ) -> int:
        """Show objects in an image from elsewhere; the support's number, for `forget`.

        Args:
            image: in any form `fastfss.data.read_image` takes.
            masks: object -> mask of the image, or Annotation.
            name: for lists.
        """
        with self._lock:
            pixels = read_image(image, argument="image")
            size = (pixels.shape[1], pixels.shape[2])
            self.limits.check_size(size, "image")
            given = {}
            for number, mask in masks.items():
                if isinstance(mask, Annotation):
                    mask.rasterize(size)
                    said = mask
                else:
                    said = Annotation().area(read_mask(mask, size=size, argument=f"mask {number}"))
                if not said.positive:
                    raise expected(f"mask {number}", "something positive", "nothing")
                given[str(self._object(number))] = marks_of(said)
            if not given:
                raise expected("masks", "at least one", "none")
            key = f"support-{len(self.history) + 1}"
            self.tracker.images[key] = pixels
            data = {"masks": given, "image": key, "name": name or key}
            return self._append("support", data=data).seq

    def commit(self, frame: int) -> int:
        """Keep a frame with its masks for good, as a support; its number, for `forget`.

        Raises:
            ValueError: an unknown frame, or one without masks.
        """
        with self._lock:
            frame = frame_of(self.source, frame)
            result = self.at.newest(frame)
            if result is None or not result.visible:
                raise expected("frame", "one with masks", f"{frame}, which has none")
            masks = {str(n): marks_of(Annotation().area(result.mask(n))) for n in result.objects}
            return self._append("commit", frame=frame, data={"masks": masks}).seq

    def forget(self, support: int) -> None:
        """Take a support away; ValueError if there is none of the number."""
        with self._lock:
            known = [one.seq for one in self.state.supports]
            if support not in known:
                have = ", ".join(map(str, known)) or "none"
                raise expected("support", f"one of {have}", str(support))
            self._append("forget", data={"support": support})

    def _needed(self, frame: int) -> FrameResult:
        found = self.at.newest(frame)
        assert found is not None
        return found
