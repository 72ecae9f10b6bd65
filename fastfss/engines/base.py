"""What all engines share: the two graphs, and how they are used on one's own images."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fastfss.annotation import SupportMask
from fastfss.data import ImageLike, read_image
from fastfss.engines.manifest import WEIGHTS, EngineError, Manifest, TensorSpec, check_digest
from fastfss.errors import expected
from fastfss.methods import Features, FewShotSegmenter, Prediction, create_model
from fastfss.methods.features import map_of
from fastfss.methods.frames import frame_image, frame_size
from fastfss.methods.ways import prediction_of
from fastfss.result import Result
from fastfss.task import Task
from fastfss.text import Label

LOGITS, PRESENCE = "logits", "presence"  # outputs of the match graph
_REMEMBERED = 200  # calls of each graph whose times `stats` tells of


@dataclass(frozen=True)
class EngineStats:
    """How an engine has done.

    Attributes:
        backend: its name.
        load_seconds: from the files to an engine.
        first_seconds: of the first encode and the first match together; None before them.
        encode_ms, match_ms: medians of the last calls but the first; None before them.
        calls: of encode and of match.
        why: where "auto" chose the engine, why it did.
    """

    backend: str
    load_seconds: float
    first_seconds: float | None
    encode_ms: float | None
    match_ms: float | None
    calls: tuple[int, int]
    why: str = ""

    def __str__(self) -> str:
        def shown(value: float | None, unit: str) -> str:
            return "not yet" if value is None else f"{value:.4g} {unit}"

        lines = [
            f"{self.backend}: loaded in {self.load_seconds:.3g} s, first call "
            f"{shown(self.first_seconds, 's')}",
            f"  encode {shown(self.encode_ms, 'ms')}, match {shown(self.match_ms, 'ms')} "
            f"({self.calls[0]} and {self.calls[1]} calls)",
        ]
        return "\n".join([*lines, *([f"  {self.why}"] if self.why else [])])


class Engine(ABC):
    """A method as two graphs: `encode` once an image, `match` once an image and set of tasks.

    An engine does for its one size, number of shots and number of ways what a model does, and
    takes the model's tasks: `fit`, `predict`, `encode` and `segment_from` are theirs.

    Args:
        folder: of `fastfss export`.
        manifest: the folder's.
        device: where tensors go in and come out.

    Attributes:
        backend: the engine's name in `load`.
        why: where "auto" chose it, why it did.
    """

    backend: ClassVar[str]

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        self.folder = folder
        self.manifest = manifest
        self.device = device
        self.load_seconds = 0.0
        self.why = ""
        self._first = [0.0, 0.0]
        self._calls = [0, 0]
        self._times: tuple[deque[float], deque[float]] = (
            deque(maxlen=_REMEMBERED),
            deque(maxlen=_REMEMBERED),
        )

    @property
    def name(self) -> str:
        """What `load` calls it."""
        return self.backend

    @property
    def notes(self) -> str:
        """What there is to tell of how it was made; most have nothing."""
        return ""

    @property
    def exact(self) -> bool:
        """Whether it computes in float32."""
        return self.manifest.precision == "fp32"

    @classmethod
    @abstractmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """The reason why this backend cannot serve a folder on a device, or None."""

    @classmethod
    def slow_start(cls, folder: Path, manifest: Manifest, device: torch.device) -> str | None:
        """Why the first load or call takes minutes, or None; asked where `why_not` has no reason.

        "auto" does not try an engine that does.
        """
        return None

    @abstractmethod
    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        """The maps, by name, of images that fit the manifest."""

    @abstractmethod
    def _match(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the match graph gives, by name, of what `match_inputs` does."""

    # ---- The two graphs

    def encode(self, images: Tensor) -> Features:
        """Encode an image.

        Args:
            images: (1, 3, H, W) float, normalised as the manifest says, of its size.

        Returns:
            The method's maps, as `FewShotSegmenter.encode` gives them; with some backends in
            memory that the next call overwrites.

        Raises:
            ValueError: images of another size.
        """
        spec = self.manifest.encode.inputs[0]
        if not spec.fits(images.shape):
            raise expected("images", str(spec.shape), str(tuple(images.shape)))
        started = time.perf_counter()
        maps = self._encode(images.detach().to(self.device, spec.torch_dtype))
        self._timed(0, started)
        return Features(maps, (images.shape[2], images.shape[3]))

    def match(self, features: Features, tasks: Task | Sequence[Task]) -> Tensor:
        """Match an encoded image with tasks.

        Args:
            features: of `encode`.
            tasks: as many as the engine has ways. A task of fewer shots than the engine's serves
                if their number divides it: its shots are then taken several times, which changes
                no mean, maximum or vote. All ways have the same number.

        Returns:
            (1, N + 1, h, w): the method's logits, on the grid that the manifest tells of.

        Raises:
            ValueError: tasks of another method, number or shape, or maps that do not fit.
        """
        return self.match_outputs(features, tasks)[LOGITS]

    def match_outputs(self, features: Features, tasks: Task | Sequence[Task]) -> dict[str, Tensor]:
        """All that the match graph gives: "logits", and of some methods "presence" (1, N).

        Args, Raises: as in match.
        """
        inputs = self.match_inputs(features, tasks)
        started = time.perf_counter()
        found = self._match(inputs)
        self._timed(1, started)
        return found

    def match_inputs(self, features: Features, tasks: Task | Sequence[Task]) -> dict[str, Tensor]:
        """Maps and tasks' tensors by name, checked, on the engine's device.

        The match graph takes those of `manifest.match.inputs`: some maps serve supports alone.

        Args, Raises: as in match.
        """
        manifest = self.manifest
        ways = [tasks] if isinstance(tasks, Task) else list(tasks)
        if len(ways) != manifest.ways:
            raise expected("tasks", f"{manifest.ways}, the engine's ways", str(len(ways)))
        for one in ways:
            manifest.check_tensors(one)
        # Shots of fewer are taken several times, and some methods average over those of all ways.
        if len({one.shots for one in ways}) > 1:
            each = ", ".join(str(one.shots) for one in ways)
            raise expected("tasks", "as many shots in every way", each)
        held = {
            task_input(way, spec.name): _repeated(one.tensors[spec.name], manifest.shots)
            for way, one in enumerate(ways, start=1)
            for spec in manifest.task
        }
        for spec in manifest.maps:
            held[spec.name] = tensor = map_of(features, spec.name)
            if not spec.fits(tensor.shape):
                raise expected("features", f"a map {spec}", str(tuple(tensor.shape)))
        # The very tensors where they will do: what methods make of them once is known by them.
        plain = {k: t.detach() if t.requires_grad else t for k, t in held.items()}
        return {k: t.to(self.device, torch.float32) for k, t in plain.items()}

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment an encoded image; see `FewShotSegmenter.segment_from`."""
        found = self.match_outputs(features, task)
        return self.prediction(found, features.size, output_size or features.size)

    def segment(
        self, query: Tensor, task: Task | Sequence[Task], output_size: tuple[int, int] | None = None
    ) -> Prediction:
        """Segment an image (1, 3, H, W); see `FewShotSegmenter.segment`."""
        return self.segment_from(self.encode(query), task, output_size)

    def prediction(
        self, found: Mapping[str, Tensor], image: tuple[int, int], size: tuple[int, int]
    ) -> Prediction:
        """What the match graph's outputs of an encoded image say at a size."""
        output = self.manifest.output
        logits = output.enlarged(found[LOGITS], image, size)
        if output.margins == "largest other":
            margins = prediction_of(logits).margins
        else:
            margins = logits[:, 1:] - logits[:, :1]
        return Prediction(logits, margins, found.get(PRESENCE))

    # ---- One's own images

    def fit(
        self,
        shots: Iterable[tuple[ImageLike, SupportMask | Label]],
        *,
        name: str | None = None,
        mask_value: int | None = None,
    ) -> Task:
        """Make a Task from annotated images; see `FewShotSegmenter.fit`.

        It is made by PyTorch, in float32, from the weights in the folder; of labels where
        `engine.model.text` is set.
        """
        return self.model.fit(shots, name=name, mask_value=mask_value)

    @torch.no_grad()
    def predict(self, query: ImageLike, task: Task | Sequence[Task]) -> Result:
        """Segment one image of any size; see `FewShotSegmenter.predict`."""
        tasks = [task] if isinstance(task, Task) else list(task)
        for one in tasks:
            self.check_task(one)
        started = time.perf_counter()
        image = read_image(query, argument="query")
        size = (image.shape[1], image.shape[2])
        whole, region = self.frame_of(size)
        features = self.encode(self.prepare(image))
        if region == whole:
            prediction = self.segment_from(features, tasks, size)
        else:
            prediction = self.segment_from(features, tasks).of_region(region, size)
        names = [one.name for one in tasks]
        return prediction.result(names, time.perf_counter() - started)

    def prepare(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> the encode graph's input, normalised (1, 3, h, w)."""
        before = self.manifest.preprocessing
        images = image.unsqueeze(0).to(self.device, torch.float32).div_(255)
        images = frame_image(images, before.frame, before.size)
        return before.normalization.apply(images)

    def frame_of(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """What an image of a size becomes: see `fastfss.methods.frames.frame_size`."""
        before = self.manifest.preprocessing
        return frame_size(*size, before.frame, before.size)

    def check_task(self, task: Task) -> None:
        """Raise ValueError if the engine cannot take a task."""
        self.manifest.check_task(task)

    def point_width(self, size: tuple[int, int]) -> float:
        """See `FewShotSegmenter.point_width`."""
        return self.model.point_width(size)

    @cached_property
    def model(self) -> FewShotSegmenter:
        """The method in PyTorch, float32, made of the folder's weights when first needed."""
        return model_of(self.folder, self.manifest).to(self.device)

    # ---- Times

    def warm_up(self, calls: int = 2) -> EngineStats:
        """Run both graphs on an empty image, so that the first real one is as fast as the next.

        Args:
            calls: of each graph.
        """
        images = torch.zeros(self.example_shape(self.manifest.encode.inputs[0]))
        for _ in range(calls):
            features = self.encode(images)
            self.match(features, self.example_tasks())
        return self.stats()

    def example_tasks(self) -> list[Task]:
        """Tasks of the right shapes, all 0.5."""
        tensors = {
            spec.name: torch.full(self.example_shape(spec), 0.5, dtype=spec.torch_dtype)
            for spec in self.manifest.task
        }
        return [Task(self.manifest.method, tensors)] * self.manifest.ways

    def example_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """A tensor's shape; where sides of images are free, 256 pixels."""
        return tuple(256 if isinstance(side, str) else side for side in spec.shape)

    def stats(self) -> EngineStats:
        """Load time, first call, and medians of the later ones."""
        encode, match = (statistics.median(t) * 1e3 if t else None for t in self._times)
        first = sum(self._first) if all(self._calls) else None
        calls = (self._calls[0], self._calls[1])
        return EngineStats(self.name, self.load_seconds, first, encode, match, calls, why=self.why)

    def _timed(self, graph: int, started: float) -> None:
        seconds = time.perf_counter() - started
        if self._calls[graph]:
            self._times[graph].append(seconds)
        else:
            self._first[graph] = seconds
        self._calls[graph] += 1


def task_input(way: int, name: str) -> str:
    """What the match graph calls a task's tensor; ways count from 1."""
    return f"task{way}.{name}"


def model_of(folder: Path, manifest: Manifest) -> FewShotSegmenter:
    """The method in PyTorch, float32, of an engine folder's weights.

    Raises:
        FileNotFoundError, EngineError: no weights there, or others than the manifest is of.
    """
    check_digest(folder / WEIGHTS, manifest.weights_sha256)
    before = manifest.preprocessing
    try:
        model = create_model(
            manifest.method,
            encoder=manifest.settings["encoder"],
            layers=manifest.settings["layers"].split(","),
            weights=folder / WEIGHTS,
            size=before.size if isinstance(before.size, int) else None,
            **manifest.options,
        )
    except TypeError as error:
        raise EngineError(f"{folder}: made by another version of fastfss ({error})") from error
    # What was exported may have been a copy for inference, whose tasks are those of its origin.
    model.size = before.size
    model._origin_fingerprint = manifest.settings["weights"]
    return model


def _repeated(tensor: Tensor, shots: int) -> Tensor:
    """(1, k, ...) -> (1, shots, ...), the shots one after another, several times."""
    times = shots // tensor.shape[1]
    return tensor if times == 1 else torch.cat([tensor] * times, dim=1)
