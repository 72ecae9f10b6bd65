"""Encoders in CUDA graphs: what is captured, kept and dropped; on a GPU, that maps are equal."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastfss.video
from fastfss import create_encoder, create_model
from fastfss.engines import accelerate
from fastfss.engines.encoder_replays import MOST_GRAPHS, EncoderReplays
from fastfss.engines.encoding import EncoderEngine
from tests.engines.test_encoding import NAMES, Tiny
from tests.video.clips import clip

Function = Callable[[Tensor], dict[str, Tensor]]


class Captures:
    """Stands for the GPU's graphs: results lie in memory that the next call overwrites."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, function: Function) -> Function:
        held: dict[str, Tensor] = {}

        def replay(images: Tensor) -> dict[str, Tensor]:
            if not held:
                self.shapes.append(tuple(images.shape))
                held.update({name: one.clone() for name, one in function(images).items()})
            for name, one in function(images).items():
                held[name].copy_(one)
            return held

        return replay


@pytest.fixture
def captures() -> Captures:
    return Captures()


@pytest.fixture
def replays(captures: Captures) -> EncoderReplays:
    torch.manual_seed(0)
    return EncoderReplays(Tiny().requires_grad_(False), captures)


def images(height: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, 12, generator=torch.Generator().manual_seed(seed))


def test_a_shape_is_captured_when_it_comes_again(replays, captures):
    assert replays.maps(images(), NAMES) is None
    assert captures.shapes == []
    found = replays.maps(images(seed=1), NAMES)
    wanted = replays._encoder(images(seed=1))
    assert list(found) == list(NAMES)
    assert all(torch.equal(found[name], wanted[name]) for name in NAMES)
    assert replays.maps(images(16), NAMES) is None
    assert captures.shapes == [(1, 3, 8, 12)]


def test_maps_outlast_the_next_call(replays):
    for seed in (0, 1):
        found = replays.maps(images(seed=seed), NAMES)
    kept = found["one"].clone()
    replays.maps(images(seed=2), NAMES)
    assert torch.equal(found["one"], kept)


def test_shapes_that_take_turns_are_not_captured_again_and_again(replays, captures):
    heights = [4 * (1 + n) for n in range(MOST_GRAPHS + 1)]
    for _ in range(5):
        found = [replays.maps(images(height), NAMES) for height in heights]
    assert [one is None for one in found] == [False] * MOST_GRAPHS + [True]
    assert len(captures.shapes) == MOST_GRAPHS


def test_a_shape_that_is_no_longer_used_makes_room(replays, captures):
    heights = [4 * (1 + n) for n in range(MOST_GRAPHS + 1)]
    for height in heights[:-1] * 2:
        replays.maps(images(height), NAMES)
    for _ in range(100):
        found = replays.maps(images(heights[-1]), NAMES)
    assert found is not None and len(captures.shapes) == MOST_GRAPHS + 1
    kept = {key[0][2] for key in replays._replays}
    assert kept == set(heights[1:])


def test_an_encoder_that_cannot_be_captured_stays_as_it_is():
    def refuses(function: Function) -> Function:
        def replay(images: Tensor) -> dict[str, Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing")

        return replay

    replays = EncoderReplays(Tiny().requires_grad_(False), refuses)
    assert [replays.maps(images(), NAMES) for _ in range(3)] == [None] * 3
    assert replays.why_not == (
        "cannot be captured: operation not permitted when stream is capturing"
    )


def test_weights_that_move_are_captured_anew(replays, captures):
    for _ in range(2):
        replays.maps(images(), NAMES)
    weight = replays._encoder.conv.weight
    weight.data = weight.data.clone() * 2
    found = replays.maps(images(), NAMES)
    assert len(captures.shapes) == 2
    assert torch.equal(found["one"], replays._encoder(images())["one"])


def test_layouts_and_maps_have_graphs_of_their_own(replays, captures):
    last = images().contiguous(memory_format=torch.channels_last)
    for one, names in ((images(), NAMES), (last, NAMES), (images(), NAMES[:1])):
        assert replays.maps(one, names) is None
        assert set(replays.maps(one, names)) >= set(names)
    assert len(captures.shapes) == 3


def test_threads_do_not_mix_their_maps(replays):
    wanted = {seed: replays._encoder(images(seed=seed))["one"] for seed in range(4)}
    replays.maps(images(), NAMES)
    wrong = []

    def work(seed: int) -> None:
        for _ in range(50):
            if not torch.equal(replays.maps(images(seed=seed), NAMES)["one"], wanted[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_it_needs_a_model_on_a_gpu():
    model = create_model("ssp", encoder=Tiny(), layers=NAMES).for_inference()
    with pytest.raises(NotImplementedError, match=r"cuda-graph.*NVIDIA GPU, the model is on cpu"):
        accelerate(model, "cuda-graph")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_on_a_gpu_maps_equal_the_modules(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name).eval().requires_grad_(False).cuda().to(dtype)
    replays = EncoderReplays(encoder)
    names = tuple(one.name for one in encoder.features)
    for seed in range(4):
        x = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(seed))
        x = x.to(dtype).cuda()
        with torch.inference_mode():
            wanted, found = encoder(x), replays.maps(x, names)
        assert (found is None) == (seed == 0)
        for one in names if found else ():
            torch.testing.assert_close(found[one], wanted[one], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_on_a_gpu_a_video_is_followed_alike_with_and_without() -> None:
    frames, truth = clip(8)
    model = create_model("propagation").cuda().for_inference()
    fast = accelerate(model)
    found = []
    for one in (model, fast):
        session = fastfss.video.open(frames, one)
        session.add_labels(0, truth[0])
        found.append([result.labels for result in session.propagate(0)])
    assert isinstance(fast.encoder.engine, EncoderEngine)
    assert fast.encoder.engine.chosen == "cuda-graph", fast.encoder.engine.why
    for ours, wanted in zip(*found, strict=True):
        assert (ours == wanted).mean() > 0.98


@pytest.mark.gpu
def test_on_a_gpu_a_larger_graph_holds_the_encoder_itself() -> None:
    model = create_model("ssp", encoder="resnet18", layers=("layer2",)).cuda().for_inference()
    fast = accelerate(model)
    x, mask = torch.rand(1, 1, 3, 64, 64).cuda(), torch.ones(1, 1, 64, 64).cuda()
    mask[..., :32] = 0
    task = fast.encode_support(x, mask)
    replay = fast.graphed(task, (1, 3, 64, 64))
    wanted = model.segment(x[0], task).logits
    torch.testing.assert_close(replay(x[0]).logits, wanted, rtol=1e-3, atol=1e-3)
