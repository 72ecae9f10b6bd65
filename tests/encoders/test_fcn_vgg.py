from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders import Normalization, create_encoder, fcn_vgg
from fastfss.encoders.fcn_vgg import FCNVGG, NORMALIZATION
from fastfss.weights import CheckpointError, save_checkpoint
from tests.encoders.helpers import images, relative_error

SIZES = ((33, 40), (97, 129), (75, 110), (64, 96))


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> FCNVGG:
    """The lite network with an eighth of the channels."""
    blocks = tuple((count, channels // 8) for count, channels in fcn_vgg._BLOCKS)
    monkeypatch.setattr(fcn_vgg, "_BLOCKS", blocks)
    torch.manual_seed(0)
    encoder = create_encoder("fcn_vgg16_lite").eval()
    assert isinstance(encoder, FCNVGG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.2, 0.2, generator=generator)
        for name in ("fc6", "fc7"):
            weight = encoder.get_parameter(f"{name}.weight")
            weight.normal_(std=(2 / weight[0].numel()) ** 0.5, generator=generator)
    return encoder


def written_out(encoder: FCNVGG, x: Tensor) -> dict[str, Tensor]:
    state = encoder.state_dict()
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for place in range(1, convolutions + 1):
            weight, bias = (state[f"conv{block}_{place}.{leaf}"] for leaf in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=81 if (block, place) == (1, 1) else 1).relu()
        x = F.max_pool2d(x, 2, ceil_mode=True)
    maps = {}
    for name in ("fc6", "fc7"):
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
        maps[name] = x
    return maps


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_maps_are_those_of_the_published_layers(thin: FCNVGG, size: tuple[int, int]) -> None:
    found = thin(images(*size))
    for name, wanted in written_out(thin, images(*size)).items():
        assert relative_error(found[name], wanted) < 1e-6
        assert wanted.shape[2:] == tuple(-(-side // 32) - 1 for side in size)
        assert wanted.std() > 0


@pytest.mark.parametrize("rest", range(8))
@torch.no_grad()
def test_the_blank_border_is_the_padding_whatever_the_size(thin: FCNVGG, rest: int) -> None:
    thin.annotate_(2)
    for size in ((33 + rest, 60), (96, 40 + rest), (80 + rest, 57 + 3 * rest)):
        x = torch.cat([images(*size), images(*size)[:, :2]], dim=1).repeat(2, 1, 1, 1)
        x[1] *= -3
        thin.blank_border = True
        found = thin(x)["fc7"]
        thin.blank_border = False
        # Twelve layers of float32 sums in another order: up to 1.1e-6 was seen.
        assert relative_error(found, thin(x)["fc7"]) < 4e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_the_blank_border_in_other_dtypes(thin: FCNVGG, dtype: torch.dtype) -> None:
    exact = thin.double()(images(75, 110).double(), ["fc6"])["fc6"]
    thin.to(dtype)
    errors = []
    for blank in (True, False):
        thin.blank_border = blank
        errors.append(relative_error(thin(images(75, 110).to(dtype), ["fc6"])["fc6"], exact))
    assert errors[0] <= 2 * errors[1] + 1e-12


def test_gradients_are_those_of_the_published_layers(thin: FCNVGG) -> None:
    thin.double()
    (wanted,) = torch.autograd.grad(
        written_out(thin, x := images(75, 60).double().requires_grad_())["fc7"].square().sum(), x
    )
    (found,) = torch.autograd.grad(thin(x, ["fc7"])["fc7"].square().sum(), x)
    assert relative_error(found, wanted) < 1e-9


@pytest.mark.parametrize(("name", "width"), [("fcn_vgg16", 4096), ("fcn_vgg16_lite", 256)])
def test_key_names_and_shapes_are_the_published_ones(name: str, width: int) -> None:
    with torch.device("meta"):
        state = create_encoder(name).state_dict()
    assert len(state) == 30
    assert state["conv1_1.weight"].shape == (64, 3, 3, 3)
    assert state["conv5_3.weight"].shape == (512, 512, 3, 3)
    assert state["fc6.weight"].shape == (width, 512, 7, 7)
    assert state["fc7.weight"].shape == (width, width, 1, 1)


def test_input_is_bgr_minus_the_mean_to_the_bit() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    found = NORMALIZATION.apply(pixels.float() / 255)
    means = torch.tensor(NORMALIZATION.mean).flip(0)[:, None, None]
    assert torch.equal(found, pixels.float() - means)
    red = torch.zeros(3, 1, 1)
    red[0] = 1
    assert NORMALIZATION.apply(red).argmax() == 2
    plain = Normalization((0.0, 0.0, 0.0), (0.5, 0.5, 0.5))
    assert torch.equal(plain.apply(red), 2 * red)


@torch.no_grad()
def test_an_annotation_is_weighted_with_the_mean_over_the_colours(thin: FCNVGG) -> None:
    before = thin.get_parameter("conv1_1.weight").clone()
    thin.annotate_(2)
    weight = thin.get_parameter("conv1_1.weight")
    assert torch.equal(weight[:, :3], before)
    for channel in (3, 4):
        assert torch.equal(weight[:, channel], before.mean(1))
    assert thin(torch.zeros(1, 5, 40, 40), ["fc6"])["fc6"].shape == (1, 256, 1, 1)
    with pytest.raises(ValueError, match=r"images: expected \(B, 5, H, W\), got \(1, 3, 40, 40\)"):
        thin(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match=r"channels: expected a positive number.* got 2 beside 2"):
        thin.annotate_(2)
    again = create_encoder(thin.name, **thin.options)
    again.load_state_dict(thin.state_dict())
    with pytest.raises(TypeError, match="fcn_vgg16_lite takes no option 'annotation'"):
        create_encoder("fcn_vgg16_lite", annotation=2)


def test_dropout_is_of_values_or_of_channels(thin: FCNVGG) -> None:
    torch.manual_seed(0)
    (found,) = thin.train()(images(97, 129), ["fc7"]).values()
    assert ((found == 0).all(dim=(2, 3)) | (found != 0).any(dim=(2, 3))).all()
    assert (found == 0).all(dim=(2, 3)).float().mean() > 0.3
    with torch.device("meta"):
        assert isinstance(create_encoder("fcn_vgg16").get_submodule("drop6"), torch.nn.Dropout)


@pytest.mark.parametrize("name", ["fcn_vgg16", "fcn_vgg16_lite"])
@torch.no_grad()
def test_torchvisions_weights_see_the_same_image(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(fcn_vgg, "_BLOCKS", ((2, 4), (2, 4), (3, 4), (3, 4), (3, 8)))
    monkeypatch.setattr(fcn_vgg, "_WIDTHS", {"fcn_vgg16": 16, "fcn_vgg16_lite": 6})
    torch.manual_seed(0)
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    file, inputs = {}, 3
    for place in places:
        channels = 8 if place >= 24 else 4
        file[f"features.{place}.weight"] = torch.randn(channels, inputs, 3, 3) / 3
        file[f"features.{place}.bias"] = torch.randn(channels)
        inputs = channels
    for place, outputs, inputs in ((0, 16, 8 * 49), (3, 16, 16), (6, 10, 16)):
        file[f"classifier.{place}.weight"] = torch.randn(outputs, inputs) / 10
        file[f"classifier.{place}.bias"] = torch.randn(outputs)
    save_checkpoint(tmp_path / "vgg16.safetensors", file, {})
    encoder = create_encoder(name, weights=tmp_path / "vgg16.safetensors").eval()
    state = encoder.state_dict()
    drawn = torch.rand(1, 3, 40, 50)
    theirs = (drawn - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    wanted = F.conv2d(theirs, file["features.0.weight"], file["features.0.bias"])
    ours = NORMALIZATION.apply(drawn)
    found = F.conv2d(ours, state["conv1_1.weight"], state["conv1_1.bias"])
    assert relative_error(found, wanted) < 1e-5
    assert torch.equal(state["conv5_3.weight"], file["features.28.weight"])
    if name == "fcn_vgg16":
        assert torch.equal(state["fc6.weight"].flatten(1), file["classifier.0.weight"])
        assert torch.equal(state["fc7.weight"].flatten(1), file["classifier.3.weight"])
    else:
        assert state["fc6.weight"].shape == (6, 8, 7, 7)
        assert 0 < state["fc6.weight"].std() < 0.002
    del file["features.10.bias"]
    save_checkpoint(tmp_path / "short.safetensors", file, {})
    with pytest.raises(CheckpointError, match=r"missing: conv3_1\.bias"):
        create_encoder(name, weights=tmp_path / "short.safetensors")


def test_an_image_that_gives_no_position_is_refused(thin: FCNVGG) -> None:
    with pytest.raises(ValueError, match="images: expected at least 33 pixels a side, got 64 x 32"):
        thin(images(64, 32))
    with pytest.raises(ValueError, match="name: expected one of fcn_vgg16, fcn_vgg16_lite"):
        FCNVGG("fcn_vgg19")
