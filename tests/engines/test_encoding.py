"""Encoders in ONNX Runtime and OpenVINO inside of models that stay in PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfss import create_encoder, create_model
from fastfss.encoders import Encoder, FeatureInfo, Normalization
from fastfss.engines import accelerate, encoder_graphs, encoding
from fastfss.engines.encoder_graphs import cached_graph, exported, graph_path
from fastfss.methods import FewShotSegmenter

BACKENDS = ("onnxruntime", "openvino")
NAMES = ("one", "two")
SIZES = [(1, 64, 96), (1, 65, 97), (3, 70, 51)]
pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTFSS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoders"


class Tiny(Encoder):
    """One convolution; its graph is made in a moment.

    Args:
        sized: its map holds the image's height, which is a constant in a graph of one size.
    """

    def __init__(self, sized: bool = False) -> None:
        normalization = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        super().__init__("tiny", [FeatureInfo(name, 4, 4) for name in NAMES], normalization)
        self.conv = torch.nn.Conv2d(3, 4, 4, stride=4)
        self.sized = sized

    def _compute(self, images: torch.Tensor, wanted: frozenset[str]) -> dict[str, torch.Tensor]:
        found = self.conv(images) * (images.shape[2] if self.sized else 1)
        return {name: found * (1 + place) for place, name in enumerate(NAMES)}


def tiny(sized: bool = False) -> FewShotSegmenter:
    torch.manual_seed(0)
    return create_model("ssp", encoder=Tiny(sized), layers=NAMES).for_inference()


def engine_of(model: FewShotSegmenter) -> encoding.EncoderEngine:
    engine = model.encoder.engine
    assert isinstance(engine, encoding.EncoderEngine)
    return engine


def fails(*_: object) -> None:
    raise AssertionError("called")


@pytest.mark.parametrize("name", ["mobilenet_v2_tf", "resnet18", "vgg16"])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_maps_of_any_size_are_the_modules(name: str, backend: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name)
    deep = [one.name for one in encoder.features[-2:]]
    model = create_model("ssp", encoder=encoder, layers=deep).for_inference()
    fast = accelerate(model, backend)
    for batch, height, width in SIZES:
        images = torch.randn(batch, 3, height, width)
        wanted, found = model.encode(images), fast.encode(images)
        assert found.maps.keys() == wanted.maps.keys()
        for key, one in wanted.maps.items():
            assert found.maps[key].shape == one.shape
            assert (found.maps[key] - one).norm() <= 1e-5 * one.norm()
    assert engine_of(fast).chosen == backend
    assert model.encoder.engine is None


def test_tasks_serve_the_model_and_its_copy() -> None:
    model = tiny()
    fast = accelerate(model, "onnxruntime")
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 30:90] = 1
    of_copy, of_model = fast.fit([(image, mask)]), model.fit([(image, mask)])
    wanted = model.predict(image, of_model).labels
    assert 0 < wanted.mean() < 1
    for labels in (
        model.predict(image, of_copy).labels,
        fast.predict(image, of_model).labels,
        fast.predict(image, of_copy).labels,
    ):
        assert (labels != wanted).mean() < 1e-3


def test_auto_takes_the_fastest_and_remembers_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.zeros(1, 3, 64, 64)
    monkeypatch.setattr(
        encoding, "_seconds", lambda *_: {"eager": 3.0, "onnxruntime": 2.0, "openvino": 1.0}
    )
    first = accelerate(tiny())
    first.encode(images)
    assert engine_of(first).chosen == "openvino"
    assert "onnxruntime 2e+03 ms" in engine_of(first).why
    # Neither a graph is made nor times are taken again.
    monkeypatch.setattr(encoding, "_seconds", fails)
    monkeypatch.setattr(encoder_graphs, "exported", fails)
    again = accelerate(tiny())
    again.encode(images)
    assert engine_of(again).chosen == "openvino"
    assert len(list(cache.glob("*.graph"))) == 1


def test_a_tenth_is_not_worth_a_second_copy_of_the_weights(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        encoding, "_seconds", lambda *_: {"eager": 1.0, "onnxruntime": 0.95, "openvino": 2.0}
    )
    fast = accelerate(tiny())
    fast.encode(torch.zeros(1, 3, 64, 64))
    assert engine_of(fast).chosen == "eager"
    assert "onnxruntime 950 ms" in engine_of(fast).why


def test_other_weights_and_other_maps_have_graphs_of_their_own(cache: Path) -> None:
    encoder = tiny().encoder
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    paths = {graph_path(encoder, ("one",)), graph_path(encoder, ("two",))}
    paths |= {graph_path(other, ("one",)), graph_path(copy.deepcopy(encoder), ("one",))}
    assert len(paths) == 3


def test_a_damaged_graph_is_made_again(cache: Path) -> None:
    model = tiny()
    names = NAMES
    path = graph_path(model.encoder, names)
    cached_graph(path, model.encoder, names, print)
    path.write_bytes(path.read_bytes()[:1000])
    said: list[str] = []
    fast = accelerate(model, "onnxruntime", report=said.append)
    fast.encode(torch.zeros(1, 3, 64, 64))
    assert engine_of(fast).chosen == "onnxruntime"
    assert len(said) == 1
    assert path.stat().st_size > 1000


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FASTFSS_CACHE", str(tmp_path / "file"))
    fast = accelerate(tiny(), "onnxruntime")
    fast.encode(torch.zeros(1, 3, 64, 64))
    assert engine_of(fast).chosen == "onnxruntime"


def test_the_cache_is_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny().encoder
    size = len(exported(encoder, ("one",)))
    monkeypatch.setattr(encoder_graphs, "MOST_CACHED", int(2.5 * size))
    monkeypatch.setattr(encoder_graphs, "exported", lambda *_: bytes(size))
    for number in range(4):
        cached_graph(cache / f"{number}.graph", encoder, ("one",), print)
    assert sorted(one.name for one in cache.glob("*.graph")) == ["2.graph", "3.graph"]


def test_an_encoder_whose_graph_is_of_one_size_stays_in_pytorch(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(sized=True)
    fast = accelerate(model)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(fast.encode(images).maps["features"], model.encode(images).maps["features"])
    assert engine_of(fast).chosen == "eager"
    assert "at 97 x 131 pixels" in engine_of(fast).why
    assert not list(cache.glob("*.graph"))
    # That it fails is found once.
    monkeypatch.setattr(encoder_graphs, "exported", fails)
    again = accelerate(model)
    again.encode(images)
    assert "at 97 x 131 pixels" in engine_of(again).why
    with pytest.raises(NotImplementedError, match=r"backend 'onnxruntime': .*97 x 131 pixels"):
        accelerate(model, "onnxruntime").encode(images)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_libraries_it_stays_in_pytorch(
    cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = encoding.importlib.util.find_spec
    gone = {missing, "openvino"}
    monkeypatch.setattr(
        encoding.importlib.util, "find_spec", lambda name: None if name in gone else find(name)
    )
    fast = accelerate(tiny())
    fast.encode(torch.zeros(1, 3, 64, 64))
    assert engine_of(fast).chosen == "eager"
    assert 'pip install "fastfss[onnx]"' in engine_of(fast).why
    with pytest.raises(NotImplementedError, match=r"openvino is not installed: pip install"):
        accelerate(tiny(), "openvino")


def test_images_that_want_gradients_or_are_of_another_dtype_go_through_the_modules(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = accelerate(tiny(), "onnxruntime")
    monkeypatch.setattr(encoding.EncoderEngine, "_made", fails)
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    sum(one.sum() for one in fast.encoder(images, fast.layers).values()).backward()
    assert images.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        fast.encode(images.detach())
    copied = copy.deepcopy(fast).to(torch.bfloat16)
    assert copied.encoder.engine is None
    copied.encode(images.detach().bfloat16())


def test_what_it_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"backend: expected auto or one of .*got 'tensorrt'"):
        accelerate(tiny(), "tensorrt")
    with pytest.raises(ValueError, match=r"model: expected one of for_inference\(\)"):
        accelerate(create_model("ssp", encoder="resnet18", layers=("layer2",)))
    low = create_model("ssp", encoder="resnet18", layers=("layer2",))
    low = low.for_inference(dtype=torch.bfloat16)
    assert accelerate(low) is low
    with pytest.raises(NotImplementedError, match=r"'openvino': it runs float32 on the CPU"):
        accelerate(low, "openvino")
