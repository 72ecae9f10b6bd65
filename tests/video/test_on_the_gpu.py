"""Videos and the default model on an NVIDIA GPU, against the CPU; what a GPU cannot do."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastfss import create_model
from fastfss.video.matching import matcher_of
from tests.video.clips import clip, iou, model, session


def test_frames_are_resized_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch resizes bytes there alone; a model without values stands for one on a GPU."""
    sizes = []
    real = F.interpolate

    def seen(image: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        assert image.device.type == "cpu"
        sizes.append(tuple(image.shape))
        return real(image, *arguments, **options)

    monkeypatch.setattr(F, "interpolate", seen)
    matcher = matcher_of(copy.deepcopy(model()).to("meta"), 120)
    features = matcher.encode(torch.zeros(3, 60, 90, dtype=torch.uint8))
    assert sizes == [(1, 3, 60, 90)]
    assert {one.device.type for one in features.maps.values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["propagation", "ssp"])
def test_a_session_follows_as_on_the_cpu(method: str) -> None:
    truth = clip(6, 2)[1]
    found = []
    for device in ("cpu", "cuda"):
        one = session(6, 2, model=copy.deepcopy(model(method)).to(device))
        one.add_labels(0, truth[0])
        found.append([result.labels for result in one.propagate(0)])
    for ours, wanted in zip(*found, strict=True):
        assert (ours == wanted).mean() > 0.98


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_default_model_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    frames, masks = clip(2, height=240, width=320)
    labels = []
    for device, of_device in (("cpu", torch.float32), ("cuda", dtype)):
        one = create_model("default").to(device).for_inference(dtype=of_device)
        task = one.fit([(frames[0], (masks[0] == 1).astype(np.uint8))])
        labels.append(one.predict(frames[1], task).labels)
    assert iou(labels[1], labels[0]) > 0.97


@pytest.mark.gpu
def test_clicks_with_the_default_model_on_the_gpu() -> None:
    truth = clip(4)[1]
    clicks = create_model("default").cuda().for_inference()
    one = session(4, model=copy.deepcopy(model()).cuda(), click_model=clicks)
    number = one.add_object("square")
    rows, columns = np.nonzero(truth[0] == 1)
    one.add_clicks(0, number, [(int(columns.mean()), int(rows.mean()))])
    assert one.masks(0)[int(rows.mean()), int(columns.mean())] == number
    assert len(list(one.propagate(0))) == 3
