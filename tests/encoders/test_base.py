"""What holds for every encoder."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fastfss.encoders import FeatureInfo, Normalization, create_encoder, list_encoders
from tests.encoders.helpers import FAMILIES, assert_maps_close, images, with_statistics


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request):
    torch.manual_seed(0)
    return with_statistics(create_encoder(request.param)).eval()


def expected_size(name: str, size: int, stride: int) -> int:
    if name in ("vgg16", "vgg16_bn", "blocks_vgg16"):
        return size // stride
    if name.startswith("squeezenet"):  # an unpadded convolution, then poolings that round up
        size, stride = (size - 3) // 2 + 1, stride // 2
        while stride > 1:
            size, stride = -(-(size - 3) // 2) + 1, stride // 2
        return size
    if name.startswith("fcn_vgg16"):  # a position is a 7x7 window of the padded image's
        return -(-size // 32) - 1
    if name == "dilated_densenet121" and stride > 4:  # its second pooling rounds down
        return -(-size // 4) // 2
    return -(-size // stride)


@pytest.mark.parametrize("size", [(97, 129), (64, 96), (75, 110)], ids=str)
@pytest.mark.parametrize("name", list_encoders())
@torch.no_grad()
def test_declared_channels_and_strides_are_true(name, size):
    if name == "blocks_swin_b":
        size = (384, 384)  # it takes no other
    encoder = create_encoder(name)
    maps = encoder(images(*size))
    assert list(maps) == [feature.name for feature in encoder.features]
    for feature in encoder.features:
        found = maps[feature.name]
        assert found.shape[:2] == (1, feature.channels), feature
        for axis in (0, 1):
            wanted = expected_size(name, size[axis], feature.stride)
            assert found.shape[2 + axis] == wanted, (feature, found.shape)
        assert found.isfinite().all()
        assert found.std() > 0


def test_strides_and_names_are_in_order(encoder):
    strides = [feature.stride for feature in encoder.features]
    assert strides == sorted(strides)
    assert len({feature.name for feature in encoder.features}) == len(strides)


@torch.no_grad()
def test_asking_for_some_maps_gives_the_same_values_in_that_order(encoder):
    x = images(64, 80)
    everything = encoder(x)
    names = [feature.name for feature in encoder.features][::2][::-1]
    some = encoder(x, names)
    assert list(some) == names
    assert all(torch.equal(some[name], everything[name]) for name in names)
    assert encoder(x, []) == {}


@torch.no_grad()
def test_nothing_deeper_than_asked_for_is_computed(encoder):
    ran = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, module in encoder.named_modules()
        if name and not list(module.children())
    ]
    x = images(64, 64)
    counts = []
    for feature in encoder.features:
        ran.clear()
        encoder(x, [feature.name])
        counts.append(set(ran))
    for handle in handles:
        handle.remove()
    assert counts[0]
    for shallower, deeper in itertools.pairwise(counts):
        assert shallower < deeper


@torch.no_grad()
def test_deeper_layers_leave_returned_maps_alone(encoder):
    x = images(64, 64)
    kept = x.clone()
    everything = encoder(x)
    for feature in encoder.features:
        alone = encoder(x, [feature.name])[feature.name]
        assert torch.equal(alone, everything[feature.name]), feature.name
    assert torch.equal(x, kept)


@torch.no_grad()
def test_training_mode_neither_uses_nor_changes_batch_statistics(encoder):
    x = images(64, 64)
    wanted = encoder(x)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.train()
    assert encoder.training
    assert not any(m.training for m in encoder.modules() if isinstance(m, _BatchNorm))
    found = encoder(x)
    encoder.eval()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_batch_norm_is_in_evaluation_mode_from_the_start():
    for name in FAMILIES:
        norms = [m for m in create_encoder(name).modules() if isinstance(m, _BatchNorm)]
        assert not any(norm.training for norm in norms), name


@torch.no_grad()
def test_truncated_encoder_gives_the_same_maps_with_fewer_parameters(encoder):
    x = images(64, 64)
    last = encoder.features[-2].name
    short = create_encoder(encoder.name, last=last).eval()
    short.load_state_dict(
        {key: value for key, value in encoder.state_dict().items() if key in short.state_dict()}
    )
    assert short.features == encoder.features[:-1]
    assert len(short.state_dict()) < len(encoder.state_dict())
    wanted = encoder(x, [feature.name for feature in short.features])
    assert_maps_close(short(x), wanted, 0.0)
    with pytest.raises(ValueError, match="no feature map"):
        short.info(encoder.features[-1].name)


def test_options_build_the_same_modules_again(encoder):
    for options in ({}, {"last": encoder.features[1].name, "folded": True}):
        first = create_encoder(encoder.name, **options)
        again = create_encoder(first.name, **first.options)
        assert again.features == first.features
        assert list(again.state_dict()) == list(first.state_dict())
        again.load_state_dict(first.state_dict())


@torch.no_grad()
def test_torch_compile_takes_the_forward_in_one_graph():
    encoder = create_encoder("resnet18").eval()
    x = images(64, 64)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    assert_maps_close(compiled(x, ["layer2"]), encoder(x, ["layer2"]), 1e-6)


@pytest.fixture(scope="module")
def small():
    return create_encoder("squeezenet1_1").eval()


def test_info_describes_one_map(small):
    assert small.info("fire5") == FeatureInfo("fire5", 256, 8)


@pytest.mark.parametrize(
    ("bad", "names", "error", "reason"),
    [
        (torch.zeros(3, 8, 8), None, ValueError, r"expected \(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), None, ValueError, r"got \(1, 1, 8, 8\)"),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            None,
            TypeError,
            "normalised floating point, got torch.uint8",
        ),
        (torch.zeros(1, 3, 64, 64), ["fire4"], ValueError, "'fire4'; it has conv1, fire3, fire5"),
        (torch.zeros(1, 3, 64, 64), "fire3", TypeError, "got the text 'fire3'"),
    ],
    ids=["no-batch", "grey", "bytes", "unknown-map", "one-text"],
)
def test_bad_input_is_named(small, bad, names, error, reason):
    with pytest.raises(error, match=reason):
        small(bad, names)


def test_normalization_is_subtract_and_divide_per_channel():
    normalization = Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    x = torch.full((2, 3, 4, 5), 0.6)
    found = normalization.apply(x)
    wanted = torch.tensor([1.0, 1.6, 0.15])[None, :, None, None].expand(2, 3, 4, 5)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(x, torch.full((2, 3, 4, 5), 0.6))
    with pytest.raises(TypeError, match=r"got torch\.uint8"):
        normalization.apply(torch.zeros(3, 4, 4, dtype=torch.uint8))


def test_a_map_that_needs_no_weights_is_kept_with_the_one_before_it():
    whole = create_encoder("blocks_vgg16")
    tensors = whole.state_dict()
    whole.keep_what_is_in_(tensors)
    assert whole.features[-1].name == "pool5"
    until = {key: t for key, t in tensors.items() if int(key.split(".")[1]) < 24}
    short = create_encoder("blocks_vgg16")
    short.keep_what_is_in_(until)
    assert short.features[-1].name == "conv4_3"
