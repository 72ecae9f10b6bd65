"""How a method is used on one's own images: `fit`, `predict`, and what a Task must fit."""

from __future__ import annotations

import hashlib
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastfss.annotation import Annotation, SupportMask, annotation_mask
from fastfss.data import ImageLike, read_image, read_mask
from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.frames import Frame, FrameSize, frame_image, frame_mask, frame_size
from fastfss.methods.info import MethodInfo
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images
from fastfss.result import Result
from fastfss.task import Task
from fastfss.text import Label, TextLabels
from fastfss.text.labels import as_label


class OwnImages(nn.Module):
    """The part of FewShotSegmenter that takes images of any kind; it tells of the attributes."""

    method: ClassVar[str]
    info: ClassVar[MethodInfo]
    frame: ClassVar[Frame] = "aspect"

    encoder: Encoder
    layers: tuple[str, ...]
    size: FrameSize
    text: TextLabels | None
    weights_origin: str
    head_origin: str
    _fingerprint: tuple[tuple[int, ...], str] | None
    _origin_fingerprint: str | None

    @abstractmethod
    def encode_support(self, images: Images, masks: Images) -> Task:
        """See FewShotSegmenter."""

    @abstractmethod
    def segment(
        self, query: Tensor, task: Task | Sequence[Task], output_size: tuple[int, int] | None = None
    ) -> Prediction:
        """See FewShotSegmenter."""

    @torch.no_grad()
    def fit(
        self,
        shots: Iterable[tuple[ImageLike, SupportMask | Label]],
        *,
        name: str | None = None,
        mask_value: int | None = None,
    ) -> Task:
        """Make a Task from annotated images.

        Args:
            shots: pairs of image and mask; a path, PIL image, NumPy array or tensor each, of any
                size; see `fastfss.data.read_image` and `read_mask` for what is taken. Instead of a
                mask an Annotation: points, strokes, boxes; or a label, where the model has `text`.
            name: what to call the class; by default its label if there is one, else "object".
            mask_value: the label to take where masks are label maps of several classes.

        Returns:
            A Task with one shot a pair.

        Raises:
            ValueError: if there is no pair, or an image or mask cannot be used; it is named.
            LabelNotFoundError: a ValueError: nothing in an image speaks for its label.

        Examples:
            >>> import torch, fastfss
            >>> model = fastfss.create_model("ssp", encoder="resnet18", layers=("layer2",), size=64)
            >>> image, mask = torch.rand(3, 48, 64), torch.zeros(48, 64)
            >>> mask[10:30, 20:50] = 1
            >>> model.fit([(image, mask)], name="box").shots
            1
        """
        self._warn_if_random()
        shots = list(shots)
        task = self.encode_support(*self.read_shots(shots, mask_value))
        return self.named(task, self.name_of(shots, name))

    def read_shots(
        self,
        shots: Iterable[tuple[ImageLike, SupportMask | Label]],
        mask_value: int | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The support images (1, 3, h, w) and masks (1, h', w') of `fit`, as encode_support's.

        Args, Raises: as in fit.
        """
        images, masks = [], []
        for index, pair in enumerate(shots):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise expected(f"shots[{index}]", "a pair (image, mask)", type(pair).__name__)
            image = read_image(pair[0], argument=f"shots[{index}] image")
            size, argument = (image.shape[1], image.shape[2]), f"shots[{index}] mask"
            images.append(self.prepare(image))
            given = self.label_of(pair[1]) or pair[1]
            if isinstance(given, Label):
                masks.append(self.mask_of_label(image, given, argument=f"shots[{index}] image"))
                continue
            if isinstance(given, Annotation):
                width = self.point_width(size)
                mask = annotation_mask(given, size, width=width, argument=argument)
            else:
                mask = read_mask(given, size=size, value=mask_value, argument=argument)
            mask = mask.unsqueeze(0).to(self.device)
            masks.append(frame_mask(mask, self.frame, self.size))
        if not images:
            raise expected("shots", "at least one pair (image, mask)", "none")
        return images, masks

    def name_of(
        self, shots: Sequence[tuple[ImageLike, SupportMask | Label]], name: str | None
    ) -> str:
        """What `fit` calls a class: its name, or the first label, or "object"."""
        labels = (self.label_of(mask) for _, mask in shots)
        return name or next((label.text for label in labels if label is not None), "object")

    @property
    def reads_labels(self) -> bool:
        """Whether `fit` takes labels: there is `text`."""
        return self.text is not None

    def label_of(self, mask: object) -> Label | None:
        """What is a label among what `fit` takes beside an image.

        Raises:
            ValueError: a Label, and nothing to find it with.
        """
        if isinstance(mask, Label) and not self.reads_labels:
            wanted = "model.text = fastfss.load_clip(FILE) before labels are used"
            raise expected("text", wanted, "none")
        return as_label(mask, known=self.reads_labels)

    def mask_of_label(self, image: Tensor, label: Label, *, argument: str = "image") -> Tensor:
        """The support mask (1, h, w) that a label stands for in an image, uint8 (3, H, W)."""
        assert self.text is not None
        mask = self.text.mask(image, label.text, argument=argument)
        return frame_mask(mask.unsqueeze(0).to(self.device), self.frame, self.size)

    @property
    def mask_stride(self) -> int:
        """Pixels between the places at which the method reads a mask, 0 where it reads every pixel.

        Of several grids the middle one's.
        """
        strides = sorted(self.encoder.info(layer).stride for layer in self.layers)
        return strides[len(strides) // 2]

    def point_width(self, size: tuple[int, int]) -> float:
        """Diameter of the disk that a point of an annotation becomes, in pixels of the image.

        A sixtieth of the shorter side, and at least 1.6 times the distance of the places at which
        the method reads a mask: a disk of less than the square root of 2 may lie between four.

        Args:
            size: height and width of the image.
        """
        _, seen = frame_size(*size, self.frame, self.size)
        scale = max(own / framed for own, framed in zip(size, seen, strict=True))
        return max(1.0, min(size) / 60, 1.6 * self.mask_stride * scale)

    def named(self, task: Task, name: str) -> Task:
        """The task with the name and with what it needs where it is used."""
        return Task(task.method, task.tensors, name, self.settings())

    @torch.no_grad()
    def predict(self, query: ImageLike, task: Task | Sequence[Task]) -> Result:
        """Segment one image of any size.

        Args:
            query: a path, PIL image, NumPy array or tensor.
            task: a Task of `fit`, or several: one a way.

        Returns:
            A Result at the query's own size.

        Raises:
            ValueError: if the image cannot be used, or a task was made by another method,
                encoder or other weights.
        """
        self._warn_if_random()
        return self._predicted(query, task, lambda _image, tasks: self.segment)

    def _predicted(
        self,
        query: ImageLike,
        task: Task | Sequence[Task],
        segmenter: Callable[[Tensor, Sequence[Task]], Callable[..., Prediction]],
    ) -> Result:
        """`predict`, by what `segmenter` makes of the image, uint8 (3, H, W), and the tasks."""
        tasks = [task] if isinstance(task, Task) else list(task)
        for one in tasks:
            self.check_task(one)
        started = time.perf_counter()
        image = read_image(query, argument="query")
        size = (image.shape[1], image.shape[2])
        tasks = [one.to(self.device) for one in tasks]
        segment = segmenter(image, tasks)
        whole, region = frame_size(*size, self.frame, self.size)
        if region == whole:
            prediction = segment(self.prepare(image), tasks, output_size=size)
        else:
            prediction = segment(self.prepare(image), tasks).of_region(region, size)
        names = [one.name for one in tasks]
        return prediction.result(names, time.perf_counter() - started)

    def check_task(self, task: Task) -> None:
        """Raise ValueError if a task was made by another method, encoder or other weights."""
        task.check_settings(self.method, self.settings(), argument="task")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    def settings(self) -> dict[str, str]:
        """What a task of this model needs where it is used: encoder, layers, weights."""
        return {
            "encoder": self.encoder.name,
            "layers": ",".join(self.layers),
            "weights": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """A digest of the weights; made anew when a weight has changed."""
        if self._origin_fingerprint is not None:
            return self._origin_fingerprint
        tensors = [t for t in self.fingerprinted().values() if t.is_floating_point()]
        counted = not any(t.is_inference() for t in tensors)  # those do not count their changes
        versions = tuple(n for t in tensors for n in (t.data_ptr(), t._version)) if counted else ()
        if not counted or self._fingerprint is None or self._fingerprint[0] != versions:
            digest = hashlib.sha256()
            for tensor in tensors:
                flat = tensor.detach().cpu().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data)
            self._fingerprint = (versions, digest.hexdigest()[:16])
        return self._fingerprint[1]

    def fingerprinted(self) -> dict[str, Tensor]:
        """The entries of the state dict of which a Task depends."""
        return self.state_dict()

    def prepare(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> normalised float (1, 3, h, w), brought to `size`."""
        images = image.unsqueeze(0).to(self.device, torch.float32).div_(255)
        images = frame_image(images, self.frame, self.size)
        dtype = next(self.encoder.parameters()).dtype
        return self.encoder.normalization.apply(images).to(dtype)

    def _warn_if_random(self) -> None:
        # The line that is shown is four frames up: fit or predict, and no_grad around it.
        if self.head_origin == "random":
            warnings.warn(
                f"the head of {self.info.title} has random weights, so its masks mean nothing; "
                "pass weights= a checkpoint of the whole method to create_model, or train it",
                stacklevel=4,
            )
        elif self.weights_origin == "random":
            warnings.warn(
                "this model has random weights, so its masks mean nothing; pass weights= a "
                'checkpoint, an encoder file or "imagenet" to create_model',
                stacklevel=4,
            )
