"""Guided networks at 375 x 500 and 480 x 854 px, end to end and after the encoder.

The published forward encodes its supports again for every query; ours has them in a Task. After the
encoder, guidance is updated by a 64x64 convolution there, by two small products here. Weights are
random: what is computed does not depend on them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.compare import compare
from bench.methods.measuring import measure
from fastfss import GuidedLate, create_model
from tests.methods.published_guided import (
    channels_of,
    fixed_annotation_kernel,
    fixed_decoder_kernel,
    published_decoder,
    published_encoder,
    published_late,
    published_late_query,
    published_mass,
    published_scores,
)

PHOTO, FRAME = (375, 500), (480, 854)


def episode(shots: int, size: tuple[int, int], ways: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """K + 1 images, the last one the query, and K label maps with 5 points a value."""
    generator = torch.Generator().manual_seed(0)
    images = list((torch.randn(shots + 1, 1, 3, *size, generator=generator) * 60).unbind(0))
    labels = []
    for _ in range(shots):
        one = torch.full((size[0] * size[1],), 255, dtype=torch.uint8)
        places = torch.randperm(one.numel(), generator=generator)[: 5 * (ways + 1)]
        for value, chosen in enumerate(places.chunk(ways + 1)):
            one[chosen] = value
        labels.append(one.view(1, *size))
    return images, labels


def models(name: str = "cofeat-late-lite") -> tuple[GuidedLate, GuidedLate]:
    """The model, and its copy for inference."""
    torch.manual_seed(0)
    model = create_model(name)
    assert isinstance(model, GuidedLate)
    with torch.no_grad():
        for key in ("fc6.weight", "fc6.bias"):  # drawn too small for scores of a usual size
            model.encoder.get_parameter(key).normal_(std=0.02)
    return model, model.for_inference()


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_query_with_cached_support(benchmark: Any, shots: int) -> None:
    model, fast = models()
    images, labels = episode(shots, PHOTO)
    pairs = list(zip(images[:-1], labels, strict=True))
    task = fast.encode_support(images[:-1], labels)
    measure(
        benchmark,
        f"cofeat-late-lite {shots}-shot, 375 x 500",
        lambda: published_late(model, pairs, images[-1]),
        lambda: fast.segment(images[-1], task).logits,
    )


@torch.no_grad()
def test_frame_with_guidance_on_both_sides(benchmark: Any) -> None:
    """What video does for every frame; the published code keeps its guidance too."""
    model, fast = models()
    images, labels = episode(1, FRAME)
    task = fast.encode_support(images[:-1], labels)
    guidance, _ = fast.value_guidance([task], torch.float32)
    measure(
        benchmark,
        "cofeat-late-lite, one frame of 480 x 854",
        lambda: published_late_query(model, guidance[0], images[-1]),
        lambda: fast.segment(images[-1], task).logits,
    )


@pytest.mark.parametrize("ways", [1, 5, 20])
@torch.no_grad()
def test_update_after_the_encoder(benchmark: Any, ways: int) -> None:
    """New annotation of an encoded image, and what follows: guidance, head, decoder."""
    model, fast = models()
    (image, _), (labels,) = episode(1, FRAME, ways)
    features = published_encoder(model.encoder, image)  # type: ignore[arg-type]
    own = features.contiguous(memory_format=torch.channels_last)
    of_query = fast.head.of_query(own)
    # Both build their fixed kernels once.
    kernels = fixed_annotation_kernel(), fixed_decoder_kernel(1)

    def published() -> Tensor:
        weights = published_mass(channels_of(labels, ways + 1), kernels[0])
        guidance = (features * weights).sum((2, 3))
        scores = published_scores(model.head, features, guidance).transpose(0, 1)
        return published_decoder(scores, FRAME, kernels[1]).transpose(0, 1)

    def ours() -> Tensor:
        guidance, _ = fast.guide(own, labels, FRAME, ways + 1)
        return fast.decode(fast.value_scores(of_query, guidance), FRAME)

    title = f"guidance, head and decoder, {ways} ways"
    measure(benchmark, title, published, ours, reads=[own])


@torch.no_grad()
def test_a_click_is_cheap_beside_the_encoder(benchmark: Any) -> None:
    """All that a click costs, to the label map, against a whole forward."""
    _, fast = models()
    (image, _), (labels,) = episode(1, FRAME)
    encoded = fast.encode(image)

    def click() -> Tensor:
        return fast.segment_from(encoded, fast.support_from([encoded], [labels])).labels

    def forward() -> Tensor:
        return fast.segment(image, fast.encode_support([image], [labels])).labels

    assert torch.equal(click(), forward())
    measured = compare({"forward": forward, "click": click}, seconds=15, caches="warm")
    benchmark.pedantic(click, rounds=3)
    ratio = measured.ratio("forward", "click")
    benchmark.extra_info.update(measured.as_dict(), ratio=round(ratio, 1))
    print(f"\na click at 480 x 854: {measured}")
    assert ratio > 10


@torch.no_grad()
def test_update_after_the_full_encoder(benchmark: Any) -> None:
    """The same with 4096 channels."""
    with torch.device("meta"):
        model = create_model("cofeat-late")
    assert isinstance(model, GuidedLate)
    model.encoder = torch.nn.Identity()  # type: ignore[assignment]
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    (image, _), (labels,) = episode(1, FRAME)
    features = torch.randn(1, 4096, 14, 26, generator=torch.Generator().manual_seed(1)).relu()
    of_query = model.head.of_query(features)
    kernels = fixed_annotation_kernel(), fixed_decoder_kernel(1)

    def published() -> Tensor:
        weights = published_mass(channels_of(labels, 2), kernels[0])
        guidance = (features * weights).sum((2, 3))
        scores = published_scores(model.head, features, guidance).transpose(0, 1)
        return published_decoder(scores, FRAME, kernels[1]).transpose(0, 1)

    def ours() -> Tensor:
        guidance, _ = model.guide(features, labels, FRAME)
        return model.decode(model.value_scores(of_query, guidance), FRAME)

    assert image.shape[2:] == FRAME
    title = "guidance, head and decoder, 4096 channels"
    measure(benchmark, title, published, ours, reads=[features])
