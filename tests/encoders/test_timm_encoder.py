from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastfss.encoders import create_encoder
from fastfss.weights import CheckpointError, save_checkpoint
from tests.encoders.helpers import assert_maps_close, images, with_statistics

timm = pytest.importorskip("timm")

CONVOLUTIONAL = "timm:test_resnet"
TRANSFORMER = "timm:test_vit"


@torch.no_grad()
def test_pyramid_of_a_convolutional_network_is_timms():
    torch.manual_seed(0)
    encoder = with_statistics(create_encoder(CONVOLUTIONAL)).eval()
    x = images(97, 129)
    maps = encoder(x)
    wanted = encoder.model.forward_intermediates(x, intermediates_only=True)
    assert [f.name for f in encoder.features] == ["act1", "layer1", "layer2", "layer3", "layer4"]
    for feature, y in zip(encoder.features, wanted, strict=True):
        assert torch.equal(maps[feature.name], y)
        size = tuple(-(-length // feature.stride) for length in (97, 129))
        assert y.shape == (1, feature.channels, *size)
    norms = [module for module in encoder.train().modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize("size", [(160, 160), (64, 96), (65, 100)], ids=str)
@torch.no_grad()
def test_transformer_takes_any_size_and_gives_a_map_per_block(size):
    torch.manual_seed(0)
    encoder = create_encoder(TRANSFORMER).eval()
    maps = encoder(images(*size))
    assert list(maps) == [f"blocks.{n}" for n in range(6)]
    for y in maps.values():
        assert y.shape == (1, 64, -(-size[0] // 16), -(-size[1] // 16))


@torch.no_grad()
def test_transformer_pads_below_and_right_with_zeros():
    torch.manual_seed(0)
    encoder = create_encoder(TRANSFORMER).eval()
    x = images(65, 100)
    wanted = encoder(F.pad(x, (0, 12, 0, 15)), ["blocks.5"])
    assert_maps_close(encoder(x, ["blocks.5"]), wanted, 0.0)


@torch.no_grad()
def test_hierarchical_transformer_takes_any_size():
    encoder = create_encoder("timm:swin_tiny_patch4_window7_224").eval()
    maps = encoder(images(70, 100))
    for feature in encoder.features:
        size = (-(-70 // feature.stride), -(-100 // feature.stride))
        assert maps[feature.name].shape == (1, feature.channels, *size)


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
@torch.no_grad()
def test_nothing_deeper_than_asked_for_is_computed(name):
    torch.manual_seed(0)
    encoder = create_encoder(name).eval()
    ran = set()
    for path, module in encoder.named_modules():
        module.register_forward_hook(lambda *_, path=path: ran.add(path))
    x = images(160, 160)
    names = [feature.name for feature in encoder.features][:3]
    some = encoder(x, names[::-1])
    assert list(some) == names[::-1]
    deeper = {"model.layer3", "model.layer4", "model.blocks.3", "model.blocks.5", "model.norm"}
    assert "model.layer2" in ran or "model.blocks.2" in ran
    assert not ran & deeper
    everything = encoder(x)
    assert all(torch.equal(some[key], everything[key]) for key in names)


@torch.no_grad()
def test_final_norm_is_an_option():
    torch.manual_seed(0)
    plain = create_encoder(TRANSFORMER).eval()
    normed = create_encoder(TRANSFORMER, final_norm=True).eval()
    normed.load_state_dict(plain.state_dict())
    x = images(160, 160)
    wanted = plain.model.norm(plain(x)["blocks.2"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_maps_close(normed(x, ["blocks.2"]), {"blocks.2": wanted}, 1e-6)
    assert normed.options == {"final_norm": True}


def test_normalization_is_the_models_own():
    encoder = create_encoder(TRANSFORMER)
    assert encoder.normalization.mean == tuple(encoder.model.pretrained_cfg["mean"])
    assert encoder.normalization.std == tuple(encoder.model.pretrained_cfg["std"])


def test_options_reach_timm_and_build_the_same_again():
    encoder = create_encoder(CONVOLUTIONAL, output_stride=8, last="layer3")
    assert [feature.stride for feature in encoder.features] == [2, 4, 8, 8]
    assert encoder.options == {"output_stride": 8, "last": "layer3"}
    again = create_encoder(encoder.name, **encoder.options)
    assert again.features == encoder.features
    again.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
@torch.no_grad()
def test_truncated_encoder_gives_the_same_maps_with_fewer_parameters(name, tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder(name).eval()
    save_checkpoint(tmp_path / "a.safetensors", encoder.state_dict())
    last = encoder.features[2].name
    short = create_encoder(name, weights=tmp_path / "a.safetensors", last=last).eval()
    assert short.features == encoder.features[:3]
    assert len(short.state_dict()) < len(encoder.state_dict())
    x = images(160, 160)
    assert_maps_close(short(x), encoder(x, [f.name for f in short.features]), 0.0)


@pytest.mark.parametrize(
    "name", [CONVOLUTIONAL, "timm:mobilenetv3_small_050", "timm:resnetv2_18", "timm:test_vit"]
)
@torch.no_grad()
def test_folded_copy_is_equal(name):
    torch.manual_seed(0)
    encoder = with_statistics(create_encoder(name)).eval()
    folded = encoder.fold_batch_norm()
    x = images(160, 160)
    assert_maps_close(folded(x), encoder(x), 1e-5)
    norms = [len([m for m in e.modules() if isinstance(m, _BatchNorm)]) for e in (encoder, folded)]
    # A pre-activation network keeps the norms that follow no convolution.
    assert norms[1] < norms[0] if norms[0] else folded.options == {}
    assert norms[1] == 0 or name == "timm:resnetv2_18"


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
def test_timms_file_loads_without_its_classifier(name, tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model(name.removeprefix("timm:"), num_classes=10)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    encoder = create_encoder(name, weights=tmp_path / "whole.pth")
    wanted = whole.state_dict()
    found = encoder.model.state_dict()
    assert {key.partition(".")[0] for key in wanted.keys() - found.keys()} <= {"fc", "head"}
    assert all(torch.equal(found[key], wanted[key]) for key in found)
    torch.save({**wanted, "neck.weight": torch.ones(1)}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected: model\.neck\.weight"):
        create_encoder(name, weights=tmp_path / "whole.pth")


def watch_downloads(monkeypatch):
    """timm.create_model, with random weights of a known seed in place of a download."""
    asked = []
    create = timm.create_model

    def create_model(name, *, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            torch.manual_seed(11)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    return asked, create


def test_imagenet_means_timms_own_weights(monkeypatch):
    asked, create = watch_downloads(monkeypatch)
    encoder = create_encoder(f"{CONVOLUTIONAL}.r160_in1k", weights="imagenet")
    assert asked == ["test_resnet.r160_in1k"]
    torch.manual_seed(11)
    wanted = create("test_resnet", num_classes=0).state_dict()
    assert all(torch.equal(encoder.model.state_dict()[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("depth", [50, 101])
def test_imagenet_for_the_deep_stem_is_gluons(monkeypatch, depth):
    asked, create = watch_downloads(monkeypatch)
    encoder = create_encoder(f"deep_resnet{depth}", weights="imagenet")
    assert asked == [f"resnet{depth}s.gluon_in1k"]
    torch.manual_seed(11)
    wanted = create(f"resnet{depth}s", num_classes=0).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in encoder.state_dict().items())


def test_missing_timm_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"^a model of timm needs timm: .*fastfss\[timm\]\S*$"):
        create_encoder("timm:resnet18")
    with pytest.raises(ImportError, match=r"fastfss\[timm\]"):
        create_encoder("deep_resnet50", weights="imagenet")


def test_unknown_model_suggests_near_ones():
    with pytest.raises(ValueError, match=r"timm has no model 'resnet18x'; near it: .*resnet18"):
        create_encoder("timm:resnet18x")


@pytest.mark.parametrize("option", ["pretrained", "num_classes", "features_only"])
def test_options_that_the_encoder_decides_are_refused(option):
    with pytest.raises(TypeError, match=f"takes no option {option}"):
        create_encoder(CONVOLUTIONAL, **{option: True})


def test_model_whose_maps_share_names_is_refused():
    with pytest.raises(NotImplementedError, match="no named intermediate maps"):
        create_encoder("timm:crossvit_tiny_240")


@torch.no_grad()
def test_network_that_needs_whole_strides_is_padded_on_request():
    torch.manual_seed(0)
    encoder = create_encoder("timm:hrnet_w18_small", pad=True).eval()
    maps = encoder(images(70, 100))
    for feature in encoder.features:
        size = (-(-70 // feature.stride), -(-100 // feature.stride))
        assert maps[feature.name].shape == (1, feature.channels, *size)
    assert encoder.options == {"pad": True}


@torch.no_grad()
def test_transformer_exports_with_the_image_size_open():
    torch.manual_seed(0)
    encoder = create_encoder(TRANSFORMER, last="blocks.1").eval()
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        encoder, (images(64, 64),), dynamic_shapes=({2: auto, 3: auto},)
    ).module()
    x = images(70, 100)
    assert_maps_close(exported(x), encoder(x), 1e-6)
