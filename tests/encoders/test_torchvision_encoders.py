from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from fastfss.encoders import create_encoder, torchvision_encoders
from fastfss.encoders.torchvision_encoders import TorchvisionResNet, TorchvisionSequential
from fastfss.weights import CheckpointError, save_checkpoint
from tests.encoders.helpers import assert_maps_close, images, with_statistics

# Our maps by the names that torchvision gives the same places.
PLACES = {
    "resnet18": {f"layer{n}": f"layer{n}" for n in (1, 2, 3, 4)},
    "resnet50": {f"layer{n}": f"layer{n}" for n in (1, 2, 3, 4)},
    "vgg16_bn": {
        "conv1_2": "features.5",
        "conv2_2": "features.12",
        "conv3_3": "features.22",
        "conv4_3": "features.32",
        "conv5_3": "features.42",
    },
    "mobilenet_v2": {
        "stem": "features.1",
        "layer1": "features.3",
        "layer2": "features.6",
        "layer3": "features.13",
        "layer4": "features.17",
    },
    "squeezenet1_1": {
        "conv1": "features.1",
        "fire3": "features.4.cat",
        "fire5": "features.7.cat",
        "fire9": "features.12.cat",
    },
}


@pytest.fixture(scope="module", params=PLACES)
def network(request):
    """torchvision's own model, its classifier included, and the file that it saves."""
    torch.manual_seed(0)
    # VGG's classifier takes 2 s and 400 MB; one small layer stands for it.
    with torch.device("meta" if request.param == "vgg16_bn" else "cpu"):
        model = torchvision.models.get_model(request.param, weights=None)
    if request.param == "vgg16_bn":
        model.classifier = torch.nn.Sequential(torch.nn.Linear(7, 7, device="meta"))
        model = model.to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.03)
    return request.param, with_statistics(model).eval()


@torch.no_grad()
def test_torchvisions_own_file_gives_torchvisions_own_maps(network, tmp_path):
    name, model = network
    path = tmp_path / f"{name}.pth"
    torch.save(model.state_dict(), path)
    encoder = create_encoder(name, weights=path).eval()
    assert encoder.options == {}
    reached = create_feature_extractor(
        model, {theirs: ours for ours, theirs in PLACES[name].items()}
    )
    x = images(97, 129)
    assert_maps_close(encoder(x), reached(x), 1e-6)


@torch.no_grad()
def test_saved_encoder_loads_again_folded_truncated_or_whole(network, tmp_path):
    name, _ = network
    torch.manual_seed(1)
    x = images(64, 64)
    for options in ({}, {"last": list(PLACES[name])[1]}):
        encoder = with_statistics(create_encoder(name, **options)).eval()
        for form in (encoder, encoder.fold_batch_norm()):
            path = tmp_path / "encoder.safetensors"
            save_checkpoint(path, form.state_dict())
            again = create_encoder(name, weights=path).eval()
            assert again.features == form.features
            assert again.options == form.options
            # Of SqueezeNet, which has no norms to fold, only the copy leaves its 1x1 convolutions
            # to oneDNN on one thread; the file does not say so, and the sums differ in their order.
            same = form is encoder or "folded" in form.options
            assert_maps_close(again(x), form(x), 0.0 if same else 2e-6)
            assert all(parameter.requires_grad for parameter in again.parameters())


@torch.no_grad()
def test_unfolded_file_can_be_folded_while_loading(tmp_path):
    encoder = with_statistics(create_encoder("resnet18")).eval()
    save_checkpoint(tmp_path / "a.safetensors", encoder.state_dict())
    folded = create_encoder("resnet18", weights=tmp_path / "a.safetensors", folded=True)
    assert folded.options == {"folded": True}
    assert_maps_close(folded(images(64, 64)), encoder(images(64, 64)), 1e-5)


def test_folded_file_with_one_bias_missing_is_refused(tmp_path):
    tensors = create_encoder("resnet18").fold_batch_norm().state_dict()
    del tensors["layer1.0.conv1.bias"]
    save_checkpoint(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"1 missing: layer1\.0\.conv1\.bias$"):
        create_encoder("resnet18", weights=tmp_path / "a.safetensors")


