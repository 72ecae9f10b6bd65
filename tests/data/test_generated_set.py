"""bench.data.generated: the same seed makes the same set, which the package opens and evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.data import generated
from fastfss.cli import main
from fastfss.data import open_set

IMAGES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generated")
    generated.write_set(made, images=IMAGES)
    return made


def test_the_same_seed_gives_the_same_pixels_and_another_one_others():
    image, labels, large = generated.scene(3, 5)
    again, same_labels, same_large = generated.scene(3, 5)
    assert np.array_equal(image, again) and np.array_equal(labels, same_labels)
    assert large == same_large
    assert not np.array_equal(image, generated.scene(4, 5)[0])


def test_the_package_opens_it_as_a_folder_of_label_maps(folder):
    images = open_set("folder", folder)
    assert list(images.classes.values()) == list(generated.CLASSES)
    assert len(images.items) == IMAGES
    listed = json.loads((folder / "index.json").read_text())
    assert all(len(stems) >= 2 for stems in listed.values())


def test_things_differ_in_scale_and_cover_one_another(folder):
    images = open_set("folder", folder)
    areas = [area for item in images.items for area in item.pixels.values()]
    assert max(areas) > 20 * min(areas)
    listed = json.loads((folder / "index.json").read_text())
    # What is covered too far is in an image and in none of its classes' lists.
    assert sum(map(len, listed.values())) < len(areas)


def test_eval_takes_it(folder, tmp_path):
    model = ("--method", "mlc", "--backbone", "resnet18", "--layers", "layer2", "--size", "64")
    episodes = ("--protocol", "classes", "--fold", "0", "--episodes", "1", "--pictures", "0")
    data = ("--data", str(folder), "--out", str(tmp_path / "results"))
    assert main(["eval", *model, *episodes, *data]) == 0
    assert "miou" in (tmp_path / "results" / "results.json").read_text()
