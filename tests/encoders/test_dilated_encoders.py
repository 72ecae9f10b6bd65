from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastfss.encoders import create_encoder
from fastfss.encoders._bottleneck import residual_stage
from fastfss.weights import CheckpointError
from tests.encoders.helpers import assert_maps_close, images, with_statistics

NAMES = (
    "dilated_resnet50",
    "dilated_resnet101",
    "dilated_densenet121",
    "ppnet_resnet50",
    "ppnet_resnet101",
)


def torchvisions(name: str) -> nn.Module:
    """torchvision's own network of the same function, its classifier included."""
    torch.manual_seed(0)
    plain = name.partition("_")[2]
    if "resnet" in plain:
        options = {"replace_stride_with_dilation": [False, True, True]}
        model = with_statistics(torchvision.models.get_model(plain, **options)).eval()
        if name.startswith("ppnet"):
            model.layer4[-1].register_forward_hook(without_last_relu)
        return model
    model = torchvision.models.get_model(plain)
    model.features.transition2.pool = nn.Identity()
    return with_statistics(model).eval()


def without_last_relu(block: nn.Module, inputs: tuple[torch.Tensor], _: object) -> torch.Tensor:
    (x,) = inputs
    y = block.relu(block.bn1(block.conv1(x)))
    y = block.relu(block.bn2(block.conv2(y)))
    return block.bn3(block.conv3(y)) + x


def torchvisions_maps(name: str, model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    last = {"layer1", "layer2", "layer3", "layer4"}
    root = model
    if "densenet" in name:
        root = model.features
        last = {"denseblock1", "denseblock2", "denseblock3"}
    maps = {}
    for path, part in root.named_children():
        if path in ("avgpool", "transition3"):
            break
        x = part(x)
        if path in last:
            maps[f"layer{path[-1]}"] = x.clone()
    return maps


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_torchvisions_own_file_gives_torchvisions_own_maps(name, tmp_path):
    model = torchvisions(name)
    path = tmp_path / "network.pth"
    torch.save(model.state_dict(), path)
    encoder = create_encoder(name, weights=path).eval()
    assert encoder.options == {}
    x = images(97, 129)
    assert_maps_close(encoder(x), torchvisions_maps(name, model, x), 1e-6)


@torch.no_grad()
def test_torchvisions_downloads_with_their_older_names_of_dense_layers_load(tmp_path):
    model = torchvisions("dilated_densenet121")
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    assert "features.conv0.weight" in older
    torch.save(older, tmp_path / "densenet121-a639ec97.pth")
    encoder = create_encoder("dilated_densenet121", weights=tmp_path / "densenet121-a639ec97.pth")
    x = images(65, 65)
    wanted = torchvisions_maps("dilated_densenet121", model, x)
    assert_maps_close(encoder.eval()(x), wanted, 1e-6)


@pytest.mark.parametrize("name", ["dilated_resnet50", "dilated_densenet121"])
@torch.no_grad()
def test_a_folded_copy_is_equal_and_keeps_only_norms_that_follow_no_convolution(name, tmp_path):
    torch.manual_seed(0)
    encoder = with_statistics(create_encoder(name)).eval()
    x = images(65, 97)
    for channels_last in (False, True):
        folded = encoder.fold_batch_norm(channels_last=channels_last)
        assert_maps_close(folded(x), encoder(x), 1e-5)
    kept = {n.rpartition(".")[2] for n, m in folded.named_modules() if isinstance(m, _BatchNorm)}
    assert kept == ({"norm", "norm1"} if "dense" in name else set())
    torch.save(folded.state_dict(), tmp_path / "folded.pth")
    again = create_encoder(name, weights=tmp_path / "folded.pth").eval()
    assert_maps_close(again(x), folded(x), 1e-5)


@torch.no_grad()
def test_layer4_is_not_computed_unless_asked_for():
    encoder = create_encoder("dilated_resnet50").eval()
    calls = []
    encoder.layer4.register_forward_hook(lambda *_: calls.append(1))
    encoder(images(33, 33), ["layer2", "layer3"])
    assert not calls
    encoder(images(33, 33), ["layer4"])
    assert calls == [1]


@torch.no_grad()
def test_a_stage_may_end_without_its_relu():
    torch.manual_seed(0)
    stages = [residual_stage(16, 8, 2, last_relu=flag).eval() for flag in (False, True)]
    stages[1].load_state_dict(stages[0].state_dict())
    x = torch.randn(1, 16, 9, 9)
    signed = stages[0](x)
    assert signed.min() < 0
    assert torch.equal(signed.relu(), stages[1](x))


@pytest.mark.parametrize("prefix", ["module.encoder.", "encoder.backbone."])
def test_a_ppnet_checkpoint_fills_its_encoder(prefix, tmp_path):
    encoder = create_encoder("ppnet_resnet50")
    content = {f"{prefix}{key}": value for key, value in encoder.state_dict().items()}
    if prefix.startswith("module."):
        content["module.aspp.c0.bias"] = torch.zeros(16)
        content["module.latentGraph.inner_w1.weight"] = torch.zeros(512, 2048)
    torch.save(content, tmp_path / "ppnet.pth")
    again = create_encoder("ppnet_resnet50", weights=tmp_path / "ppnet.pth")
    own = encoder.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())


def test_other_names_and_files_are_refused(tmp_path):
    from fastfss.encoders.dilated_densenet import DilatedDenseNet
    from fastfss.encoders.dilated_resnet import DilatedResNet

    for kind, names in ((DilatedResNet, "dilated_resnet50, "), (DilatedDenseNet, "dilated_dense")):
        with pytest.raises(ValueError, match=f"name: expected (one of )?{names}"):
            kind("resnet50")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit DilatedDenseNet"):
        create_encoder("dilated_densenet121", weights=tmp_path / "other.pth")
