"""Where an image's pixels go in a frame, and where a frame's result goes in the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from fastfss import SSP, Task, create_encoder
from fastfss.methods import Prediction
from fastfss.methods.frames import Frame, frame_image, frame_mask, frame_size

SHAPES = [(60, 90), (90, 60), (200, 31), (97, 97), (500, 375)]
FRAMES: tuple[Frame, ...] = get_args(Frame)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("size", [None, 97])
def test_images_and_masks_get_the_frames_size(
    frame: Frame, size: int | None, shape: tuple[int, int]
) -> None:
    whole, region = frame_size(*shape, frame, size)
    assert frame_image(torch.rand(1, 3, *shape), frame, size).shape == (1, 3, *whole)
    mask = frame_mask(torch.ones(1, *shape, dtype=torch.uint8), frame, size)
    assert mask.dtype == torch.uint8
    if frame == "aspect":
        assert mask.shape == (1, *shape)
        assert max(whole) == (size or max(shape))
    else:
        assert mask.shape == (1, *whole)
        assert whole == ((size, size) if size else shape)
    assert (region == whole) == (frame != "letterbox" or size is None)


class Brightness(SSP):
    """Takes bright pixels for the object, so that only the frame decides where they end up."""

    def segment(
        self, query: Tensor, task: Task | Sequence[Task], output_size: tuple[int, int] | None = None
    ) -> Prediction:
        bright = query.mean(dim=1, keepdim=True)
        if output_size is not None:
            bright = torch.nn.functional.interpolate(bright, output_size, mode="bilinear")
        return Prediction.from_pairs([torch.cat([torch.zeros_like(bright), bright], dim=1)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("frame", FRAMES)
def test_what_lies_somewhere_in_the_image_is_found_there(
    monkeypatch: pytest.MonkeyPatch, frame: Frame, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(Brightness, "frame", frame)
    model = Brightness(create_encoder("resnet18"), layers=("layer2",), size=97).eval()
    model.weights_origin = "given"
    height, width = shape
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros(shape, bool)
    mask[height // 2 : height - 4, width // 2 : width - 5] = True
    image[mask] = 255
    result = model.predict(image, model.fit([(image, mask)]))
    assert result.labels.shape == shape
    found = result.labels > 0
    # An edge may move by half a pixel of the frame.
    assert (found & mask).sum() / (found | mask).sum() > 0.85
    rows, columns = np.nonzero(found)
    wanted_rows, wanted_columns = np.nonzero(mask)
    pixel = max(shape) / 97
    assert abs(rows.mean() - wanted_rows.mean()) < 0.5 * pixel + 0.5
    assert abs(columns.mean() - wanted_columns.mean()) < 0.5 * pixel + 0.5
