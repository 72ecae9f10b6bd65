from __future__ import annotations

import pytest
import torch

from fastfss.text import activation_maps, cam
from fastfss.text.clip import centre_square
from tests.text.published_cam import published_map
from tests.text.towers import picture, tiny_tower

NAMES = ["cat", "dog", "bottle of wine", "tv"]
PAIRS = [(0, 1), (1, 0), (0, 3), (1, 1), (0, 0), (1, 2), (0, 2), (1, 3)]


def test_pairs_together_are_the_published_maps_one_by_one() -> None:
    tower = tiny_tower().double()
    images = torch.stack([centre_square(picture(90, 120, s), 224) for s in (0, 1)]).double()
    classes = cam.class_features(tower, NAMES)
    which, labels = torch.tensor(PAIRS).unbind(1)
    ours = cam.coarse_maps(tower, tower.activations(images), classes, which, labels)
    prompts = [f"a photo of a {name}" for name in NAMES]
    for found, (image, label) in zip(ours, PAIRS, strict=True):
        wanted = published_map(tower, images[image : image + 1], prompts, label)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9 * float(ours.max()))
    assert int((ours.amax(dim=(1, 2)) > 0).sum()) >= 2  # of the others nothing speaks for the class


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_are_made_where_gradients_are_off(mode: type) -> None:
    tower = tiny_tower()
    images = centre_square(picture(60, 50), 224)[None]
    absent = torch.tensor([[False, True, False, False]])
    pairs = [(0, number) for number in (0, 2, 3)]
    absent = absent.repeat(3, 1)
    wanted = cam.class_maps(tower, images, cam.class_features(tower, NAMES), pairs, 50, absent)
    assert wanted.max() > 0
    with mode():
        classes = cam.class_features(tower, NAMES)
        found = cam.class_maps(tower, images, classes, pairs, 50, absent.clone())
        assert not found.requires_grad
    torch.testing.assert_close(found, wanted)


def test_the_maps_of_a_batch_are_those_of_its_images() -> None:
    tower = tiny_tower()
    images = [picture(90, 60), picture(64, 200, 1), picture(224, 224, 2)]
    together = activation_maps(tower, images, ["dog", "cat", "dog"], NAMES)
    assert together.shape == (3, 50, 50) and together.dtype == torch.float32
    assert together.min() >= 0 and together.max() <= 1
    alone = activation_maps(tower, images[1:2], ["cat"], NAMES)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)


def test_absent_classes_do_not_compete() -> None:
    tower = tiny_tower()
    images = centre_square(picture(60, 50), 224)[None]
    classes = cam.class_features(tower, NAMES)
    pairs = [(0, 0), (0, 1)]
    absent = torch.tensor([[False, False, True, True]] * 2)
    found = cam.class_maps(tower, images, classes, pairs, None, absent)
    wanted = cam.class_maps(tower, images, classes[:2], pairs, None)
    assert wanted.max() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert found.shape == (2, 224, 224)


def test_a_map_of_zeros_stays_one() -> None:
    assert cam.stretched(torch.zeros(2, 7, 7), 224).eq(0).all()


def test_a_class_without_competitors_has_no_map() -> None:
    found = activation_maps(tiny_tower(), [picture(60, 50)], ["cat"], ["cat"])
    assert found.eq(0).all()


@pytest.mark.parametrize(
    ("labels", "among", "message"),
    [
        (["cat", "dog"], NAMES, r"labels: expected 1, one an image, got 2"),
        (["cow"], NAMES, r"labels\[0\]: expected one of `among`, got 'cow'"),
        ([" "], [" ", "cat"], r"labels\[0\]: expected a name, got ' '"),
    ],
)
def test_bad_labels_are_named(labels: list[str], among: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        activation_maps(tiny_tower(), [picture(60, 50)], labels, among)
