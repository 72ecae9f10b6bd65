from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastfss.encoders import create_encoder
from fastfss.encoders.pfenet_encoders import PFENetResNet
from fastfss.weights import ENCODER_KEYS, FLAT_STEM_KEYS, CheckpointError, load_into
from tests.encoders.helpers import assert_maps_close, images, relative_error, with_statistics

RESNETS = ("pfenet_resnet50", "pfenet_resnet101", "pfenet_resnet152")


@pytest.fixture(scope="module")
def resnet() -> PFENetResNet:
    torch.manual_seed(0)
    encoder = with_statistics(create_encoder("pfenet_resnet50")).eval()
    assert isinstance(encoder, PFENetResNet)
    return encoder


@pytest.mark.parametrize("name", RESNETS)
def test_every_3x3_of_layer3_and_layer4_is_dilated(name: str) -> None:
    with torch.device("meta"):
        encoder = create_encoder(name)
    strided = ("layer0.0", "layer2.0.conv2", "layer2.0.downsample.0")
    for path, module in encoder.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        dilation = {"layer3": 2, "layer4": 4}.get(path.partition(".")[0], 1)
        dilation = dilation if module.kernel_size == (3, 3) else 1
        stride = 2 if path in strided else 1
        assert module.dilation == (dilation, dilation), path
        assert module.stride == (stride, stride), path
        assert module.bias is None
    blocks = [len(getattr(encoder, f"layer{stage}")) for stage in (1, 2, 3, 4)]
    wanted = {"50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
    assert blocks == wanted[name.removeprefix("pfenet_resnet")]


@pytest.mark.parametrize("size", [(97, 97), (96, 65)], ids=str)
@torch.no_grad()
def test_sizes_are_rounded_up_and_no_map_is_negative(size: tuple[int, int]) -> None:
    for name in ("pfenet_resnet50", "pfenet_vgg16_bn"):
        encoder = create_encoder(name).eval()
        for feature, maps in zip(encoder.features, encoder(images(*size)).values(), strict=True):
            wanted = [-(-side // feature.stride) for side in size]
            assert list(maps.shape[1:]) == [feature.channels, *wanted], feature.name
            assert maps.min() >= 0


@torch.no_grad()
def test_equal_to_timms_deep_stem_resnet_with_first_blocks_dilated(resnet: PFENetResNet) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    other = with_statistics(timm.create_model("resnet50s", output_stride=8)).eval()
    for stage, dilation in ((other.layer3, 2), (other.layer4, 4)):
        stage[0].conv2.dilation = stage[0].conv2.padding = (dilation, dilation)
    encoder = create_encoder("pfenet_resnet50").eval()
    load_into(encoder, encoder.own_keys(other.state_dict()), ignore=encoder.ignored_keys)
    x = images(65, 81)
    y = other.maxpool(other.act1(other.bn1(other.conv1(x))))
    wanted = {"layer0": y}
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        y = getattr(other, stage)(y)
        wanted[stage] = y
    assert_maps_close(encoder(x), wanted, 1e-5)


@torch.no_grad()
def test_vgg_takes_torchvisions_file_and_gives_its_maps() -> None:
    """Where sizes are multiples of 16 rounding up changes nothing."""
    torch.manual_seed(0)
    other = with_statistics(create_encoder("vgg16_bn")).eval()
    theirs = {
        key.replace("body.", "features."): tensor for key, tensor in other.state_dict().items()
    }
    encoder = create_encoder("pfenet_vgg16_bn").eval()
    load_into(encoder, encoder.own_keys(theirs))
    maps = encoder(images(64, 96))
    assert_maps_close(
        {"layer4": maps["layer4"]}, {"layer4": other(images(64, 96))["conv5_3"]}, 1e-6
    )
    pooled = nn.functional.max_pool2d(other(images(64, 96))["conv4_3"], 2)
    assert relative_error(maps["layer3"], pooled) < 1e-6


@pytest.mark.parametrize("layout", ["published", "flat", "encoder", "parallel"])
def test_every_published_layout_loads(resnet: PFENetResNet, tmp_path: object, layout: str) -> None:
    own = resnet.state_dict()

    def deep_stem(key: str) -> str:
        """Our name in `DeepStemResNet`."""
        if key.startswith("layer0.7."):
            return key.replace("layer0.7.", "encoder.bn1.")
        return "encoder." + key.replace("layer0.", "conv1.")

    content: dict[str, Tensor] = dict(own)
    if layout in ("flat", "encoder"):
        keys = FLAT_STEM_KEYS if layout == "flat" else ENCODER_KEYS
        content = {
            keys.to_published(deep_stem(key)).removeprefix("encoder."): tensor
            for key, tensor in own.items()
        }
        content |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
        stem = "conv3.weight" if layout == "flat" else "conv1.6.weight"
        assert torch.equal(content[stem], own["layer0.6.weight"])
    if layout == "parallel":
        content = {f"module.{key}": tensor for key, tensor in own.items()}
    path = f"{tmp_path}/weights.pth"
    torch.save({"state_dict": content}, path)
    found = create_encoder("pfenet_resnet50", weights=path).state_dict()
    assert list(found) == list(own)
    assert all(torch.equal(found[key], own[key]) for key in own)


def test_a_file_of_another_depth_is_refused(resnet: PFENetResNet, tmp_path: object) -> None:
    path = f"{tmp_path}/weights.pth"
    torch.save(resnet.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"PFENetResNet: \d+ missing: layer3\.6"):
        create_encoder("pfenet_resnet101", weights=path)


def test_an_unknown_depth_is_named() -> None:
    with pytest.raises(ValueError, match="expected one of pfenet_resnet50, pfenet_resnet101"):
        PFENetResNet("pfenet_resnet18")


# ---- resume, which all encoders that run stage by stage have


@pytest.mark.parametrize("name", ["resnet18", "pfenet_vgg16_bn", "mobilenet_v2", "squeezenet1_1"])
@torch.no_grad()
def test_resuming_from_a_map_gives_the_deeper_map(name: str) -> None:
    encoder = with_statistics(create_encoder(name)).eval()
    names = [feature.name for feature in encoder.features]
    for form in (encoder, encoder.fold_batch_norm(channels_last=True)):
        maps = form(images(65, 97))
        kept = {key: one.clone() for key, one in maps.items()}
        for after, until in ((names[-2], names[-1]), (names[0], names[-1])):
            assert torch.equal(form.resume(maps[after], after, until), maps[until])
            assert torch.equal(maps[after], kept[after])


def test_resuming_backwards_or_from_nowhere_is_refused() -> None:
    encoder = create_encoder("resnet18")
    features = torch.zeros(1, 256, 4, 4)
    for until in ("layer2", "layer3"):
        wanted = f"until: expected a map deeper than 'layer3', got '{until}'"
        with pytest.raises(ValueError, match=wanted):
            encoder.resume(features, "layer3", until)  # type: ignore[operator]
    with pytest.raises(ValueError, match="no feature map 'layer5'"):
        encoder.resume(features, "layer3", "layer5")  # type: ignore[operator]