def test_file_with_half_a_stage_is_refused(tmp_path):
    tensors = {
        key: value
        for key, value in create_encoder("resnet18").state_dict().items()
        if not key.startswith("layer4.1.")
    }
    save_checkpoint(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"10 missing: layer4\.1\.conv1\.weight"):
        create_encoder("resnet18", weights=tmp_path / "a.safetensors")


def test_file_of_another_network_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", create_encoder("resnet34").state_dict())
    with pytest.raises(CheckpointError, match=r"does not fit TorchvisionResNet: \d+ unexpected"):
        create_encoder("resnet18", weights=tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit TorchvisionSequential: \d+ missing"):
        create_encoder("vgg16", weights=tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "mobilenet_v2", "squeezenet1_1"])
def test_imagenet_means_the_first_weights_of_torchvision(name, monkeypatch):
    asked = []
    torch.manual_seed(3)
    tensors = create_encoder(name).state_dict()
    published = {key.replace("body.", "features."): value for key, value in tensors.items()}
    published |= {"fc.weight": torch.ones(1)} if name == "resnet50" else {}

    def get_state_dict(self, *, progress, check_hash):
        asked.append((self, check_hash))
        return published

    weights = torchvision.models.get_model_weights(name)
    monkeypatch.setattr(weights, "get_state_dict", get_state_dict)
    encoder = create_encoder(name, weights="imagenet")
    assert asked == [(weights["IMAGENET1K_V1"], True)]
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in tensors.items())


def test_failed_download_says_what_to_do(monkeypatch):
    def fail(name):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision_encoders, "download", fail)
    with pytest.raises(ConnectionError, match=r"of resnet18 could not .*no route .*weights=<path>"):
        create_encoder("resnet18", weights="imagenet")


@torch.no_grad()
def test_caffes_squeezenet_takes_normalised_rgb_after_loading(tmp_path):
    """Against torchvision's network run the way Caffe's is: BGR, 0..255, means subtracted."""
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None).features.eval()
    fires = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}
    names = {"conv1": "0"} | {
        f"fire{fire}.{part}": f"{index}.{part.replace('squeeze1x1', 'squeeze')}"
        for fire, index in fires.items()
        for part in ("squeeze1x1", "expand1x1", "expand3x3")
    }
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.bias.normal_(std=0.1)
    content = {
        f"{theirs}.{leaf}": network.get_parameter(f"{ours}.{leaf}").clone()
        for theirs, ours in names.items()
        for leaf in ("weight", "bias")
    }
    content |= {"conv10.weight": torch.ones(10, 512, 1, 1), "conv10.bias": torch.ones(10)}
    save_checkpoint(tmp_path / "caffe.safetensors", content)
    encoder = create_encoder("squeezenet1_1", weights=tmp_path / "caffe.safetensors").eval()

    image = torch.rand(1, 3, 65, 81, generator=torch.Generator().manual_seed(0))
    caffe = 255 * image.flip(1) - torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    found = encoder(encoder.normalization.apply(image), ["conv1", "fire9"])
    assert_maps_close(found, {"conv1": network[:2](caffe), "fire9": network(caffe)}, 1e-5)


def test_caffes_squeezenet_with_a_layer_missing_is_refused(tmp_path):
    content = {"fire2.squeeze1x1.weight": torch.ones(16, 64, 1, 1)}
    save_checkpoint(tmp_path / "caffe.safetensors", content)
    with pytest.raises(CheckpointError, match=r"missing: body\.0\.weight"):
        create_encoder("squeezenet1_1", weights=tmp_path / "caffe.safetensors")


@pytest.mark.parametrize("kind", [TorchvisionResNet, TorchvisionSequential])
def test_unknown_name_is_refused(kind):
    with pytest.raises(ValueError, match="got 'resnet152'"):
        kind("resnet152")
