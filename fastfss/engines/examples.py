"""What is exported of a model, and the images with which graphs are traced and checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data import ImageLike, read_image
from fastfss.engines.manifest import PRECISIONS, Option, Precision
from fastfss.errors import expected
from fastfss.methods import Features, FewShotSegmenter, Prediction
from fastfss.methods.frames import frame_image
from fastfss.task import Task

# Of the precisions that PyTorch has too.
LOW_DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExportSettings:
    """What is exported of a model.

    Attributes:
        size: height and width of the images.
        shots, ways: of the match graph.
        dynamic: whether images may have other sizes; `size` then is that of the example.
        precision: of the encode graph's arithmetic. What goes in and out is float32 in all.
        options: the model's own, as they were given to create_model.
    """

    size: tuple[int, int]
    shots: int = 1
    ways: int = 1
    dynamic: bool = False
    precision: Precision = "fp32"
    options: Mapping[str, Option] | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise expected("size", "height and width in pixels", str(self.size))
        for name, count in (("shots", self.shots), ("ways", self.ways)):
            if count < 1:
                raise expected(name, "at least 1", str(count))
        if self.precision not in PRECISIONS:
            raise expected("precision", f"one of {', '.join(PRECISIONS)}", repr(self.precision))


@dataclass(frozen=True, eq=False)
class Example:
    """A support set's tasks and an image, encoded by eager PyTorch in float32."""

    images: Tensor
    features: Features
    tasks: list[Task]
    prediction: Prediction


def sized(model: FewShotSegmenter, settings: ExportSettings) -> FewShotSegmenter:
    """A copy of the model, in evaluation mode, that brings images to the engine's size.

    Raises:
        ValueError: a size that the method does not take.
    """
    height, width = settings.size
    if model.frame == "letterbox" and (height != width or settings.dynamic):
        wanted = f"a square, which {model.method} puts images into, and not free"
        raise expected("size", wanted, f"{height}x{width}{', dynamic' * settings.dynamic}")
    model = copy.deepcopy(model).cpu().eval()
    if not settings.dynamic:
        square = height == width and model.frame != "aspect"
        model.size = height if square else (height, width)
    return model


def example_of(model: FewShotSegmenter, settings: ExportSettings, seed: int = 0) -> Example:
    """Made-up supports and an image: smooth noise with bright blobs."""
    supports = settings.size
    normalise = model.encoder.normalization.apply
    tasks = []
    for way in range(settings.ways):
        masks = example_masks(settings.shots, supports, seed=101 * seed + 7 * way + 1)
        images = normalise(example_images(masks, seed=101 * seed + 7 * way + 2))
        with torch.no_grad():
            tasks.append(model.encode_support(images.unsqueeze(0), masks.unsqueeze(0)))
    masks = example_masks(1, settings.size, seed=101 * seed + 99)
    images = normalise(example_images(masks, seed=101 * seed + 100))
    with torch.no_grad():
        features = model.encode(images)
        prediction = model.segment_from(features, tasks)
    return Example(images, features, tasks, prediction)


def prepared(model: FewShotSegmenter, image: ImageLike) -> Tensor:
    """An image as the encode graph takes it."""
    pixels = read_image(image, argument="calibration").unsqueeze(0).float().div_(255)
    pixels = frame_image(pixels, model.frame, model.size)
    return model.encoder.normalization.apply(pixels)


def example_masks(count: int, size: tuple[int, int], *, seed: int) -> Tensor:  # (count, H, W)
    """Ellipses, uint8 0 and 1, a tenth to a third of the image each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(0, 1, size[0])[:, None]
    columns = torch.linspace(0, 1, size[1])
    masks = []
    for _ in range(count):
        y, x, a, b = (0.35 + 0.3 * torch.rand(4, generator=generator)).tolist()
        distance = ((rows - y) / (0.6 * a)) ** 2 + ((columns - x) / (0.6 * b)) ** 2
        masks.append((distance < 1).to(torch.uint8))
    return torch.stack(masks)


def example_images(masks: Tensor, *, seed: int) -> Tensor:  # (count, 3, H, W) in [0, 1]
    """Smooth noise with texture, brighter and redder where the masks (count, H, W) are."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = masks.shape
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    texture = torch.rand(count, 3, height, width, generator=generator)
    tint = torch.tensor([0.4, 0.1, -0.2])[:, None, None] * masks.unsqueeze(1)
    return (0.6 * smooth + 0.2 * texture + tint).clamp(0, 1)
