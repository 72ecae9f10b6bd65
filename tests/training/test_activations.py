from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastfss.data.sets import Item
from fastfss.training.activations import ActivationMaps
from tests.training.shapes import tiny_recipe, write_activations
from tests.training.test_loop import run

ITEM = Item("2007_000032", Path("val2014/photo.jpg"), Path("m.png"), {3: 10})


@pytest.mark.parametrize("name", ["2007_000032--2.pt", "val2014/photo.jpg--2.pt"])
def test_both_published_names_are_found(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    wanted = torch.rand(50, 50)
    torch.save(wanted, tmp_path / name)
    assert torch.equal(ActivationMaps(tmp_path).read(ITEM, 3), wanted)


def test_a_missing_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no 2007_000032--2\.pt in .*map of class 3"):
        ActivationMaps(tmp_path).read(ITEM, 3)
    with pytest.raises(FileNotFoundError, match=r"data\.activations: no folder"):
        ActivationMaps(tmp_path / "absent")


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.rand(1, 50, 50), r"\(h, w\), got \(1, 50, 50\)"),
        (torch.full((50, 50), 2.0), r"values in 0\.\.1"),
        ({"map": torch.rand(50, 50)}, r"\(h, w\), got dict"),
        (b"damaged", "a map saved by torch"),
    ],
)
def test_a_file_of_something_else_is_named(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "2007_000032--2.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        ActivationMaps(tmp_path).read(ITEM, 3)


def test_what_is_missing_is_found_before_training(shapes: Path, tmp_path: Path) -> None:
    folder = write_activations(shapes, tmp_path / "maps")
    recipe = tiny_recipe(
        shapes, "imr-hsnet", model={"encoder": "mobilenet_v2", "layers": []},
        data={"activations": str(folder)}, transform={"size": 64, "flip": 0.0},
    )  # fmt: skip
    for path in folder.glob("shape012--*.pt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="in image 'shape012'"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()
