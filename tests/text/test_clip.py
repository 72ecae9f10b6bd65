from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from fastfss.errors import CheckpointError, MissingExtraError
from fastfss.text import load_tower, tower_of
from fastfss.text.clip import centre_square, whole_square
from tests.text.towers import picture, tiny_state, tiny_tower


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
def test_the_pooling_is_open_clips(batch: int) -> None:
    tower = tiny_tower().double()
    maps = torch.randn(batch, 256, 7, 7, dtype=torch.float64)
    wanted = tower.model.visual.attnpool(maps)
    torch.testing.assert_close(tower.pool(maps), wanted, rtol=1e-9, atol=1e-9)
    images = torch.randn(batch, 3, 224, 224, dtype=torch.float64)
    wanted = tower.model.encode_image(images)
    torch.testing.assert_close(tower.image_features(images), wanted, rtol=1e-9, atol=1e-9)


def test_the_tower_stays_as_it_is() -> None:
    tower = tiny_tower().train()
    assert not tower.training and not tower.model.training
    assert not any(one.requires_grad for one in tower.parameters())


class _Archived(nn.Module):
    """Holds a state dict under its names, in half precision, and a scalar of OpenAI's file."""

    def __init__(self) -> None:
        super().__init__()
        for key, tensor in {**tiny_state(), "input_resolution": torch.tensor(224)}.items():
            *folders, name = key.split(".")
            module: nn.Module = self
            for folder in folders:
                if not hasattr(module, folder):
                    module.add_module(folder, nn.Module())
                module = getattr(module, folder)
            half = tensor.half() if tensor.is_floating_point() else tensor
            module.register_buffer(name, half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _write(path: Path, kind: str) -> None:
    if kind == "archive":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.jit.save(torch.jit.script(_Archived()), str(path))
    elif kind == "state":
        torch.save({"state_dict": {f"module.{k}": t for k, t in tiny_state().items()}}, path)
    else:
        safetensors.torch.save_file(tiny_state(), path)


@pytest.mark.parametrize("kind", ["archive", "state", "safetensors"])
def test_all_kinds_of_files_are_read_without_a_warning(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("clip.safetensors" if kind == "safetensors" else "clip.pt")
    _write(path, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tower = load_tower(path)
    for key, tensor in tower.model.state_dict().items():
        wanted = tiny_state()[key]
        assert tensor.dtype == wanted.dtype
        if kind == "archive" and wanted.is_floating_point():
            wanted = wanted.half().float()
        assert torch.equal(tensor, wanted), key


def test_a_file_that_is_no_clip_with_a_resnet_is_named(tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.zeros(2)}, tmp_path / "vit.pt")
    with pytest.raises(CheckpointError, match=r"vit\.pt.*ResNet, as RN50\.pt"):
        load_tower(tmp_path / "vit.pt")
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such file"):
        load_tower(tmp_path / "absent.pt")
    for missing in ("ln_final.bias", "ln_final.weight"):
        with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
            tower_of({k: t for k, t in tiny_state().items() if k != missing})


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "clip.pt", "archive")
    content = bytearray((tmp_path / "clip.pt").read_bytes())
    start = content.find(b"data.pkl")
    content[start + 60 : start + 160] = bytes(100)
    (tmp_path / "clip.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_tower(tmp_path / "clip.pt")


def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "open_clip"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.path", [one for one in sys.path if "site-packages" not in one])
    with pytest.raises(MissingExtraError, match=r"a CLIP tower needs open_clip.*fastfss\[text\]"):
        tower_of(tiny_state())


@pytest.mark.parametrize("size", [(50, 70), (301, 224), (224, 224), (400, 257)])
def test_the_centre_square_is_torchvisions(size: tuple[int, int]) -> None:
    from torchvision import transforms

    pipeline = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(
                (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            ),
        ]
    )
    image = picture(*size)
    wanted = pipeline(Image.fromarray(image.permute(1, 2, 0).numpy()))
    np.testing.assert_allclose(centre_square(image, 224), wanted, atol=1e-6)
    assert whole_square(image, 224).shape == (3, 224, 224)
