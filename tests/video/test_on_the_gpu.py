"""Videos and the default model on an NVIDIA GPU, against the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fastfss import create_model
from tests.video.clips import clip, iou, model, session


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
