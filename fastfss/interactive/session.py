"""Interactive segmentation of an image: it is encoded once, each click only matches anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastfss.annotation import Annotation, Unsaid, annotation_mask
from fastfss.data import ImageLike, MaskLike, read_image
from fastfss.errors import expected
from fastfss.interactive.refinement import Refinement, RefinementName, get_refinement
from fastfss.methods import FewShotSegmenter
from fastfss.methods.frames import frame_mask, frame_size
from fastfss.methods.hints import hints_of
from fastfss.methods.prediction import Prediction
from fastfss.result import Result
from fastfss.task import Task


@dataclass(frozen=True)
class _State:
    """What was said so far: of each object its annotation and its shots from other images."""

    annotations: tuple[Annotation, ...]
    supports: tuple[Task | None, ...]
    names: tuple[str, ...]
    # (N, H, W), the scores before this change; None before the first.
    before: Tensor | None = field(default=None, compare=False)


class InteractiveSession:
    """Clicks, strokes, boxes and masks on one image, for one or more objects.

    The image goes through the encoder once. What is said of it becomes a support that lies in the
    image itself, beside supports from other images, if any; each change makes a new task of the
    features that are there already and matches it (methods whose `cheap_update` is False run a part
    of the encoder for it).

    Args:
        model: in eval mode.
        image: a path, PIL image, NumPy array or tensor.
        refinement: what makes masks follow edges: "none", "guided", "grabcut", or a function.
        unsaid: what pixels are of which nothing is said, see fastfss.annotation.annotation_mask; by
            default what the method wants.
        width: diameter of a click's disk in pixels of the image; by default what the method needs,
            see FewShotSegmenter.point_width.

    Examples:
        >>> import torch, fastfss
        >>> from fastfss.interactive import InteractiveSession
        >>> model = fastfss.create_model("ssp", encoder="resnet18", layers=("layer2",), size=64)
        >>> session = InteractiveSession(model, torch.rand(3, 48, 64), refinement="none")
        >>> session.click(30, 20).labels.shape
        (48, 64)
    """

    def __init__(
        self,
        model: FewShotSegmenter,
        image: ImageLike,
        *,
        refinement: Refinement | RefinementName = "guided",
        unsaid: Unsaid | None = None,
        width: float | None = None,
    ) -> None:
        self.model = model
        self.image = read_image(image, argument="image")
        self.size = (self.image.shape[1], self.image.shape[2])
        self.refinement: Refinement | None = (
            refinement if callable(refinement) else get_refinement(refinement)
        )
        self.unsaid: Unsaid = unsaid or model.unsaid
        self.width = model.point_width(self.size) if width is None else width
        with torch.inference_mode():
            self.features = model.for_clicks(model.encode(model.prepare(self.image)))
        self._past: list[_State] = []
        self._future: list[_State] = []
        self._state = _State((Annotation(),), (None,), ("object",))
        self._result: Result | None = None

    # ---- What a person does

    def click(self, x: float, y: float, *, positive: bool = True, object: int = 1) -> Result:
        """Say that a pixel is the object's, or is not; the new result.

        Args:
            x: pixels from the left.
            y: pixels from the top.
            positive: False: the pixel is background.
            object: whose annotation it is, from 1; the next free number begins a new object.

        Raises:
            ValueError: a point outside of the image, or an object that would leave a gap.
        """
        return self.annotate(lambda a: a.point(x, y, positive=positive), object)

    def stroke(
        self, points: Sequence[tuple[float, float]], *, positive: bool = True, object: int = 1
    ) -> Result:
        """Say it of a line of points."""
        return self.annotate(lambda a: a.stroke(points, positive=positive), object)

    def box(
        self, left: float, top: float, right: float, bottom: float, *, object: int = 1
    ) -> Result:
        """Say that the object is in a box, and nowhere else."""
        return self.annotate(lambda a: a.box(left, top, right, bottom), object)

    def mask(self, mask: Tensor, *, object: int = 1) -> Result:
        """Say all that a mask (H, W) of {0, 1, 255} says."""
        return self.annotate(lambda a: a.area(mask), object)

    def annotate(self, change: Callable[[Annotation], Annotation], object: int = 1) -> Result:
        """Change an object's annotation in any way; the new result."""
        state = self._with_object(object)
        annotations = list(state.annotations)
        changed = change(annotations[object - 1])
        changed.rasterize(self.size)  # so that a bad mark changes nothing
        annotations[object - 1] = changed
        return self._go(replace(state, annotations=tuple(annotations)))

    def add_support(
        self, shots: Sequence[tuple[ImageLike, MaskLike]], *, object: int = 1, name: str = ""
    ) -> Result | None:
        """Give an object further shots, from other images: what is found there is looked for here.

        Args:
            shots: as in FewShotSegmenter.fit.
            object: whose.
            name: what the object is called from now on.
        """
        return self.add_task(self.model.fit(shots, name=name or "object"), object=object, name=name)

    def add_task(self, task: Task, *, object: int = 1, name: str = "") -> Result | None:
        """Give an object the shots of a task that was made before."""
        self.model.check_task(task)
        state = self._with_object(object)
        supports, names = list(state.supports), list(state.names)
        old = supports[object - 1]
        supports[object - 1] = task if old is None else old.merge(task)
        names[object - 1] = name or task.name or names[object - 1]
        return self._go(replace(state, supports=tuple(supports), names=tuple(names)))

    def undo(self) -> Result | None:
        """Take the last change back; the result as it was, to the last bit.

        Raises:
            ValueError: nothing to undo.
        """
        if not self._past:
            raise expected("undo", "a change to take back", "none")
        self._future.append(self._state)
        self._state, self._result = self._past.pop(), None
        return self.result

    def redo(self) -> Result | None:
        """Make a change that was taken back again; ValueError if there is none."""
        if not self._future:
            raise expected("redo", "a change that was taken back", "none")
        self._past.append(self._state)
        self._state, self._result = self._future.pop(), None
        return self.result

    def reset(self) -> None:
        """Take everything back, in one change that can be undone."""
        self._go(_State((Annotation(),), (None,), ("object",)))

    # ---- What comes out

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """What was said of each object."""
        return self._state.annotations

    @property
    def result(self) -> Result | None:
        """The masks of all objects at the image's size; None before anything positive was said.

        An object of which only the background was said is nowhere.
        """
        if self._result is None and (found := self._said()):
            self._result = self._segment(found)
        return self._result

    def task(self, object: int = 1) -> Task:
        """The task of an object, to segment other images with.

        Raises:
            ValueError: nothing positive was said of it, or there is no such object.
        """
        if not 1 <= object <= len(self._state.annotations):
            raise expected("object", f"1 to {len(self._state.annotations)}", str(object))
        with torch.inference_mode():
            made = self._task(object - 1)
        # A task that leaves the session must serve where gradients are wanted, too.
        tensors = {name: tensor.clone() for name, tensor in made.tensors.items()}
        return self.model.named(Task(made.method, tensors), self._state.names[object - 1])

    # ---- How

    def _with_object(self, object: int) -> _State:
        state, count = self._state, len(self._state.annotations)
        if not 1 <= object <= count + 1:
            raise expected("object", f"1 to {count + 1}", str(object))
        if object <= count:
            return state
        return _State(
            (*state.annotations, Annotation()),
            (*state.supports, None),
            (*state.names, f"object {object}"),
        )

    def _go(self, state: _State) -> Result:
        """To a new state; where it cannot be segmented, everything stays as it was."""
        before = self._state
        if self.model.takes_hints and (now := self.result) is not None:
            state = replace(state, before=torch.from_numpy(now.scores))
        self._state = state
        kept, self._result = self._result, None
        try:
            found = self.result
        except Exception:
            self._state, self._result = before, kept
            raise
        self._past.append(before)
        self._future.clear()
        if found is None:
            # Nothing positive yet: the empty result has every object nowhere.
            none = torch.zeros(len(state.names), *self.size)
            return Result.from_probabilities(none, none[0], names=state.names)
        return found

    def _said(self) -> list[int]:
        """The places of the objects of which something positive was said."""
        pairs = zip(self._state.annotations, self._state.supports, strict=True)
        return [n for n, (a, support) in enumerate(pairs) if self._shows(a) or support is not None]

    def _shows(self, annotation: Annotation) -> bool:
        """Whether a pixel is the object's; a later mark may have covered all that were."""
        return annotation.positive and bool((annotation.rasterize(self.size) == 1).any())

    def _task(self, place: int) -> Task:
        annotation, support = self._state.annotations[place], self._state.supports[place]
        if not self._shows(annotation):
            if support is None:
                raise expected("object", "a positive mark or a support", "neither")
            return support
        mask = annotation_mask(annotation, self.size, unsaid=self.unsaid, width=self.width)
        framed = frame_mask(mask[None], self.model.frame, self.model.size)
        own = self.model.fit_from([self.features], [framed.to(self.model.device)])
        if support is None:
            return own
        return self.model.named(own, support.name).merge(support.to(self.model.device))

    def _segment(self, places: Sequence[int]) -> Result:
        """The result with the objects of these places; the others are nowhere."""
        started = time.perf_counter()
        count = len(self._state.names)
        with torch.inference_mode():
            tasks = [self._task(place) for place in places]
            prediction = self._prediction(tasks, places)
            probabilities = prediction.probabilities[0].float().cpu()
            if self.refinement is not None:
                probabilities = torch.stack(
                    [
                        self.refinement(
                            self.image,
                            one,
                            self._state.annotations[place].rasterize(self.size),
                        )
                        for one, place in zip(probabilities, places, strict=True)
                    ]
                )
                best, way = probabilities.max(dim=0)
                labels = torch.where(best > 0.5, way + 1, 0)
            else:
                labels = prediction.labels[0].cpu()
            if len(places) < count:
                numbers = torch.tensor([0, *(place + 1 for place in places)])
                labels = numbers[labels]
                every = probabilities.new_zeros(count, *self.size)
                every[list(places)] = probabilities
                probabilities = every
        return Result.from_probabilities(
            probabilities,
            labels,
            names=self._state.names,
            seconds=time.perf_counter() - started,
        )

    def _prediction(self, tasks: Sequence[Task], places: Sequence[int]) -> Prediction:
        whole, region = frame_size(*self.size, self.model.frame, self.model.size)
        size = self.size if region == whole else None
        if self.model.takes_hints:
            hints = [self._hints(place, region) for place in places]
            found = self.model.segment_hinted(self.features, tasks, hints, size)
        else:
            found = self.model.segment_from(self.features, tasks, size)
        return found if region == whole else found.of_region(region, self.size)

    def _hints(self, place: int, size: tuple[int, int]) -> Tensor:
        """What was said of an object in the image, and where it was found before."""
        before = self._state.before
        prior = None if before is None or len(before) <= place else before[place]
        return hints_of(self._state.annotations[place].rasterize(self.size), size, prior)
