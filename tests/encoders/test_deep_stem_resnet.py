from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import nn

from fastfss.encoders import create_encoder
from fastfss.weights import (
    FLAT_STEM_KEYS,
    MLC_KEYS,
    SSP_KEYS,
    CheckpointError,
    load_into,
    save_checkpoint,
)
from tests.encoders.helpers import images, relative_error, with_statistics
from tests.shared import shared

NAMES = ("deep_resnet50", "deep_resnet101")
BLOCKS = {"deep_resnet50": (3, 4, 6), "deep_resnet101": (3, 4, 23)}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return with_statistics(create_encoder("deep_resnet50")).eval()


@pytest.mark.parametrize(("name", "entries"), [("deep_resnet50", 270), ("deep_resnet101", 576)])
def test_entry_counts_and_parameters_are_the_published_ones(name, entries):
    encoder = create_encoder(name)
    assert len(encoder.state_dict()) == entries
    parameters = {"deep_resnet50": 8_667_072, "deep_resnet101": 27_659_200}[name]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_key_names_and_shapes_are_those_of_the_published_encoder_file(name):
    shapes = {"conv1.0.weight": (64, 3, 3, 3)}

    def norm(prefix: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.{leaf}"] = (channels,)
        shapes[f"{prefix}.num_batches_tracked"] = ()

    norm("conv1.1", 64)
    shapes["conv1.3.weight"] = (64, 64, 3, 3)
    norm("conv1.4", 64)
    shapes["conv1.6.weight"] = (128, 64, 3, 3)
    norm("bn1", 128)
    inputs = 128
    for stage, (width, blocks) in enumerate(zip((64, 128, 256), BLOCKS[name], strict=True), 1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            shapes[f"{prefix}.conv1.weight"] = (width, inputs, 1, 1)
            norm(f"{prefix}.bn1", width)
            shapes[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
            norm(f"{prefix}.bn2", width)
            shapes[f"{prefix}.conv3.weight"] = (4 * width, width, 1, 1)
            norm(f"{prefix}.bn3", 4 * width)
            if block == 0:
                shapes[f"{prefix}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                norm(f"{prefix}.downsample.1", 4 * width)
            inputs = 4 * width
    state = create_encoder(name).state_dict()
    assert list(state) == list(shapes)
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == shapes


@pytest.mark.parametrize("name", NAMES)
def test_strides_and_dilations_follow_the_rule(name):
    encoder = create_encoder(name)
    for path, module in encoder.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        stride = 2 if path in ("conv1.0", "layer2.0.conv2", "layer2.0.downsample.0") else 1
        stage, _, rest = path.partition(".")
        block = rest.partition(".")[0]
        dilated = stage == "layer3" and block != "0" and path.endswith("conv2")
        dilation = 2 if dilated else 1
        assert module.stride == (stride, stride), path
        assert module.dilation == (dilation, dilation), path
        assert module.bias is None


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((473, 473), (60, 60)), ((400, 400), (50, 50)), ((500, 375), (63, 47))],
    ids=str,
)
@torch.no_grad()
def test_feature_size_is_three_ceil_halvings(encoder, size, wanted):
    assert encoder(images(*size), ["layer2"])["layer2"].shape[2:] == wanted


@torch.no_grad()
def test_last_map_keeps_the_size_and_is_signed_as_the_only_one(encoder):
    maps = encoder(images(65, 81))
    assert maps["layer3"].shape[2:] == maps["layer2"].shape[2:] == (9, 11)
    assert maps["layer3"].min() < 0
    assert all(maps[name].min() >= 0 for name in ("stem", "layer1", "layer2"))


def test_batch_norm_is_frozen_and_convolutions_are_not(encoder):
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.ndim == 4), name


def test_gradients_reach_every_convolution(encoder):
    encoder(images(33, 33))["layer3"].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name
    encoder.zero_grad()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_equal_to_timms_dilated_deep_stem_resnet(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = {"deep_resnet50": "resnet50s", "deep_resnet101": "resnet101s"}[name]
    other = with_statistics(timm.create_model(model, output_stride=8)).eval()
    encoder = create_encoder(name)
    load_into(encoder, other.state_dict(), ignore=encoder.ignored_keys)
    x = images(65, 97)
    maps = encoder(x)
    y = other.maxpool(other.act1(other.bn1(other.conv1(x))))
    assert relative_error(maps["stem"], y) < 1e-6
    for stage in ("layer1", "layer2", "layer3"):
        y = getattr(other, stage)(y)
        ours = maps[stage].relu() if stage == "layer3" else maps[stage]
        assert relative_error(ours, y) < 1e-5, stage


@pytest.mark.parametrize(
    ("case", "method_keys"),
    [
        ("ssp_r50_1shot_refine", SSP_KEYS),
        ("ssp_r101_1shot_refine", SSP_KEYS),
        ("mlc_r50_1shot", MLC_KEYS),
    ],
)
@torch.no_grad()
def test_equal_to_the_reference_given_its_weights(case, method_keys):
    recipe_file = shared("parity/recipe.py")
    specification = importlib.util.spec_from_file_location("recipe", recipe_file)
    recipe = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(recipe)
    arrays = np.load(shared(f"parity/{case}.npz"))
    shapes = json.loads(str(arrays["shapes"]))
    state = {
        str(key): torch.zeros(
            shapes[str(key)],
            dtype=torch.int64 if str(key).endswith("num_batches_tracked") else torch.float32,
        )
        for key in arrays["keys"]
    }
    recipe.fill_(state, int(arrays["seed"]))
    encoder = create_encoder(f"deep_{arrays['backbone']}").eval()
    load_into(encoder, state, rename=lambda key: method_keys.to_ours(key).removeprefix("encoder."))
    published = [method_keys.to_published(f"encoder.{key}") for key in encoder.state_dict()]
    assert published == list(state)

    query = torch.from_numpy(recipe.normalise(arrays["query"]))[None]
    support = torch.from_numpy(recipe.normalise(arrays["support"][0, :1]))
    for form in (encoder, encoder.fold_batch_norm(), encoder.fold_batch_norm(channels_last=True)):
        maps = form(query)
        slices = {
            "layer0_q_slice": maps["stem"][:, ::32, ::4, ::4],
            "layer1_q_slice": maps["layer1"][:, ::64, ::4, ::4],
            "layer2_q_slice": maps["layer2"][:, ::64, ::2, ::2],
            "feature_q_slice": maps["layer3"][:, ::64],
            "feature_s0_slice": form(support, ["layer3"])["layer3"][:, ::64],
        }
        compared = [key for key in slices if key in arrays.files]
        assert {"layer2_q_slice", "feature_q_slice", "feature_s0_slice"} <= set(compared)
        for key in compared:
            error = relative_error(slices[key], torch.from_numpy(arrays[key]))
            # Measured: at most 3e-6, with folding and channels-last included.
            assert error <= 1e-5, (key, error)


CLASSIFIER = {
    "layer4.0.conv1.weight": torch.zeros(512, 1024, 1, 1),
    "layer4.0.bn1.num_batches_tracked": torch.tensor(0),
    "fc.weight": torch.zeros(1000, 2048),
    "fc.bias": torch.zeros(1000),
}


@pytest.mark.parametrize(
    ("layout", "suffix"),
    [
        ("encoder", "pth"),
        ("flat", "pth"),
        ("ssp", "pth"),
        ("mlc", "safetensors"),
        ("ours", "safetensors"),
        ("parallel", "pth"),
    ],
)
def test_every_published_layout_loads(encoder, tmp_path, layout, suffix):
    own = encoder.state_dict()
    keys = {"flat": FLAT_STEM_KEYS, "ssp": SSP_KEYS, "mlc": MLC_KEYS}.get(layout)
    if keys is not None:
        content = {keys.to_published(f"encoder.{key}"): value for key, value in own.items()}
    elif layout == "ours":
        content = {f"encoder.{key}": value for key, value in own.items()}
    else:
        content = dict(own)
    if layout in ("encoder", "flat", "parallel"):
        content |= CLASSIFIER
    if layout == "parallel":
        content = {f"module.{key}": value for key, value in content.items()}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": content}, path)
    else:
        save_checkpoint(path, content)
    found = create_encoder("deep_resnet50", weights=path).state_dict()
    assert list(found) == list(own)
    assert all(torch.equal(found[key], own[key]) for key in own)


def test_only_the_classifier_may_be_left_over(encoder, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**encoder.state_dict(), "layer5.0.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pth .*1 unexpected: layer5\.0\.weight$"):
        create_encoder("deep_resnet50", weights=path)


def test_file_of_the_other_depth_is_refused(encoder, tmp_path):
    path = tmp_path / "r50.safetensors"
    save_checkpoint(path, encoder.state_dict())
    with pytest.raises(CheckpointError, match=r"DeepStemResNet: \d+ missing: layer3\.6"):
        create_encoder("deep_resnet101", weights=path)


def test_torchvisions_resnet_does_not_fit(tmp_path):
    path = tmp_path / "resnet50.safetensors"
    save_checkpoint(path, create_encoder("resnet50").state_dict())
    with pytest.raises(CheckpointError, match=r"64x3x7x7, expected 64x3x3x3"):
        create_encoder("deep_resnet50", weights=path)


def test_unknown_depth_is_named():
    from fastfss.encoders.deep_stem_resnet import DeepStemResNet

    with pytest.raises(ValueError, match="expected one of deep_resnet50, deep_resnet101"):
        DeepStemResNet("deep_resnet18")
